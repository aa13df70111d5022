//! The formulas, each in one line: natural logarithms of weights, with `l` the log-SNR.

use std::f64::consts::LN_2;

use super::Weighting;
use crate::level::{log_add_exp, softplus};
use crate::{ErrorUnit, NoiseLevel, flow};

/// SNR beyond which kohya's and OneTrainer's debiased weights stay what they are.
const MOST_SNR: f64 = 1000.0;

impl Weighting {
    /// Natural logarithm of the weight on the squared eps error.
    pub(super) fn log_weight_eps(self, level: NoiseLevel) -> f64 {
        let l = level.bounded_log_snr();
        match self {
            Self::Simple {} | Self::AdaptiveBuckets { .. } => 0.0,
            // x * 0 is 0, so that gamma = 0 is Simple to the last bit.
            Self::P2 { k, gamma } | Self::P2Raw { k, gamma } => -gamma * log_add_exp(k.ln(), l),
            Self::P2Scaled { k, gamma, s } => -gamma * log_add_exp(k.ln(), s * l),
            Self::Vlb {} => log_exp_m1(level.previous_log_snr() - l) - LN_2,
            Self::VlbContinuous {} => (-level.dlog_snr_dt()).ln() - LN_2,
            Self::Likelihood {} => (-level.dlog_snr_dt()).ln(),
            Self::MinSnr { gamma } => (gamma.ln() - l).min(0.0),
            Self::MaxSnr { gamma } => (gamma.ln() - l).max(0.0),
            Self::SoftMinSnr { gamma } => gamma.ln() - log_add_exp(gamma.ln(), l),
            Self::TruncatedSnr {} => (-l).max(0.0),
            Self::VUniform {} => softplus(-l),
            Self::X0Uniform {} => -l,
            Self::Debiased {} => -0.5 * l,
            Self::Edm { sigma_data } | Self::LearnedUncertainty { sigma_data, .. } => {
                softplus(-(l + 2.0 * sigma_data.ln()))
            }
            Self::Sigmoid { bias } => (-level.dlog_snr_dt()).ln() - LN_2 - softplus(l - bias),
            Self::FlowLogitNormal { mean, std } => {
                on_u(flow::log_logit_normal(mean, std, l), level)
            }
            Self::FlowMode { scale } => on_u(flow::log_mode(scale, l), level),
            Self::FlowCosmap {} => on_u(flow::log_cosmap(l), level),
            Self::FlowSigmaSqrt {} => on_u(-2.0 * flow::log_t(l), level),
            Self::DiffusersVMinSnr { gamma } => (gamma.ln() - l).min(0.0),
            Self::OnetrainerP2 { gamma } => -gamma * softplus(l),
            Self::KohyaDebiasedV {} => -0.5 * l.min(MOST_SNR.ln()),
        }
    }

    /// For the raw kinds: the logarithm of the number on the error in a unit, converted or not.
    pub(super) fn log_raw(self, unit: ErrorUnit, level: NoiseLevel) -> Option<f64> {
        let l = level.bounded_log_snr();
        let on_v = unit == ErrorUnit::V;
        match self {
            Self::P2Raw { .. } => Some(self.log_weight_eps(level)),
            Self::DiffusersVMinSnr { .. } if on_v => Some(softplus(self.log_weight_eps(level))),
            Self::OnetrainerP2 { gamma } if on_v => Some(-gamma * log_add_exp(LN_2, l)),
            Self::KohyaDebiasedV {} if on_v => Some(-softplus(l.min(MOST_SNR.ln()))),
            Self::DiffusersVMinSnr { .. } | Self::OnetrainerP2 { .. } | Self::KohyaDebiasedV {} => {
                Some(self.log_weight_eps(level))
            }
            _ => None,
        }
    }
}

/// `ln(e^x - 1)` for x above 0, however large: at an SNR of 0 the step to the level before it has no end.
fn log_exp_m1(x: f64) -> f64 {
    x + (-(-x).exp_m1()).ln()
}

/// A logarithm of a weight on the u error as one on the eps error.
fn on_u(log_weight: f64, level: NoiseLevel) -> f64 {
    log_weight - ErrorUnit::FlowVelocity.log_exchange_rate(level)
}
