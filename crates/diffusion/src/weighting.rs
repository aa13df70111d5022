//! How errors at different noise levels are weighed: one function of the noise level, stated on the eps error.

mod check;
mod formula;
mod stateful;

pub(crate) use check::target_weights;
pub use stateful::{AdaptiveBuckets, Adjustment, StateTensor, StatefulWeighting};

use serde::{Deserialize, Serialize};

use crate::{ErrorUnit, NoiseLevel, Prediction};

/// The weight on the squared eps error as a function of the noise level; S is the SNR.
///
/// Weights are not normalized: with `k >= 1` P2 only makes the loss smaller. The `raw` kinds at the end
/// reproduce what named programs compute, mistakes included: their number multiplies the error of whatever the
/// network predicts.
///
/// Soft-min-SNR, sigmoid, simple, debiased, v-uniform and EDM are points of one family,
/// [`Self::P2Scaled`], up to a constant (and sigmoid up to the schedule's slope); `tests/all/family.rs` proves it.
///
/// # Example
/// ```
/// # use p2_diffusion::{NoiseLevel, Weighting};
/// let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
/// assert!((p2.weight_eps(NoiseLevel::from_log_snr(0.0)) - 0.5).abs() < 1e-15);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Weighting {
    /// 1: L_simple of Ho et al. 2020, arXiv 2006.11239.
    Simple {},
    /// `1 / (k + S)^gamma`: Choi et al. 2022, arXiv 2204.00227, eq. 8.
    ///
    /// The paper writes `lambda_t / (k + S)^gamma`, the weight on a term of the variational bound; L_simple is
    /// lambda_t there and 1 on the eps error.
    P2 {
        /// Where the weight bends: it falls for an SNR above `k`. The paper uses 1.
        k: f64,
        /// How strongly clean levels are weighed down; 0 is [`Self::Simple`], the paper uses 0.5 and 1.
        gamma: f64,
    },
    /// `1 / (k + S^s)^gamma`: P2 on a stretched log-SNR axis, as in Stable Cascade.
    P2Scaled {
        /// At least 0.
        k: f64,
        /// Any number.
        gamma: f64,
        /// Any number.
        s: f64,
    },
    /// `(S[t-1] / S[t] - 1) / 2`: the terms of the variational bound (Kingma et al. 2021, arXiv 2107.00630, eq. 13).
    ///
    /// The first level has no such term (the bound has a likelihood of pixels there); it is weighed as if the
    /// level before it were as far away as the one after it.
    Vlb {},
    /// `-dlambda/dt / 2`: the bound in continuous time (Kingma et al. 2021, eq. 18).
    VlbContinuous {},
    /// `g^2 / sigma^2 = -dlambda/dt`: likelihood weighting (Song et al. 2021, arXiv 2101.09258).
    Likelihood {},
    /// `min(S, gamma) / S`: Hang et al. 2023, arXiv 2303.09556.
    MinSnr {
        /// Above 0; the paper uses 5.
        gamma: f64,
    },
    /// `max(S, gamma) / S`: the counterpart in the code of Hang et al.
    MaxSnr {
        /// Above 0.
        gamma: f64,
    },
    /// `gamma / (S + gamma)`: Crowson et al. 2024, arXiv 2401.11605.
    SoftMinSnr {
        /// Above 0; 4 for data of standard deviation 1/2.
        gamma: f64,
    },
    /// `max(1, 1 / S)`: Salimans and Ho 2022, arXiv 2202.00512.
    TruncatedSnr {},
    /// `(1 + S) / S`, which is 1 on the v error: "SNR + 1" of Salimans and Ho 2022.
    VUniform {},
    /// `1 / S`, which is 1 on the x0 error.
    X0Uniform {},
    /// `1 / sqrt(S)`: Yu et al. 2023, arXiv 2310.08442.
    Debiased {},
    /// `1 + 1 / (sigma_data^2 S)`, which is 1 on the F error: Karras et al. 2022, arXiv 2206.00364.
    Edm {
        /// Standard deviation of the data, above 0; the paper uses 0.5.
        sigma_data: f64,
    },
    /// `-dlambda/dt / 2 sigmoid(bias - lambda)`: Kingma and Gao 2023, arXiv 2303.00848.
    Sigmoid {
        /// Any number.
        bias: f64,
    },
    /// The density of logit-normal t as a weight on the u error: Esser et al. 2024, arXiv 2403.03206.
    FlowLogitNormal {
        /// Mean of logit t.
        mean: f64,
        /// Standard deviation of logit t, above 0.
        std: f64,
    },
    /// The density of "mode" sampling as a weight on the u error: Esser et al. 2024, section 3.1.
    FlowMode {
        /// From -1 to 2 / (pi - 2); 0 is uniform.
        scale: f64,
    },
    /// `2 / (pi (1 - 2 t + 2 t^2))` on the u error: "cosmap" of Esser et al. 2024.
    FlowCosmap {},
    /// `1 / t^2` on the u error: what Diffusers calls `sigma_sqrt`.
    FlowSigmaSqrt {},
    /// As [`Self::Edm`], times `e^-u` for a u(S) that is learned beside the network and added to the loss: Karras
    /// et al. 2024, arXiv 2312.02696. Its state is the caller's ([`crate::Objective::with_stateful`]).
    ///
    /// In the end u is the logarithm of the weighted error, so that all levels count the same.
    LearnedUncertainty {
        /// Standard deviation of the data, above 0; the paper uses 0.5.
        sigma_data: f64,
        /// Fourier features of the noise level that u is linear in; the paper uses 128.
        n_features: usize,
        /// Learning rate of u, above 0 and up to 1.
        lr: f64,
    },
    /// 1 over the moving mean of the error in the level's piece of the log-SNR axis: Stable Cascade.
    ///
    /// As learned so far ([`AdaptiveBuckets`]); it starts with 1.
    AdaptiveBuckets {
        /// How many pieces, at least 3; 300 there.
        n_buckets: usize,
        /// The first piece ends here; -10 there.
        min_log_snr: f64,
        /// The last piece begins here, above `min_log_snr`; 10 there.
        max_log_snr: f64,
        /// Share of the old mean that each new error leaves, at least 0 and below 1; 0.99 there.
        beta: f64,
    },
    /// raw: the number of [`Self::P2`] for any prediction, as its reference code has it.
    P2Raw {
        /// As in [`Self::P2`].
        k: f64,
        /// As in [`Self::P2`].
        gamma: f64,
    },
    /// raw, v only: `min(S, gamma) / S + 1`, as in several scripts of Diffusers; right is `min(S, gamma) / (S + 1)`.
    DiffusersVMinSnr {
        /// Above 0.
        gamma: f64,
    },
    /// raw, eps and v: `(1 + S)^-gamma`, and `(2 + S)^-gamma` for v, as in OneTrainer.
    OnetrainerP2 {
        /// At least 0; the default there is 5.
        gamma: f64,
    },
    /// raw, v only: `1 / (1 + min(S, 1000))`, as in kohya's scripts; right is `sqrt(S) / (1 + S)`.
    KohyaDebiasedV {},
}

