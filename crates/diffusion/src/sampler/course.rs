//! Down through the noise, counted as noise per unit of data: what all samplers but the first two share.

use candle_core::Tensor;

use super::{Clip, StepReport};
use crate::{Denoiser, Error, Levels, NoiseSchedule, Result, per_image};

/// The noise that a sampler goes down through, from the most of it to none or little.
///
/// Sigma is the noise per unit of data, `sqrt((1 - alpha_bar) / alpha_bar)`. Samplers compute with
/// `x = x_t / sqrt(alpha_bar) = x0 + sigma eps`, whose probability flow is `dx / dsigma = (x - x0_hat) / sigma`.
///
/// # Source
/// Karras et al. 2022, arXiv 2206.00364, section 2.
///
/// # Example
/// ```
/// # use p2_diffusion::{Levels, NoiseSchedule, sampler::Course};
/// let training = NoiseSchedule::linear(1000)?;
/// let course = Course::through(&Levels::from_spec(&training, "50")?, &training)?;
/// assert_eq!(course.n_steps(), 50); // from each level to the next, and from the last to no noise
/// assert_eq!(course.sigmas()[50], 0.0);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Course {
    training: NoiseSchedule,
    sigmas: Vec<f64>,
}

/// Where Karras et al. begin.
const MAX_SIGMA: f64 = 80.0;

impl Course {
    /// Down through the levels, and from the last of them to no noise.
    ///
    /// # Errors
    /// [`Error::PureNoise`] if they begin with pure noise, of which there is no finite amount.
    pub fn through(levels: &Levels, training: &NoiseSchedule) -> Result<Self> {
        let log_snr = levels.schedule().log_snr().iter().rev();
        let sigmas = log_snr.map(|l| (-0.5 * l).exp()).chain([0.0]);
        Self::from_sigmas(sigmas.collect(), training)
    }

    /// So many steps evenly spaced in `sigma^(1 / rho)` between the ends of the schedule, the last of them to no noise.
    ///
    /// It begins at a sigma of 80 where the schedule goes beyond: from there on nothing is left of an image.
    ///
    /// # Errors
    /// [`Error::Constant`] for no steps, or a rho that is not above 0.
    ///
    /// # Source
    /// Karras et al. 2022, eq. 5 and table 1, with rho 7.
    pub fn karras(n_steps: usize, rho: f64, training: &NoiseSchedule) -> Result<Self> {
        use crate::constant::{self, Constant};
        constant::check([
            Constant::count("n_steps", n_steps, 1, "1 to 65536"),
            Constant::positive("rho", rho),
        ])?;
        let log_snr = training.log_snr();
        let end = |l: Option<&f64>| l.map_or(f64::NAN, |l| (-0.5 * l).exp().powf(1.0 / rho));
        let most = MAX_SIGMA.powf(1.0 / rho);
        let (low, high) = (end(log_snr.first()), end(log_snr.last()).min(most));
        let last = n_steps.saturating_sub(1).max(1) as f64;
        let roots = (0..n_steps).map(|i| high + i as f64 / last * (low - high));
        let sigmas = roots.map(|root| root.powf(rho)).chain([0.0]);
        Self::from_sigmas(sigmas.collect(), training)
    }

    /// A course of one's own: falling sigmas, two or more, of which the last may be 0.
    ///
    /// # Errors
    /// [`Error::PureNoise`] if the first is infinite; [`Error::Constant`] with the first that does not fall.
    pub fn from_sigmas(sigmas: Vec<f64>, training: &NoiseSchedule) -> Result<Self> {
        if sigmas.first().is_some_and(|sigma| sigma.is_infinite()) {
            let t = training.n_timesteps() - 1;
            return Err(Error::PureNoise { t });
        }
        let first = sigmas.first().copied().unwrap_or(f64::NAN);
        let falls = |pair: &[f64]| pair[0] > pair[1] && pair[1] >= 0.0;
        let wrong = sigmas.windows(2).find(|pair| !falls(pair));
        let wrong = wrong.map(|pair| pair[1]);
        match wrong.or((sigmas.len() < 2).then_some(first)) {
            None => Ok(Self {
                training: training.clone(),
                sigmas,
            }),
            Some(value) => Err(Error::Constant {
                name: "sigma",
                value,
                expected: "two or more falling numbers from 0",
            }),
        }
    }

