//! How errors at different noise levels are weighed: one function of log-SNR, stated on the eps error.

use crate::{Error, NoiseLevel, NoiseSchedule, Prediction, Result};

/// The weight on the squared eps error as a function of the noise level.
///
/// Weights are not normalized: with `k >= 1` P2 only makes the loss smaller.
///
/// # Source
/// Choi et al. 2022, arXiv 2204.00227, eq. 8. It writes `lambda_t / (k + SNR)^gamma`, the weight on a term
/// of the variational bound; L_simple is lambda_t there and 1 on the eps error.
///
/// # Example
/// ```
/// # use p2_diffusion::{NoiseLevel, Weighting};
/// let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
/// assert_eq!(p2.weight_eps(NoiseLevel::from_log_snr(0.0)), 0.5);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weighting {
    /// 1 at every level (L_simple, Ho et al. 2020).
    Simple,
    /// `1 / (k + snr)^gamma`, converted to the error of whatever the network predicts.
    P2 {
        /// Where the weight bends: it falls for an SNR above `k`. At least 0; the paper uses 1.
        k: f64,
        /// How strongly clean levels are weighed down. At least 0; 0 is [`Self::Simple`], the paper uses
        /// 0.5 and 1.
        gamma: f64,
    },
    /// The number of [`Self::P2`] on the error of whatever the network predicts, as the reference code does.
    ///
    /// Equal to P2 for eps. For x0 it is a weight of `(k + snr)^-gamma / snr` on the eps error.
    P2Raw {
        /// As in [`Self::P2`].
        k: f64,
        /// As in [`Self::P2`].
        gamma: f64,
    },
}

impl Weighting {
    /// The number that the formula of this weighting gives at a level.
    ///
    /// It is the weight on the squared eps error, except for [`Self::P2Raw`], which applies it to any error.
    #[must_use]
    pub fn weight_eps(self, level: NoiseLevel) -> f64 {
        match self {
            Self::Simple => 1.0,
            // x^-0 is exactly 1, so that gamma = 0 is Simple to the last bit.
            Self::P2 { k, gamma } | Self::P2Raw { k, gamma } => (k + level.snr()).powf(-gamma),
        }
    }

    /// The weight on the squared error of what the network predicts.
    #[must_use]
    pub fn weight_target(self, prediction: Prediction, level: NoiseLevel) -> f64 {
        match self {
            Self::Simple | Self::P2 { .. } => {
                self.weight_eps(level) * prediction.exchange_rate(level)
            }
            Self::P2Raw { .. } => self.weight_eps(level),
        }
    }

    /// Refuses constants that no formula is meant for.
    pub(crate) fn check(self) -> Result<()> {
        let (Self::P2 { k, gamma } | Self::P2Raw { k, gamma }) = self else {
            return Ok(());
        };
        for (name, value) in [("k", k), ("gamma", gamma)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(Error::Constant {
                    name,
                    value,
                    expected: "a finite number of at least 0",
                });
            }
        }
        Ok(())
    }
}

/// The weight on the target's squared error for each timestep, checked to survive the cast to f32.
pub(crate) fn target_weights(
    schedule: &NoiseSchedule,
    prediction: Prediction,
    weight_target: impl Fn(NoiseLevel) -> f64,
) -> Result<Vec<f64>> {
    let weights: Vec<f64> = schedule.noise_levels().map(weight_target).collect();
    for (t, &weight) in weights.iter().enumerate() {
        if let Some(reason) = defect(weight) {
            return Err(Error::Weight {
                prediction,
                t,
                weight,
                reason,
            });
        }
    }
    Ok(weights)
}

/// Why a weight cannot be used, if so. 0 can: it leaves a level out.
fn defect(weight: f64) -> Option<&'static str> {
    if !weight.is_finite() {
        Some("not a finite number")
    } else if weight < 0.0 {
        Some("negative")
    } else if weight > f64::from(f32::MAX) {
        Some("too large for f32")
    } else if weight > 0.0 && weight < f64::from(f32::MIN_POSITIVE) {
        Some("too small for f32")
    } else {
        None
    }
}
