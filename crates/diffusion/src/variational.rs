//! The terms of the variational bound, of a model's error at known images.

use std::f64::consts::{FRAC_2_PI, LN_2};

use candle_core::{Device, Tensor};

use crate::per_image;
use crate::variance::StepVariance;
use crate::{NoiseSchedule, Prediction, Result};

/// Distance from a pixel's value to the edge of its bin, for 8 bits on `[-1, 1]`.
const HALF_BIN: f64 = 1.0 / 255.0;
/// Pixels beyond this belong to the first or last bin, which reaches to infinity.
const LAST_BIN: f64 = 0.999;
/// No bin is less probable, so that the logarithm stays finite. There is no gradient there.
const MIN_PROBABILITY: f64 = 1e-12;
/// Standard deviations below the mean at which the distribution function is 4e-22, far less than any bin counts.
/// Further away its exponential would overflow, and the gradient of an infinity is not a number.
const FAR: f64 = 8.0;

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
///
/// Bins are mirrored to where the distribution function is small. Near 1 it has steps of 6e-8 in f32, in which
/// less probable bins and their gradients would be lost.
fn centered_log_likelihood(x: &Tensor, centered: &Tensor, precision: &Tensor) -> Result<Tensor> {
    let (is_first, is_last) = (x.lt(-LAST_BIN)?, x.gt(LAST_BIN)?);
    let mirrored = centered.neg()?;
    let middle = centered.abs()?.neg()?;
    let end = is_last.where_cond(&mirrored, centered)?;
    let is_end = (is_first + is_last)?;
    let place = is_end.where_cond(&end, &middle)?;
    let upper = normal_cdf(&place.affine(1.0, HALF_BIN)?.broadcast_mul(precision)?)?;
    let lower = normal_cdf(&place.affine(1.0, -HALF_BIN)?.broadcast_mul(precision)?)?;
    // The first bin and the mirrored last one have no lower edge.
    let lower = is_end.where_cond(&lower.zeros_like()?, &lower)?;
    Ok((upper - lower)?.maximum(MIN_PROBABILITY)?.log()?)
}

/// `0.5 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, close to the normal distribution function.
///
/// As `1 / (1 + exp(-2 ..))`, which is the same and keeps its digits far below 0.
fn normal_cdf(x: &Tensor) -> Result<Tensor> {
    let scale = -2.0 * FRAC_2_PI.sqrt();
    let x = x.clamp(-FAR, FAR)?;
    let inner = x.sqr()?.affine(0.044715 * scale, scale)?; // [N, ..]
    Ok((inner * &x)?.exp()?.affine(1.0, 1.0)?.recip()?)
}

/// A model's guess at images, held against the truth. Gradients pass through what carries them.
pub(crate) struct Guess<'a> {
    pub(crate) prediction: Prediction,
    /// `output - target`, `[N, ..]`.
    pub(crate) error: &'a Tensor,
    /// Its square.
    pub(crate) squared: &'a Tensor,
    /// The clean images, like the error.
    pub(crate) x0: &'a Tensor,
    pub(crate) variance: StepVariance<'a>,
}

/// The terms of the variational bound in bits per dimension, `[N]`.
///
/// For t > 0 the divergence of p(x_{t-1} given x_t) from q(x_{t-1} given x_t, x0), for t = 0 the negative
/// log-likelihood of the pixels.
///
/// Images at t = 0 (one of a thousand) are taken out of the batch, because what is computed for one kind
/// could overflow for the other, and a masked infinity still has a NaN as gradient.
pub(crate) fn terms(schedule: &NoiseSchedule, guess: &Guess<'_>, t: &[u32]) -> Result<Tensor> {
    let rows_where = |is_wanted: &dyn Fn(u32) -> bool| -> Vec<u32> {
        let rows = 0..t.len() as u32;
        rows.filter(|&row| is_wanted(t[row as usize])).collect()
    };
    let first = rows_where(&|t| t == 0);
    if first.is_empty() {
        return divergence(schedule, guess, t);
    }
    let at_zero = decoder_nll(schedule, guess, &first)?;
    let later = rows_where(&|t| t > 0);
    if later.is_empty() {
        return Ok(at_zero);
    }
    let device = guess.error.device();
    let rows = Tensor::new(later.as_slice(), device)?;
    let later_t: Vec<u32> = later.iter().map(|&row| t[row as usize]).collect();
    let mix = select(guess.variance.mix, &rows)?;
    let later_guess = Guess {
        squared: &guess.squared.index_select(&rows, 0)?,
        variance: guess.variance.with_mix(mix.as_ref()),
        ..*guess
    };
    let after_zero = divergence(schedule, &later_guess, &later_t)?;
    let back = inverse_order(&first, &later, device)?;
    Ok(Tensor::cat(&[&at_zero, &after_zero], 0)?.index_select(&back, 0)?) // [N]
}

