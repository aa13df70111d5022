//! Which weightings make sense, and with which predictions.

use super::Weighting;
use crate::constant::{self, Constant};
use crate::{Error, NoiseLevel, NoiseSchedule, Prediction, Result, flow};

impl Weighting {
    /// Refuses constants that no formula is meant for, and raw kinds for predictions that their program lacks.
    pub(crate) fn check(self, prediction: Prediction) -> Result<()> {
        constant::check(self.constants())?;
        let is_known = match self {
            Self::DiffusersVMinSnr { .. } | Self::KohyaDebiasedV {} => prediction == Prediction::V,
            Self::OnetrainerP2 { .. } => matches!(prediction, Prediction::Eps | Prediction::V),
            _ => true,
        };
        if is_known {
            Ok(())
        } else {
            Err(Error::RawWeighting { prediction })
        }
    }

    fn constants(self) -> Vec<Constant> {
        match self {
            Self::P2 { k, gamma } | Self::P2Raw { k, gamma } => {
                vec![Constant::size("k", k), Constant::size("gamma", gamma)]
            }
            Self::P2Scaled { k, gamma, s } => vec![
                Constant::size("k", k),
                Constant::any("gamma", gamma),
                Constant::any("s", s),
            ],
            Self::MinSnr { gamma }
            | Self::MaxSnr { gamma }
            | Self::SoftMinSnr { gamma }
            | Self::DiffusersVMinSnr { gamma } => vec![Constant::positive("gamma", gamma)],
            Self::OnetrainerP2 { gamma } => vec![Constant::size("gamma", gamma)],
            Self::Edm { sigma_data } => vec![Constant::positive("sigma_data", sigma_data)],
            Self::LearnedUncertainty {
                sigma_data,
                n_features,
                lr,
            } => vec![
                Constant::positive("sigma_data", sigma_data),
                Constant::count("n_features", n_features, 1, "1 to 65536"),
                Constant::that("lr", lr, lr > 0.0 && lr <= 1.0, "above 0, up to 1"),
            ],
            Self::AdaptiveBuckets {
                n_buckets,
                min_log_snr,
                max_log_snr,
                beta,
            } => bucket_constants(n_buckets, [min_log_snr, max_log_snr], beta),
            Self::Sigmoid { bias } => vec![Constant::any("bias", bias)],
            Self::FlowLogitNormal { mean, std } => {
                vec![Constant::any("mean", mean), Constant::positive("std", std)]
            }
            Self::FlowMode { scale } => vec![flow::mode_scale(scale)],
            Self::Simple {}
            | Self::Vlb {}
            | Self::VlbContinuous {}
            | Self::Likelihood {}
            | Self::TruncatedSnr {}
            | Self::VUniform {}
            | Self::X0Uniform {}
            | Self::Debiased {}
            | Self::FlowCosmap {}
            | Self::FlowSigmaSqrt {}
            | Self::KohyaDebiasedV {} => Vec::new(),
        }
    }
}

fn bucket_constants(n_buckets: usize, [min, max]: [f64; 2], beta: f64) -> Vec<Constant> {
    let rises = max > min && max.is_finite();
    let is_share = (0.0..1.0).contains(&beta);
    vec![
        Constant::count("n_buckets", n_buckets, 3, "3 to 65536"),
        Constant::any("min_log_snr", min),
        Constant::that(
            "max_log_snr",
            max,
            rises,
            "a finite number above min_log_snr",
        ),
        Constant::that("beta", beta, is_share, "0 up to but not 1"),
    ]
}

/// Weights of this share of the largest, and less, are nothing beside it in f32.
const NOTHING: f64 = 1e-20;

/// The weight on the target's squared error for each timestep, checked to survive the cast to f32.
///
/// One that does not, because it is too small, becomes 0 where it is nothing beside the largest.
pub(crate) fn target_weights(
    schedule: &NoiseSchedule,
    prediction: Prediction,
    weight_target: impl Fn(NoiseLevel) -> f64,
) -> Result<Vec<f64>> {
    let mut weights: Vec<f64> = schedule.noise_levels().map(weight_target).collect();
    let most = weights.iter().copied().fold(0.0, f64::max);
    if most == 0.0 && weights.iter().all(|&weight| weight == 0.0) {
        return Err(Error::NoObjective { mean_weight: 0.0 });
    }
    for (t, weight) in weights.iter_mut().enumerate() {
        if is_lost(*weight) && *weight < NOTHING * most {
            *weight = 0.0;
        }
        if let Some(reason) = defect(*weight) {
            return Err(Error::Weight {
                prediction,
                t,
                weight: *weight,
                reason,
            });
        }
    }
    Ok(weights)
}

/// Whether a weight is too small for f32.
fn is_lost(weight: f64) -> bool {
    weight > 0.0 && weight < f64::from(f32::MIN_POSITIVE)
}

/// Why a weight cannot be used, if so. 0 can: it leaves a level out.
fn defect(weight: f64) -> Option<&'static str> {
    if weight.is_nan() {
        Some("not a finite number")
    } else if weight.is_infinite() {
        Some("it grows without limit there; another prediction may bound it")
    } else if weight < 0.0 {
        Some("negative")
    } else if weight > f64::from(f32::MAX) {
        Some("too large for f32")
    } else if is_lost(weight) {
        Some("too small for f32")
    } else {
        None
    }
}
