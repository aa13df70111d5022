//! The variational bound on the likelihood of images, term by term.

use std::f64::consts::LN_2;

use candle_core::Tensor;

use crate::per_image;
use crate::sampler::AncestralOptions;
use crate::variance::StepVariance;
use crate::variational::{self, Guess};
use crate::{Denoised, NoiseSchedule, Prediction, Result};

/// The term of the bound at levels `i`, in bits per dimension: `[N]`.
///
/// Above level 0 the divergence of p(x_{i-1} given x_i) from q(x_{i-1} given x_i, x0), at level 0 the negative
/// log-likelihood of 8-bit pixels. The sum over all levels plus [`prior_bpd`] bounds the negative log-likelihood.
///
/// # Shapes and units
/// - `schedule`: that of the levels, [`crate::Levels::schedule`]
/// - `x0`: `[N, ..]`, pixels in `[-1, 1]`; `x_t`: like `x0`, noised to the levels; `denoised`: the guess at it
/// - `i`: `[N]`, indices of `schedule`
///
/// # Errors
/// As for [`crate::sampler::p_mean_variance`].
///
/// # Source
/// Ho et al. 2020, arXiv 2006.11239, eq. 5 and 13. Golden: `tests/all/goldens.rs`.
pub fn bound_terms(
    schedule: &NoiseSchedule,
    (x0, x_t): (&Tensor, &Tensor),
    denoised: &Denoised,
    i: &[u32],
    options: AncestralOptions,
) -> Result<Tensor> {
    per_image::check_shape("x0", x0, x_t)?;
    per_image::check_shape("x0_hat", &denoised.x0_hat, x_t)?;
    schedule.check_images(x_t, i)?;
    let error = (options.clip.apply(&denoised.x0_hat)? - x0)?; // [N, ..]
    let guess = Guess {
        prediction: Prediction::X0,
        error: &error,
        squared: &error.sqr()?,
        x0,
        variance: StepVariance {
            kind: options.variance,
            mix: denoised.variance_mix.as_ref(),
        },
    };
    variational::terms(schedule, &guess, i)
}

/// The divergence of the noisiest images from pure noise, in bits per dimension: `[N, ..]` to `[N]`.
///
/// # Errors
/// If the engine fails.
///
/// # Source
/// Ho et al. 2020, eq. 5 (L_T). Golden: `tests/all/goldens.rs`.
pub fn prior_bpd(schedule: &NoiseSchedule, x0: &Tensor) -> Result<Tensor> {
    let alpha_bar = schedule.alpha_bar().last().copied().unwrap_or(1.0);
    // (mean^2 + variance - 1 - ln variance) / 2, with variance - 1 = -alpha_bar.
    let constant = -alpha_bar - (-alpha_bar).ln_1p();
    let squared = per_image::mean(&x0.sqr()?)?; // [N]
    Ok(squared.affine(0.5 * alpha_bar / LN_2, 0.5 * constant / LN_2)?)
}
