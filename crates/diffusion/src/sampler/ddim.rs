//! DDIM: fewer steps with less fresh noise, down to none at all.

use candle_core::Tensor;

use super::{Clip, StepReport, check_step, denoise_at};
use crate::constant::{self, Constant};
use crate::per_image::{self, Term};
use crate::{Denoised, Denoiser, Levels, NoiseSchedule, Result};

/// How DDIM treats what the denoiser says, and how much it noises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdimOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Share of fresh noise in `[0, 1]`: 0 is deterministic, 1 is ancestral sampling with the small variance.
    pub eta: f64,
}

/// One step of DDIM: where it leads, and the fresh noise that belongs to it.
#[derive(Debug, Clone)]
pub struct DdimStep {
    /// The next images without fresh noise, like `x_t`.
    pub mean: Tensor,
    /// Standard deviation of the fresh noise, `[N, 1, .., 1]`; 0 at index 0, and everywhere if eta is 0.
    pub std: Tensor,
    /// The guess of the clean images, after clipping.
    pub x0_hat: Tensor,
}

impl DdimStep {
    /// `mean + std noise`, like `x_t`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `noise` is not shaped like the mean.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        per_image::check_shape("noise", noise, &self.mean)?;
        Ok((&self.mean + noise.broadcast_mul(&self.std)?)?)
    }
}

/// One step of DDIM for images at levels `i`, which may differ.
///
/// `mean = sqrt(alpha_bar[i-1]) x0_hat + sqrt(1 - alpha_bar[i-1] - std^2) eps_hat` with
/// `std^2 = eta^2 posterior_variance[i]` and the `eps_hat` that follows from the clipped `x0_hat`.
///
/// # Shapes and units
/// - `schedule`: that of the levels sampled at, [`Levels::schedule`]
/// - `x_t`: `[N, ..]`; `denoised`: the guess at it
/// - `i`: `[N]`, indices of `schedule`
///
/// # Errors
/// [`Error::Constant`](crate::Error::Constant) if eta is not in `[0, 1]`; [`Error::Shape`](crate::Error::Shape) if shapes do not fit;
/// [`Error::Timestep`](crate::Error::Timestep) with the first image whose index is too large.
///
/// # Source
/// Song et al. 2021, arXiv 2010.02502, eq. 12 and 16. Golden: `tests/all/goldens.rs`.
pub fn ddim_step(
    schedule: &NoiseSchedule,
    x_t: &Tensor,
    denoised: &Denoised,
    i: &[u32],
    options: DdimOptions,
) -> Result<DdimStep> {
    check_eta(options.eta)?;
    check_step(schedule, x_t, &denoised.x0_hat, i)?;
    let x0_hat = options.clip.apply(&denoised.x0_hat)?;
    let variance = |i: usize| options.eta.powi(2) * schedule.posterior_variance()[i];
    let moves = i.iter().map(|&i| {
        let i = i as usize;
        Move {
            from_alpha_bar: schedule.alpha_bar()[i],
            to_alpha_bar: before(schedule, i),
            fresh_variance: variance(i),
        }
    });
    let mean = move_along(x_t, &x0_hat, moves)?;
    let std = i.iter().map(|&i| variance(i as usize).sqrt()).collect();
    Ok(DdimStep {
        std: per_image::column(std, &mean)?,
        mean,
        x0_hat,
    })
}

/// One step of deterministic DDIM backwards, from level i to the noisier i + 1, like `x_t`.
///
/// Undoes [`ddim_step`] as far as the denoiser says the same at both ends; clipping loses more. From the
/// last level it goes to pure noise.
///
/// # Shapes and units
/// As for [`ddim_step`].
///
/// # Errors
/// As for [`ddim_step`], without eta.
///
/// # Source
/// Song et al. 2021, arXiv 2010.02502, section 5.4.
pub fn ddim_reverse_step(
    schedule: &NoiseSchedule,
    x_t: &Tensor,
    denoised: &Denoised,
    i: &[u32],
    clip: Clip,
) -> Result<Tensor> {
    check_step(schedule, x_t, &denoised.x0_hat, i)?;
    let x0_hat = clip.apply(&denoised.x0_hat)?;
    let moves = i.iter().map(|&i| {
        let i = i as usize;
        Move {
            from_alpha_bar: schedule.alpha_bar()[i],
            to_alpha_bar: schedule.alpha_bar().get(i + 1).copied().unwrap_or(0.0),
            fresh_variance: 0.0,
        }
    });
    move_along(x_t, &x0_hat, moves)
}

