//! The variational term that trains a learned variance.

use std::f64::consts::{FRAC_2_PI, LN_2};

use candle_core::{Device, Tensor};

use crate::per_image;
use crate::{NoiseSchedule, Prediction, Result};

/// Distance from a pixel's value to the edge of its bin, for 8 bits on `[-1, 1]`.
const HALF_BIN: f64 = 1.0 / 255.0;
/// Pixels beyond this belong to the first or last bin, which reaches to infinity.
const LAST_BIN: f64 = 0.999;
/// No bin is less probable, so that the logarithm stays finite.
const MIN_PROBABILITY: f64 = 1e-12;

/// Log-likelihood (in nats) of 8-bit pixels under a normal distribution, integrated over each pixel's bin.
///
/// The normal distribution function is approximated by a tanh, as in the reference code.
///
/// # Shapes and units
/// - `x`: `[N, ..]`, pixels in `[-1, 1]`
/// - `mean`: like `x`; `log_std`: like `x`, natural logarithm of the standard deviation
/// - returns: like `x`, nats per sub-pixel, at least `ln 1e-12`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if `mean` or `log_std` is not shaped like `x`.
///
/// # Source
/// Ho et al. 2020, arXiv 2006.11239, eq. 13.
pub fn discretized_gaussian_log_likelihood(
    x: &Tensor,
    mean: &Tensor,
    log_std: &Tensor,
) -> Result<Tensor> {
    per_image::check_shape("mean", mean, x)?;
    per_image::check_shape("log_std", log_std, x)?;
    centered_log_likelihood(x, &(x - mean)?, &log_std.neg()?.exp()?)
}

/// [`discretized_gaussian_log_likelihood`] with `centered = x - mean` and `precision = 1 / std`.
fn centered_log_likelihood(x: &Tensor, centered: &Tensor, precision: &Tensor) -> Result<Tensor> {
    let upper = normal_cdf(&(centered.affine(1.0, HALF_BIN)? * precision)?)?;
    let lower = normal_cdf(&(centered.affine(1.0, -HALF_BIN)? * precision)?)?;
    let upper = x.gt(LAST_BIN)?.where_cond(&upper.ones_like()?, &upper)?;
    let lower = x.lt(-LAST_BIN)?.where_cond(&lower.zeros_like()?, &lower)?;
    Ok((upper - lower)?.maximum(MIN_PROBABILITY)?.log()?)
}

/// `0.5 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, close to the normal distribution function.
fn normal_cdf(x: &Tensor) -> Result<Tensor> {
    let scale = FRAC_2_PI.sqrt();
    let inner = x.sqr()?.affine(0.044715 * scale, scale)?; // [N, ..]
    Ok((inner * x)?.tanh()?.affine(0.5, 0.5)?)
}

/// A denoiser's error, as the variational term needs it. Carries no gradient.
pub(crate) struct DetachedError<'a> {
    pub(crate) prediction: Prediction,
    /// `output - target`, `[N, ..]`.
    pub(crate) error: Tensor,
    /// Its square.
    pub(crate) squared: Tensor,
    /// The clean images, like the error.
    pub(crate) x0: &'a Tensor,
}

impl DetachedError<'_> {
    fn select(&self, rows: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((
            self.error.index_select(rows, 0)?,
            self.x0.index_select(rows, 0)?,
        ))
    }
}

/// The terms of the variational bound in bits per dimension, `[N]`; gradients reach `mix` only.
///
/// For t > 0 the divergence of p(x_{t-1} given x_t) from q(x_{t-1} given x_t, x0), for t = 0 the negative
/// log-likelihood of the pixels.
///
/// Images at t = 0 (one of a thousand) are taken out of the batch, because what is computed for one kind
/// could overflow for the other, and a masked infinity still has a NaN as gradient.
pub(crate) fn terms(
    schedule: &NoiseSchedule,
    error: &DetachedError<'_>,
    mix: &Tensor,
    t: &[u32],
) -> Result<Tensor> {
    let rows_where = |is_wanted: &dyn Fn(u32) -> bool| -> Vec<u32> {
        let rows = 0..t.len() as u32;
        rows.filter(|&row| is_wanted(t[row as usize])).collect()
    };
    let first = rows_where(&|t| t == 0);
    if first.is_empty() {
        return divergence(schedule, error.prediction, &error.squared, mix, t);
    }
    let device = mix.device();
    let rows = Tensor::new(first.as_slice(), device)?;
    let (first_error, first_x0) = error.select(&rows)?;
    let first_mix = mix.index_select(&rows, 0)?;
    let at_zero = decoder_nll(
        schedule,
        error.prediction,
        &first_error,
        &first_x0,
        &first_mix,
    )?;
    let later = rows_where(&|t| t > 0);
    if later.is_empty() {
        return Ok(at_zero);
    }
    let rows = Tensor::new(later.as_slice(), device)?;
    let later_t: Vec<u32> = later.iter().map(|&row| t[row as usize]).collect();
    let after_zero = divergence(
        schedule,
        error.prediction,
        &error.squared.index_select(&rows, 0)?,
        &mix.index_select(&rows, 0)?,
        &later_t,
    )?;
    let back = inverse_order(&first, &later, device)?;
    Ok(Tensor::cat(&[&at_zero, &after_zero], 0)?.index_select(&back, 0)?) // [N]
}

