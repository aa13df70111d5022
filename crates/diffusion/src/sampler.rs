//! From noise to images: one function per algorithm, and its single steps.
//!
//! A sampler draws nothing: the caller supplies the first `x_t`, and a closure `noise(i)` that returns standard
//! normal noise like `x_t`. [`ancestral()`] and [`ddim()`] go down [`Levels`](crate::Levels) and ask for the noise of
//! the step that leaves level i, once per step that uses noise, never at i = 0. All others go down a [`Course`] and ask
//! for the i-th noise of the run, counted from 0. A closure `on_step` sees each step and may end the run with an error.

mod ancestral;
pub(crate) mod course;
mod ddim;
pub(crate) mod dormand_prince;
mod dpm_solver;
mod edm;
mod euler_ancestral;
mod plms;
mod predictor_corrector;
mod probability_flow;
mod unipc;

use candle_core::Tensor;

use crate::{Denoised, Denoiser, NoiseSchedule, Result, per_image};

pub use ancestral::{AncestralOptions, ReverseStep, ancestral, ancestral_guided, p_mean_variance};
pub use course::Course;
pub use ddim::{DdimOptions, DdimStep, ddim, ddim_encode, ddim_reverse_step, ddim_step};
pub use dormand_prince::Tolerance;
pub use dpm_solver::{DpmOptions, SinglestepOptions, dpm_multistep, dpm_singlestep};
pub use edm::{Churn, EdmOptions, Order, edm};
pub use euler_ancestral::{EulerAncestralOptions, euler_ancestral};
pub use plms::plms;
pub use predictor_corrector::{CorrectorOptions, Sde, predictor_corrector};
pub use probability_flow::{FlowOptions, probability_flow};
pub use unipc::{UniPcOptions, unipc};

/// Whether guesses of the clean image are clipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Clip {
    /// To `[-1, 1]`, the range of pixels.
    Pixels,
    /// Not at all: for data that are not pixels, and for exact inversion.
    Off,
}

impl Clip {
    pub(crate) fn apply(self, x0_hat: &Tensor) -> Result<Tensor> {
        match self {
            Self::Pixels => Ok(x0_hat.clamp(-1.0, 1.0)?),
            Self::Off => Ok(x0_hat.clone()),
        }
    }
}

/// One finished step of a sampler, for those who watch.
#[derive(Debug, Clone, Copy)]
pub struct StepReport<'a> {
    /// Index of the level that was left, from `n_steps - 1` down to 0.
    pub i: usize,
    /// The same level as a time of the training schedule.
    pub t: f64,
    /// The guess of the clean images at this level, after clipping; `[N, ..]`.
    pub x0_hat: &'a Tensor,
    /// The images after the step; the result, if `i` is 0. `[N, ..]`.
    pub x: &'a Tensor,
}

/// The guesses of a denoiser at one level for all images, cut from the graph of the network.
fn denoise_at<D: Denoiser + ?Sized>(denoiser: &D, x_t: &Tensor, t: u32) -> Result<Denoised> {
    let n_images = x_t.dims().first().copied().unwrap_or(0);
    let denoised = denoiser.denoise(x_t, &vec![f64::from(t); n_images])?;
    Ok(denoised.detach())
}

/// Refuses guesses and indices that do not fit the images.
fn check_step(schedule: &NoiseSchedule, x_t: &Tensor, x0_hat: &Tensor, i: &[u32]) -> Result<()> {
    per_image::check_shape("x0_hat", x0_hat, x_t)?;
    schedule.check_images(x_t, i)
}

/// For samplers that ask for none.
fn no_noise(_: usize) -> Result<Tensor> {
    Err(candle_core::Error::Msg("this sampler draws no noise".into()).into())
}
