//! Which weightings make sense, and with which predictions.

use super::Weighting;
use crate::{Error, NoiseLevel, NoiseSchedule, Prediction, Result};

impl Weighting {
    /// Refuses constants that no formula is meant for, and raw kinds for predictions that their program lacks.
    pub(crate) fn check(self, prediction: Prediction) -> Result<()> {
        for (name, value, is_allowed, expected) in self.constants() {
            if !is_allowed {
                return Err(Error::Constant {
                    name,
                    value,
                    expected,
                });
            }
        }
        let is_known = match self {
            Self::DiffusersVMinSnr { .. } | Self::KohyaDebiasedV {} => prediction == Prediction::V,
            Self::OnetrainerP2 { .. } => prediction != Prediction::X0,
            _ => true,
        };
        if is_known {
            Ok(())
        } else {
            Err(Error::RawWeighting { prediction })
        }
    }

    /// Name and value of each constant, whether it is allowed, and what is.
    fn constants(self) -> Vec<(&'static str, f64, bool, &'static str)> {
        let any = |name, value: f64| (name, value, value.is_finite(), "a finite number");
        let size = |name, value: f64| {
            let is_allowed = value >= 0.0 && value.is_finite();
            (name, value, is_allowed, "a finite number of at least 0")
        };
        let positive = |name, value: f64| {
            let is_allowed = value > 0.0 && value.is_finite();
            (name, value, is_allowed, "a finite number above 0")
        };
        match self {
            Self::P2 { k, gamma } | Self::P2Raw { k, gamma } => {
                vec![size("k", k), size("gamma", gamma)]
            }
            Self::P2Scaled { k, gamma, s } => vec![size("k", k), any("gamma", gamma), any("s", s)],
            Self::MinSnr { gamma }
            | Self::MaxSnr { gamma }
            | Self::SoftMinSnr { gamma }
            | Self::DiffusersVMinSnr { gamma } => vec![positive("gamma", gamma)],
            Self::OnetrainerP2 { gamma } => vec![size("gamma", gamma)],
            Self::Edm { sigma_data } => vec![positive("sigma_data", sigma_data)],
            Self::Sigmoid { bias } => vec![any("bias", bias)],
            Self::FlowLogitNormal { mean, std } => vec![any("mean", mean), positive("std", std)],
            Self::FlowMode { scale } => {
                let most = 2.0 / (std::f64::consts::PI - 2.0);
                let is_allowed = (-1.0..=most).contains(&scale);
                vec![("scale", scale, is_allowed, "-1 to 2 / (pi - 2)")]
            }
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
    if weight.is_nan() {
        Some("not a finite number")
    } else if weight.is_infinite() {
        Some("it grows without limit there; another prediction may bound it")
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