/// Where each row of the batch stands once the rows of `a` are followed by those of `b`.
fn inverse_order(a: &[u32], b: &[u32], device: &Device) -> Result<Tensor> {
    let mut place = vec![0_u32; a.len() + b.len()];
    for (position, &row) in a.iter().chain(b).enumerate() {
        place[row as usize] = position as u32;
    }
    Ok(Tensor::new(place.as_slice(), device)?)
}

/// Divergence between the posterior and the model's normal distribution, in bits per dimension, `[N]`.
///
/// With `r = log_variance_posterior - log_variance_model` and `d` the difference of the means it is
/// `((1 + d^2 / variance_posterior) exp(r) - r - 1) / 2`. The means differ by the x0 error alone, so that
/// `d^2` is a factor per image times the squared error of the prediction, and x_t is not needed.
fn divergence(
    schedule: &NoiseSchedule,
    prediction: Prediction,
    squared_error: &Tensor,
    mix: &Tensor,
    t: &[u32],
) -> Result<Tensor> {
    let half_range = schedule.half_log_variance_range(t);
    let r_factor = half_range.into_iter().map(|half| -half).collect();
    let r = per_image::scale(&mix.affine(1.0, 1.0)?, r_factor)?; // [N, ..]
    let log_variance = schedule.posterior_log_variance_clipped();
    let distance_factor = t.iter().map(|&t| {
        let t = t as usize;
        let level = crate::NoiseLevel::from_log_snr(schedule.log_snr()[t]);
        let per_error = schedule.posterior_mean_x0()[t] * prediction.x0_error_factor(level);
        per_error.powi(2) / log_variance[t].exp()
    });
    let distance = per_image::scale(squared_error, distance_factor.collect())?; // [N, ..]
    // The 1 is subtracted before the mean: a mean of numbers near 1 would lose the digits that differ.
    let terms = ((distance.affine(1.0, 1.0)? * r.exp()?)? - r)?.affine(1.0, -1.0)?; // [N, ..]
    Ok(per_image::mean(&terms)?.affine(0.5 / LN_2, 0.0)?) // [N]
}

/// Negative log-likelihood of the pixels at t = 0, in bits per dimension, `[N]`.
fn decoder_nll(
    schedule: &NoiseSchedule,
    prediction: Prediction,
    error: &Tensor,
    x0: &Tensor,
    mix: &Tensor,
) -> Result<Tensor> {
    let t = vec![0; error.dim(0)?];
    let log_variance = schedule.learned_log_variance(mix, &t)?;
    let precision = log_variance.affine(-0.5, 0.0)?.exp()?;
    // The model's mean at t = 0 is x0_hat.
    let factor = schedule.noise_levels().next();
    let factor = factor.map_or(1.0, |level| prediction.x0_error_factor(level));
    let centered = error.affine(factor, 0.0)?;
    let log_likelihood = centered_log_likelihood(x0, &centered, &precision)?;
    Ok(per_image::mean(&log_likelihood)?.affine(-1.0 / LN_2, 0.0)?) // [N]
}

impl NoiseSchedule {
    /// Half of `ln beta - posterior_log_variance_clipped` at checked timesteps: `[N]`.
    fn half_log_variance_range(&self, t: &[u32]) -> Vec<f64> {
        let half = |&t: &u32| {
            let t = t as usize;
            0.5 * (self.beta()[t].ln() - self.posterior_log_variance_clipped()[t])
        };
        t.iter().map(half).collect()
    }

    /// The log-variance that a `variance_mix` means at checked timesteps, like `mix`.
    ///
    /// -1 means the posterior variance, 1 means beta; values beyond are not clamped.
    pub(crate) fn learned_log_variance(&self, mix: &Tensor, t: &[u32]) -> Result<Tensor> {
        let half = self.half_log_variance_range(t);
        let small = per_image::gather(self.posterior_log_variance_clipped(), t, |log| log);
        let middle = small.iter().zip(&half).map(|(small, half)| small + half);
        let middle = per_image::column(middle.collect(), mix)?;
        Ok(per_image::scale(mix, half)?.broadcast_add(&middle)?)
    }
}