fn select(mix: Option<&Tensor>, rows: &Tensor) -> Result<Option<Tensor>> {
    Ok(mix.map(|mix| mix.index_select(rows, 0)).transpose()?)
}

/// Where each row of the batch stands once the rows of `a` are followed by those of `b`.
fn inverse_order(a: &[u32], b: &[u32], device: &Device) -> Result<Tensor> {
    let mut place = vec![0_u32; a.len() + b.len()];
    for (position, &row) in a.iter().chain(b).enumerate() {
        place[row as usize] = position as u32;
    }
    Ok(Tensor::new(place.as_slice(), device)?)
}

/// Divergence of the model's normal distribution from the posterior, in bits per dimension, `[N]`.
///
/// With `r = ln(posterior variance / model's variance)` and `d` the difference of the means it is
/// `((d^2 / posterior variance) exp(r) + exp(r) - r - 1) / 2`. The means differ by the x0 error alone, so that
/// `d^2` is a factor per image times the squared error of the prediction, and x_t is not needed.
fn divergence(schedule: &NoiseSchedule, guess: &Guess<'_>, t: &[u32]) -> Result<Tensor> {
    let r = guess.variance.log_ratio(schedule, guess.squared, t)?; // [N, ..] or [N, 1, .., 1]
    let factors = t
        .iter()
        .map(|&t| distance_factor(schedule, guess.prediction, t as usize));
    let distance = per_image::scale(guess.squared, factors.collect())?; // [N, ..]
    let ratio = r.exp()?;
    // The 1 is subtracted before the mean: a mean of numbers near 1 would lose the digits that differ.
    let of_variances = (&ratio - r)?.affine(1.0, -1.0)?;
    let terms = distance
        .broadcast_mul(&ratio)?
        .broadcast_add(&of_variances)?; // [N, ..]
    Ok(per_image::mean(&terms)?.affine(0.5 / LN_2, 0.0)?) // [N]
}

/// The squared distance of the model's mean from the posterior's, in variances of the posterior, per squared error of
/// the prediction.
pub(crate) fn distance_factor(schedule: &NoiseSchedule, prediction: Prediction, t: usize) -> f64 {
    let x0_error = prediction.x0_error_factor(schedule.noise_level(t));
    let log_variance = schedule.posterior_log_variance_clipped()[t];
    (schedule.posterior_mean_x0()[t] * x0_error).powi(2) / log_variance.exp()
}

/// Negative log-likelihood of the pixels of the rows that are at t = 0, in bits per dimension, `[n]`.
fn decoder_nll(schedule: &NoiseSchedule, guess: &Guess<'_>, first: &[u32]) -> Result<Tensor> {
    let rows = Tensor::new(first, guess.error.device())?;
    let error = guess.error.index_select(&rows, 0)?;
    let x0 = guess.x0.index_select(&rows, 0)?;
    let mix = select(guess.variance.mix, &rows)?;
    let variance = guess.variance.with_mix(mix.as_ref());
    let log_variance = variance.log_variance(schedule, &error, &vec![0; first.len()])?;
    let precision = log_variance.affine(-0.5, 0.0)?.exp()?;
    // The model's mean at t = 0 is x0_hat.
    let factor = guess.prediction.x0_error_factor(schedule.noise_level(0));
    let centered = error.affine(factor, 0.0)?;
    let log_likelihood = centered_log_likelihood(&x0, &centered, &precision)?;
    Ok(per_image::mean(&log_likelihood)?.affine(-1.0 / LN_2, 0.0)?) // [n]
}