impl Weighting {
    /// The weight on the squared eps error; for the raw kinds the number they use for eps.
    #[must_use]
    pub fn weight_eps(self, level: NoiseLevel) -> f64 {
        self.log_weight(ErrorUnit::Eps, level).exp()
    }

    /// Natural logarithm of the weight on the squared error in a unit.
    ///
    /// Plus or minus infinity is never returned: limits at an SNR of 0 or infinity are read off far out, where a
    /// weight that grows without limit has a logarithm in the thousands. Not a number if the weighting needs a
    /// schedule and the level is on none.
    #[must_use]
    pub fn log_weight(self, unit: ErrorUnit, level: NoiseLevel) -> f64 {
        match self.log_raw(unit, level) {
            Some(log_weight) => log_weight,
            None => self.log_weight_eps(level) + unit.log_exchange_rate(level),
        }
    }

    /// The weight on the squared error of what the network predicts.
    #[must_use]
    pub fn weight_target(self, prediction: Prediction, level: NoiseLevel) -> f64 {
        self.log_weight(prediction.into(), level).exp()
    }

    /// Whether it learns from the errors that it sees; the weights that this type computes are then those that it
    /// starts with.
    #[must_use]
    pub fn is_stateful(self) -> bool {
        matches!(
            self,
            Self::LearnedUncertainty { .. } | Self::AdaptiveBuckets { .. }
        )
    }

    /// Whether it reproduces another program's number, which is not converted for the prediction.
    #[must_use]
    pub fn is_raw(self) -> bool {
        let level = NoiseLevel::from_log_snr(0.0);
        self.log_raw(ErrorUnit::Eps, level).is_some()
    }
}
