//! Densities over the time of a straight path, `x_t = (1 - t) x0 + t eps`, as functions of log-SNR.
//!
//! On it `log_snr = -2 logit t`. All are those of Esser et al. 2024, arXiv 2403.03206, section 3.1.

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2, PI, TAU};

use crate::constant::Constant;
use crate::level::softplus;

/// Density of the log-SNR where the time has a density, given by its logarithm.
///
/// A step along the log-SNR is one of `t (1 - t) / 2` along the time.
pub(crate) fn per_log_snr(log_density: f64, log_snr: f64) -> f64 {
    0.5 * (log_density + log_t(log_snr) + log_one_minus_t(log_snr)).exp()
}

/// Natural logarithm of the time.
pub(crate) fn log_t(log_snr: f64) -> f64 {
    -softplus(0.5 * log_snr)
}

/// Natural logarithm of one minus the time.
fn log_one_minus_t(log_snr: f64) -> f64 {
    -softplus(-0.5 * log_snr)
}

/// Logarithm of the density of t whose logit is normal.
pub(crate) fn log_logit_normal(mean: f64, std: f64, log_snr: f64) -> f64 {
    let z = (-0.5 * log_snr - mean) / std;
    let log_normal = -0.5 * z * z - std.ln() - 0.5 * TAU.ln();
    log_normal - log_t(log_snr) - log_one_minus_t(log_snr)
}

/// Logarithm of the density `2 / (pi (1 - 2 t + 2 t^2))`.
pub(crate) fn log_cosmap(log_snr: f64) -> f64 {
    let (t, rest) = (log_t(log_snr).exp(), log_one_minus_t(log_snr).exp());
    FRAC_2_PI.ln() - (rest * rest + t * t).ln()
}

/// Logarithm of the density of `t = 1 - u - scale (cos^2(pi u / 2) - 1 + u)` for uniform u.
pub(crate) fn log_mode(scale: f64, log_snr: f64) -> f64 {
    let wanted = log_t(log_snr).exp();
    let t = |u: f64| 1.0 - u - scale * ((FRAC_PI_2 * u).cos().powi(2) - 1.0 + u);
    // t falls with u; halving 60 times leaves the last bit of u.
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if t(middle) > wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    let u = 0.5 * (low + high);
    let slope = -1.0 + scale * (FRAC_PI_2 * (PI * u).sin() - 1.0);
    -slope.abs().ln()
}

/// The constant of [`log_mode`].
pub(crate) fn mode_scale(scale: f64) -> Constant {
    let is_allowed = (-1.0..=2.0 / (PI - 2.0)).contains(&scale);
    Constant::that("scale", scale, is_allowed, "-1 to 2 / (pi - 2)")
}
