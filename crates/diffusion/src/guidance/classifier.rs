//! Guidance along the gradient of a classifier of noised images.
//!
//! # Source
//! Dhariwal and Nichol 2021, arXiv 2105.05233, section 4 and algorithms 1 and 2.

use candle_core::Tensor;

use crate::sampler::{Clip, ReverseStep};
use crate::{Denoised, Denoiser, NoiseSchedule, Result, Time, per_image};

/// A classifier as guidance sees it. Closures `Fn(&Tensor, &[f64]) -> Result<Tensor>` are.
pub trait ClassGradient {
    /// The gradient of `log p(y given x_t)` with respect to `x_t`, for the classes that are wanted.
    ///
    /// # Shapes and units
    /// - `x_t`: `[N, ..]`; `t`: `[N]`, times of the schedule of training
    /// - returns: like `x_t`
    ///
    /// # Errors
    /// Whatever goes wrong inside; [`Error::Caller`](crate::Error::Caller) carries foreign errors.
    fn gradient(&self, x_t: &Tensor, t: &[f64]) -> Result<Tensor>;
}

impl<F> ClassGradient for F
where
    F: Fn(&Tensor, &[f64]) -> Result<Tensor>,
{
    fn gradient(&self, x_t: &Tensor, t: &[f64]) -> Result<Tensor> {
        self(x_t, t)
    }
}

/// A denoiser whose guess is moved along a classifier's gradient, for any sampler: see [`condition_score`].
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use p2_diffusion::{ClassifierGuided, Denoised, Denoiser, NoiseSchedule, Result, sampler::Clip};
/// let black = |x_t: &Tensor, _t: &[f64]| -> Result<Denoised> {
///     Ok(Denoised { x0_hat: x_t.affine(0.0, -1.0)?, variance_mix: None })
/// };
/// let brighter = |x_t: &Tensor, _t: &[f64]| -> Result<Tensor> { Ok(x_t.ones_like()?) };
/// let schedule = NoiseSchedule::linear(1000)?;
/// let guided = ClassifierGuided {
///     denoiser: black,
///     gradient: brighter,
///     scale: 2.0,
///     clip: Clip::Pixels,
///     schedule: schedule.clone(),
/// };
/// let x_t = Tensor::zeros((1, 1), DType::F64, &Device::Cpu)?;
/// let guess = guided.denoise(&x_t, &[250.0])?.x0_hat.to_vec2::<f64>()?[0][0];
/// let alpha_bar = schedule.alpha_bar()[250];
/// assert!((guess - (2.0 * (1.0 - alpha_bar) / alpha_bar.sqrt() - 1.0)).abs() < 1e-12);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ClassifierGuided<D, G> {
    /// The denoiser.
    pub denoiser: D,
    /// The classifier.
    pub gradient: G,
    /// What its gradient is multiplied by.
    pub scale: f64,
    /// Whether the guess is clipped before it is moved; the sampler must not clip it after that.
    pub clip: Clip,
    /// That of training.
    pub schedule: NoiseSchedule,
}

impl<D: Denoiser, G: ClassGradient> Denoiser for ClassifierGuided<D, G> {
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        let denoised = self.denoiser.denoise(x_t, t)?;
        let gradient = self.gradient.gradient(x_t, t)?.affine(self.scale, 0.0)?;
        condition_score(&self.schedule, &denoised, &gradient, t, self.clip)
    }
}

/// How a classifier moves the mean of a reverse step.
#[derive(Debug, Clone, Copy)]
pub struct MeanGuidance<G> {
    /// The classifier.
    pub gradient: G,
    /// What its gradient is multiplied by.
    pub scale: f64,
    /// Whether the gradient is taken at the mean and the level that the step leads to, as the derivation has it; the
    /// reference code takes it at the images and the level that the step leaves.
    pub at_mean: bool,
}

impl<G: ClassGradient> MeanGuidance<G> {
    /// The step from `x_t` at time `from` to time `to`, moved.
    pub(crate) fn moved(
        &self,
        step: &ReverseStep,
        x_t: &Tensor,
        [from, to]: [u32; 2],
    ) -> Result<ReverseStep> {
        let (x, t) = if self.at_mean {
            (&step.mean, to)
        } else {
            (x_t, from)
        };
        let n_images = x.dims().first().copied().unwrap_or(0);
        let gradient = self.gradient.gradient(x, &vec![f64::from(t); n_images])?;
        condition_mean(step, &gradient.affine(self.scale, 0.0)?)
    }
}

/// A reverse step moved along a gradient of `log p(y given x)`, like `x_t`: `mean + variance gradient`.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the gradient is not shaped like the mean.
///
/// # Source
/// Dhariwal and Nichol 2021, algorithm 1. Golden: `tests/all/goldens.rs`.
pub fn condition_mean(step: &ReverseStep, gradient: &Tensor) -> Result<ReverseStep> {
    per_image::check_shape("gradient", gradient, &step.mean)?;
    let push = gradient.broadcast_mul(&step.log_variance.exp()?)?;
    Ok(ReverseStep {
        mean: (&step.mean + push)?,
        ..step.clone()
    })
}

/// A guess whose noise is moved along a gradient of `log p(y given x_t)`: `eps_hat - sqrt(1 - alpha_bar) gradient`.
///
/// `clip` says whether the guess is clipped first; what comes out is not, as in the reference code.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the gradient is not shaped like the guess;
/// [`Error::Timestep`](crate::Error::Timestep) if a time is outside of the schedule;
/// [`Error::ZeroSnr`](crate::Error::ZeroSnr) at pure noise, which no image stands behind.
///
/// # Source
/// Dhariwal and Nichol 2021, algorithm 2. Golden: `tests/all/goldens.rs`.
pub fn condition_score<T: Time>(
    schedule: &NoiseSchedule,
    denoised: &Denoised,
    gradient: &Tensor,
    t: &[T],
    clip: Clip,
) -> Result<Denoised> {
    per_image::check_shape("gradient", gradient, &denoised.x0_hat)?;
    let alpha_bars = schedule.alpha_bars(t, t.len())?;
    if let Some(image) = alpha_bars.iter().position(|&a| a == 0.0) {
        let t: f64 = t[image].into();
        return Err(crate::Error::ZeroSnr { t: t as usize });
    }
    // A step of the noise by -sqrt(1 - a) g is one of the image by (1 - a) / sqrt(a) g.
    let factor = alpha_bars.iter().map(|a| (1.0 - a) / a.sqrt()).collect();
    Ok(Denoised {
        x0_hat: (clip.apply(&denoised.x0_hat)? + per_image::scale(gradient, factor)?)?,
        variance_mix: denoised.variance_mix.clone(),
    })
}
