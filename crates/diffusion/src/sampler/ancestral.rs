//! Ancestral sampling: the stochastic reverse process of DDPM, step by step.

use candle_core::Tensor;

use super::{Clip, StepReport, check_step, denoise_at};
use crate::per_image;
use crate::variance::StepVariance;
use crate::{
    ClassGradient, Denoised, Denoiser, Levels, MeanGuidance, NoiseSchedule, Result, Variance,
};

/// How ancestral sampling treats what the denoiser says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AncestralOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// The variance of a step.
    pub variance: Variance,
}

/// The distribution p(x_{t-1} given x_t), a normal one.
#[derive(Debug, Clone)]
pub struct ReverseStep {
    /// Its mean, like `x_t`.
    pub mean: Tensor,
    /// Logarithm of its variance: like `x_t` if learned, else `[N, 1, .., 1]`.
    pub log_variance: Tensor,
    /// The guess of the clean images that the mean was made from, after clipping.
    pub x0_hat: Tensor,
}

impl ReverseStep {
    /// `mean + exp(log_variance / 2) noise`, like `x_t`.
    ///
    /// The step at i = 0 takes the mean instead.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `noise` is not shaped like the mean.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        per_image::check_shape("noise", noise, &self.mean)?;
        let std = self.log_variance.affine(0.5, 0.0)?.exp()?;
        Ok((&self.mean + noise.broadcast_mul(&std)?)?)
    }
}

/// Mean and variance of p(x_{t-1} given x_t) for images at levels `i`, which may differ.
///
/// `mean = posterior_mean_x0[i] x0_hat + posterior_mean_x_t[i] x_t`
///
/// # Shapes and units
/// - `schedule`: that of the levels sampled at, [`Levels::schedule`]
/// - `x_t`: `[N, ..]`; `denoised`: the guess at it
/// - `i`: `[N]`, indices of `schedule`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if shapes do not fit; [`Error::Timestep`](crate::Error::Timestep) with the
/// first image whose index is too large; [`Error::MissingVarianceMix`](crate::Error::MissingVarianceMix) if the
/// variance is learned and `denoised` has none.
///
/// # Source
/// Ho et al. 2020, arXiv 2006.11239, eq. 7. Golden: `tests/all/goldens.rs`.
pub fn p_mean_variance(
    schedule: &NoiseSchedule,
    x_t: &Tensor,
    denoised: &Denoised,
    i: &[u32],
    options: AncestralOptions,
) -> Result<ReverseStep> {
    check_step(schedule, x_t, &denoised.x0_hat, i)?;
    let x0_hat = options.clip.apply(&denoised.x0_hat)?;
    let mean = schedule.x_prev_from_x0(x_t, &x0_hat, i)?;
    let variance = StepVariance {
        kind: options.variance,
        mix: denoised.variance_mix.as_ref(),
    };
    let log_variance = variance.log_variance(schedule, x_t, i)?;
    Ok(ReverseStep {
        mean,
        log_variance,
        x0_hat,
    })
}

/// Ancestral sampling from the noisiest level down: `x_{t-1} = mean + std noise`, the mean alone at the end.
///
/// # Shapes and units
/// - `x_t`: `[N, ..]`, standard normal; where the run starts
/// - `noise`, `on_step`: see [`crate::sampler`]
/// - returns: like `x_t`, images in `[-1, 1]` as far as the denoiser's guesses are
///
/// # Errors
/// As for [`p_mean_variance`], and whatever the closures return.
///
/// # Source
/// Ho et al. 2020, arXiv 2006.11239, algorithm 2.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// # use p2_diffusion::{Denoised, Levels, NoiseSchedule, Result, Variance, sampler};
/// let levels = Levels::from_spec(&NoiseSchedule::linear(1000)?, "10")?;
/// let black = |x_t: &Tensor, _t: &[f64]| -> Result<Denoised> {
///     Ok(Denoised { x0_hat: x_t.affine(0.0, -1.0)?, variance_mix: None })
/// };
/// let x_t = Tensor::new(&[[0.3f32, -1.7]], &Device::Cpu)?; // [1, 2]
/// let options = sampler::AncestralOptions {
///     clip: sampler::Clip::Pixels,
///     variance: Variance::FixedSmall,
/// };
/// let mut noise = |_i| Ok(Tensor::new(&[[1f32, -1.0]], &Device::Cpu)?);
/// let x0 = sampler::ancestral(&black, x_t, &levels, options, &mut noise, &mut |_step| Ok(()))?;
/// assert_eq!(x0.to_vec2::<f32>()?, [[-1.0, -1.0]]);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
pub fn ancestral<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: Tensor,
    levels: &Levels,
    options: AncestralOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let unmoved = |step: ReverseStep, _: &Tensor, _: usize| Ok(step);
    run((denoiser, &unmoved), x_t, levels, options, noise, on_step)
}

/// [`ancestral()`], with the mean of each step moved along a classifier's gradient.
///
/// The step at i = 0 leads to the clean image, which the classifier is asked about as if it were at the first level.
///
/// # Errors
/// As for [`ancestral()`] and [`condition_mean`](crate::condition_mean).
///
/// # Source
/// Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 1.
pub fn ancestral_guided<D: Denoiser + ?Sized, G: ClassGradient>(
    (denoiser, guidance): (&D, &MeanGuidance<G>),
    x_t: Tensor,
    levels: &Levels,
    options: AncestralOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let t = levels.timesteps();
    let moved = |step: ReverseStep, x: &Tensor, i: usize| {
        guidance.moved(&step, x, [t[i], t[i.saturating_sub(1)]])
    };
    run((denoiser, &moved), x_t, levels, options, noise, on_step)
}

/// What becomes of a step from images at the i-th level.
type Move<'a> = dyn Fn(ReverseStep, &Tensor, usize) -> Result<ReverseStep> + 'a;

fn run<D: Denoiser + ?Sized>(
    (denoiser, moved): (&D, &Move<'_>),
    x_t: Tensor,
    levels: &Levels,
    options: AncestralOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let n_images = x_t.dims().first().copied().unwrap_or(0);
    let mut x = x_t;
    for (i, &t) in levels.timesteps().iter().enumerate().rev() {
        let denoised = denoise_at(denoiser, &x, t)?;
        let indices = vec![i as u32; n_images];
        let step = p_mean_variance(levels.schedule(), &x, &denoised, &indices, options)?;
        let step = moved(step, &x, i)?;
        x = if i == 0 {
            step.mean
        } else {
            step.sample(&noise(i)?)?
        };
        on_step(StepReport {
            i,
            t: f64::from(t),
            x0_hat: &step.x0_hat,
            x: &x,
        })?;
    }
    Ok(x)
}
