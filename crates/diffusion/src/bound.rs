//! The variational bound on the likelihood of images, term by term.

use std::f64::consts::LN_2;

use candle_core::Tensor;

use crate::per_image;
use crate::sampler::{AncestralOptions, p_mean_variance, posterior_mean};
use crate::{Denoised, NoiseSchedule, Result, discretized_gaussian_log_likelihood};

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
/// As for [`p_mean_variance`].
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
    let model = p_mean_variance(schedule, x_t, denoised, i, options)?;
    per_image::check_shape("x0", x0, x_t)?;
    let mean = posterior_mean(schedule, x0, x_t, i)?;
    let log_variance = per_image::column(
        per_image::gather(schedule.posterior_log_variance_clipped(), i, |log| log),
        x_t,
    )?;
    let model_log_variance = model.log_variance.broadcast_as(x_t.shape())?;
    let divergence = divergence(
        (&mean, &log_variance.broadcast_as(x_t.shape())?),
        (&model.mean, &model_log_variance),
    )?;
    let log_std = model_log_variance.affine(0.5, 0.0)?;
    let decoder = discretized_gaussian_log_likelihood(x0, &model.mean, &log_std)?.neg()?;
    let decoder = per_image::mean(&decoder)?; // [N]
    let is_first: Vec<u8> = i.iter().map(|&i| u8::from(i == 0)).collect();
    let is_first = Tensor::from_vec(is_first, i.len(), x0.device())?;
    let nats = is_first.where_cond(&decoder, &per_image::mean(&divergence)?)?;
    Ok(nats.affine(1.0 / LN_2, 0.0)?)
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

/// Divergence of the second normal distribution from the first, in nats, like the means.
fn divergence(
    (mean, log_variance): (&Tensor, &Tensor),
    (other_mean, other_log_variance): (&Tensor, &Tensor),
) -> Result<Tensor> {
    let ratio = (log_variance - other_log_variance)?;
    let distance = ((mean - other_mean)?.sqr()? * other_log_variance.neg()?.exp()?)?;
    let sum = ((ratio.exp()? - &ratio)? + distance)?;
    Ok(sum.affine(0.5, -0.5)?)
}
