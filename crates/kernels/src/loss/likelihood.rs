//! How improbable one 8-bit pixel is under a normal distribution, and the slopes of that.
//!
//! Source: Ho et al. 2020, arXiv 2006.11239, eq. 13, with the tanh approximation of the reference code. What each step
//! is for says the twin, `p2-diffusion/src/variational.rs`.

use std::f64::consts::FRAC_2_PI;

use super::{Bound, Term};

/// Distance from a pixel's value to the edge of its bin, for 8 bits on `[-1, 1]`.
const HALF_BIN: f64 = 1.0 / 255.0;
/// Pixels beyond this belong to the first or last bin, which reaches to infinity.
const LAST_BIN: f32 = 0.999;
/// No bin is less probable. There is no gradient there.
const MIN_PROBABILITY: f64 = 1e-12;
/// Standard deviations beyond which the distribution function is taken as flat.
const FAR: f64 = 8.0;

/// The negative log-likelihood of a pixel, and its derivatives.
pub(super) struct Nats {
    pub(super) value: f64,
    /// By the error of the prediction.
    pub(super) d_error: f64,
    /// By what the network says of the variance.
    pub(super) d_variance: f64,
}

/// Of a pixel `x0`, by the error of the prediction and what was said of the variance.
///
/// 0 for a [`Term::Divergence`], which is not of pixels.
pub(super) fn nats(bound: &Bound, x0: f32, error: f64, variance: f64) -> Nats {
    let Term::Likelihood {
        x0_error,
        log_variance,
    } = bound.term
    else {
        let (value, d_error, d_variance) = (0.0, 0.0, 0.0);
        return Nats {
            value,
            d_error,
            d_variance,
        };
    };
    let r = bound.ratio_slope * (variance + bound.ratio_shift);
    let precision = (-0.5 * (log_variance - r)).exp();
    let centered = x0_error * error;
    let is_end = !(-LAST_BIN..=LAST_BIN).contains(&x0);
    // The side on which the distribution function is small.
    let side = match is_end {
        true => -f64::from(x0).signum(),
        false => -centered.signum(),
    };
    let (above, below) = (side * centered + HALF_BIN, side * centered - HALF_BIN);
    let upper = normal_cdf(above * precision);
    let lower = match is_end {
        true => Cdf::default(),
        false => normal_cdf(below * precision),
    };
    let probability = upper.value - lower.value;
    // A NaN is no probability at its floor: it has to come out again.
    if probability <= MIN_PROBABILITY {
        return Nats {
            value: -MIN_PROBABILITY.ln(),
            d_error: 0.0,
            d_variance: 0.0,
        };
    }
    let d_centered = side * precision * (upper.slope - lower.slope);
    // The precision grows by half of itself with r.
    let d_r = 0.5 * precision * (upper.slope * above - lower.slope * below);
    Nats {
        value: -probability.ln(),
        d_error: -x0_error * d_centered / probability,
        d_variance: -bound.ratio_slope * d_r / probability,
    }
}

/// The distribution function of the normal distribution, and its slope.
#[derive(Default)]
struct Cdf {
    value: f64,
    slope: f64,
}

/// `1 / (1 + e^(-2 sqrt(2 / pi) (x + 0.044715 x^3)))`, flat beyond [`FAR`].
fn normal_cdf(x: f64) -> Cdf {
    let scale = 2.0 * FRAC_2_PI.sqrt();
    let clamped = x.clamp(-FAR, FAR);
    let square = clamped * clamped;
    let rest = (-scale * clamped * (1.0 + 0.044715 * square)).exp();
    let value = 1.0 / (1.0 + rest);
    let slope = match clamped == x {
        true => scale * (1.0 + 3.0 * 0.044715 * square) * value * value * rest,
        false => 0.0,
    };
    Cdf { value, slope }
}