    /// From the most noise to the least; one more than steps.
    #[must_use]
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// Number of steps.
    #[must_use]
    pub fn n_steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// The time at which the network was trained on this noise.
    pub(super) fn time(&self, sigma: f64) -> f64 {
        self.training.time_of(-2.0 * sigma.ln())
    }
}

/// A run down a course.
pub(super) struct Descent<'a, D: ?Sized> {
    denoiser: &'a D,
    course: &'a Course,
    clip: Clip,
    noise: &'a mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &'a mut dyn FnMut(StepReport<'_>) -> Result<()>,
    /// Noises drawn so far.
    n_noises: usize,
}

impl<'a, D: Denoiser + ?Sized> Descent<'a, D> {
    /// A run at its beginning.
    pub(super) fn new(
        (denoiser, course): (&'a D, &'a Course),
        clip: Clip,
        noise: &'a mut dyn FnMut(usize) -> Result<Tensor>,
        on_step: &'a mut dyn FnMut(StepReport<'_>) -> Result<()>,
    ) -> Self {
        Self {
            denoiser,
            course,
            clip,
            noise,
            on_step,
            n_noises: 0,
        }
    }

    /// What the run starts with, `x_t` being standard normal.
    pub(super) fn start(&self, x_t: &Tensor) -> Result<Tensor> {
        Ok(x_t.affine(1.0 / shrink(self.course.sigmas[0]), 0.0)?)
    }

    /// The guess of the clean images in `x`.
    pub(super) fn denoise(&self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let n_images = x.dims().first().copied().unwrap_or(0);
        let x_t = x.affine(shrink(sigma), 0.0)?;
        let times = vec![self.course.time(sigma); n_images];
        let x0_hat = self.denoiser.denoise(&x_t, &times)?.x0_hat.detach();
        per_image::check_shape("x0_hat", &x0_hat, x)?;
        self.clip.apply(&x0_hat)
    }

    /// The next noise of the run, like `x`.
    pub(super) fn fresh(&mut self, x: &Tensor) -> Result<Tensor> {
        let noise = (self.noise)(self.n_noises)?;
        self.n_noises += 1;
        per_image::check_shape("noise", &noise, x)?;
        Ok(noise)
    }

    /// The steps: number of each, the noise before and after it.
    pub(super) fn steps(&self) -> impl Iterator<Item = (usize, f64, f64)> + use<'a, D> {
        let sigmas = self.course.sigmas.clone();
        (0..sigmas.len() - 1).map(move |step| (step, sigmas[step], sigmas[step + 1]))
    }

    /// Tells of a finished step of the course.
    pub(super) fn report(&mut self, step: usize, x0_hat: &Tensor, x: &Tensor) -> Result<()> {
        let [from, to] = [step, step + 1].map(|i| self.course.sigmas[i]);
        let i = self.course.n_steps() - 1 - step;
        self.tell(i, [from, to], x0_hat, x)
    }

    /// Tells of a step with the noise before and after it.
    pub(super) fn tell(
        &mut self,
        i: usize,
        [from, to]: [f64; 2],
        x0_hat: &Tensor,
        x: &Tensor,
    ) -> Result<()> {
        let x_t = x.affine(shrink(to), 0.0)?;
        (self.on_step)(StepReport {
            i,
            t: self.course.time(from),
            x0_hat,
            x: &x_t,
        })
    }

    /// What the run ends with, at the variance of `x_t`.
    pub(super) fn end(&self, x: &Tensor) -> Result<Tensor> {
        let last = self.course.sigmas[self.course.n_steps()];
        Ok(x.affine(shrink(last), 0.0)?)
    }
}

/// `x_t` per `x`, the root of `alpha_bar`.
pub(crate) fn shrink(sigma: f64) -> f64 {
    1.0 / (1.0 + sigma * sigma).sqrt()
}

/// The sum of tensors, each times a number.
pub(crate) fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let [(factor, first), rest @ ..] = terms else {
        return Err(candle_core::Error::Msg("a sum needs a term".into()).into());
    };
    let mut sum = first.affine(*factor, 0.0)?;
    for (factor, tensor) in rest {
        sum = (sum + tensor.affine(*factor, 0.0)?)?;
    }
    Ok(sum)
}