/// Deterministic DDIM from clean images up to the noisiest level: the noise that [`ddim`] with an eta of 0 and without
/// clipping makes these images of.
///
/// The two are inverse up to an error of the order of a step. A guess of the image without noise leads to the first
/// level, as if its noise were that of the level itself; [`ddim_reverse_step`] leads on to the last, never beyond.
///
/// # Shapes and units
/// - `x0`: `[N, ..]`
/// - returns: like `x0`, standard normal as far as the model knows such images
///
/// # Errors
/// As for [`ddim_reverse_step`], and whatever the denoiser returns.
///
/// # Source
/// Song et al. 2021, arXiv 2010.02502, section 5.4.
pub fn ddim_encode<D: Denoiser + ?Sized>(
    denoiser: &D,
    x0: &Tensor,
    levels: &Levels,
) -> Result<Tensor> {
    let (schedule, timesteps) = (levels.schedule(), levels.timesteps());
    let first = schedule.alpha_bar()[0].sqrt();
    let x_t = x0.affine(first, 0.0)?;
    let x0_hat = denoise_at(denoiser, &x_t, timesteps[0])?.x0_hat;
    per_image::check_shape("x0_hat", &x0_hat, x0)?;
    // The noise is sqrt(alpha_bar / (1 - alpha_bar)) (x0 - x0_hat); sqrt(1 - alpha_bar) of it is added.
    let mut x = (x_t + (x0 - x0_hat)?.affine(first, 0.0)?)?;
    let n_images = x.dims().first().copied().unwrap_or(0);
    for (i, &t) in timesteps[..timesteps.len() - 1].iter().enumerate() {
        let denoised = denoise_at(denoiser, &x, t)?;
        let indices = vec![i as u32; n_images];
        x = ddim_reverse_step(schedule, &x, &denoised, &indices, Clip::Off)?;
    }
    Ok(x)
}

/// DDIM from the noisiest level down.
///
/// # Shapes and units
/// - `x_t`: `[N, ..]`, standard normal; where the run starts
/// - `noise`, `on_step`: see [`crate::sampler`]; noise is not asked for if eta is 0
/// - returns: like `x_t`
///
/// # Errors
/// As for [`ddim_step`], and whatever the closures return.
///
/// # Source
/// Song et al. 2021, arXiv 2010.02502, section 4.
pub fn ddim<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: Tensor,
    levels: &Levels,
    options: DdimOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    check_eta(options.eta)?;
    let n_images = x_t.dims().first().copied().unwrap_or(0);
    let mut x = x_t;
    for (i, &t) in levels.timesteps().iter().enumerate().rev() {
        let denoised = denoise_at(denoiser, &x, t)?;
        let indices = vec![i as u32; n_images];
        let step = ddim_step(levels.schedule(), &x, &denoised, &indices, options)?;
        x = if i == 0 || options.eta == 0.0 {
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

fn check_eta(eta: f64) -> Result<()> {
    constant::check([Constant::share("eta", eta)])
}

/// `alpha_bar` one level below i, 1 below the first.
fn before(schedule: &NoiseSchedule, i: usize) -> f64 {
    match i.checked_sub(1) {
        None => 1.0,
        Some(before) => schedule.alpha_bar()[before],
    }
}

/// From one noise level to another, with room left for fresh noise.
struct Move {
    from_alpha_bar: f64,
    to_alpha_bar: f64,
    fresh_variance: f64,
}

/// `sqrt(to) x0_hat + sqrt(1 - to - fresh) eps_hat`, with eps_hat written in terms of `x_t` and `x0_hat`.
fn move_along(x_t: &Tensor, x0_hat: &Tensor, moves: impl Iterator<Item = Move>) -> Result<Tensor> {
    let factors = moves.map(|step| {
        let (from, to) = (step.from_alpha_bar, step.to_alpha_bar);
        // Rounding can leave a little less than nothing.
        let kept = (1.0 - to - step.fresh_variance).max(0.0);
        let x_t = (kept / (1.0 - from)).sqrt();
        (to.sqrt() - x_t * from.sqrt(), x_t)
    });
    let (x0_factor, x_t_factor) = factors.unzip();
    per_image::sum(
        Term {
            tensor: x0_hat,
            factor: x0_factor,
        },
        Term {
            tensor: x_t,
            factor: x_t_factor,
        },
    )
}
