//! The weightings by name, each with its formula and where it comes from.

use p2_diffusion::Weighting;

/// One of each kind, with the constants of its source.
pub const EXAMPLES: [Weighting; 25] = [
    Weighting::Simple {},
    Weighting::P2 { k: 1.0, gamma: 1.0 },
    Weighting::P2Scaled {
        k: 1.0,
        gamma: 1.0,
        s: 1.0,
    },
    Weighting::Vlb {},
    Weighting::VlbContinuous {},
    Weighting::Likelihood {},
    Weighting::MinSnr { gamma: 5.0 },
    Weighting::MaxSnr { gamma: 5.0 },
    Weighting::SoftMinSnr { gamma: 4.0 },
    Weighting::TruncatedSnr {},
    Weighting::VUniform {},
    Weighting::X0Uniform {},
    Weighting::Debiased {},
    Weighting::Edm { sigma_data: 0.5 },
    Weighting::Sigmoid { bias: 2.0 },
    Weighting::FlowLogitNormal {
        mean: 0.0,
        std: 1.0,
    },
    Weighting::FlowMode { scale: 1.29 },
    Weighting::FlowCosmap {},
    Weighting::FlowSigmaSqrt {},
    Weighting::LearnedUncertainty {
        sigma_data: 0.5,
        n_features: 128,
        lr: 0.001,
    },
    Weighting::AdaptiveBuckets {
        n_buckets: 300,
        min_log_snr: -10.0,
        max_log_snr: 10.0,
        beta: 0.99,
    },
    Weighting::P2Raw { k: 1.0, gamma: 1.0 },
    Weighting::DiffusersVMinSnr { gamma: 5.0 },
    Weighting::OnetrainerP2 { gamma: 5.0 },
    Weighting::KohyaDebiasedV {},
];

/// What people are told of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// With S the SNR, l its logarithm and t the time of a straight path.
    pub formula: &'static str,
    /// Paper or program.
    pub source: &'static str,
}

/// Formula and source of a weighting's kind.
#[must_use]
pub fn describe(weighting: Weighting) -> Description {
    let (formula, source) = match weighting {
        Weighting::Simple {} => ("1", "Ho et al. 2020"),
        Weighting::P2 { .. } => ("1 / (k + S)^gamma", "Choi et al. 2022"),
        Weighting::P2Scaled { .. } => ("1 / (k + S^s)^gamma", "Stable Cascade"),
        Weighting::Vlb {} => ("(S[t-1] / S[t] - 1) / 2", "Kingma et al. 2021"),
        Weighting::VlbContinuous {} => ("-dl/dt / 2", "Kingma et al. 2021"),
        Weighting::Likelihood {} => ("-dl/dt", "Song et al. 2021"),
        Weighting::MinSnr { .. } => ("min(S, gamma) / S", "Hang et al. 2023"),
        Weighting::MaxSnr { .. } => ("max(S, gamma) / S", "code of Hang et al. 2023"),
        Weighting::SoftMinSnr { .. } => ("gamma / (S + gamma)", "Crowson et al. 2024"),
        Weighting::TruncatedSnr {} => ("max(1, 1 / S)", "Salimans and Ho 2022"),
        Weighting::VUniform {} => ("(1 + S) / S, 1 on v", "Salimans and Ho 2022"),
        Weighting::X0Uniform {} => ("1 / S, 1 on x0", "Salimans and Ho 2022"),
        Weighting::Debiased {} => ("1 / sqrt(S)", "Yu et al. 2023"),
        Weighting::Edm { .. } => ("1 + 1 / (sigma_data^2 S)", "Karras et al. 2022"),
        Weighting::Sigmoid { .. } => ("-dl/dt / 2 sigmoid(bias - l)", "Kingma and Gao 2023"),
        Weighting::FlowLogitNormal { .. } => {
            ("on u: density of t, logit normal", "Esser et al. 2024")
        }
        Weighting::FlowMode { .. } => ("on u: density of t, mode", "Esser et al. 2024"),
        Weighting::FlowCosmap {} => ("on u: 2 / (pi (1 - 2 t + 2 t^2))", "Esser et al. 2024"),
        Weighting::FlowSigmaSqrt {} => ("on u: 1 / t^2", "Diffusers"),
        Weighting::LearnedUncertainty { .. } => {
            ("learns u: edm / e^u, plus u", "Karras et al. 2024")
        }
        Weighting::AdaptiveBuckets { .. } => ("learns 1 / mean error near l", "Stable Cascade"),
        Weighting::P2Raw { .. } => (
            "raw: P2's number on any prediction",
            "code of Choi et al. 2022",
        ),
        Weighting::DiffusersVMinSnr { .. } => {
            ("raw, v: min(S, gamma) / S + 1", "Diffusers' scripts")
        }
        Weighting::OnetrainerP2 { .. } => ("raw: (1 + S)^-gamma; v: (2 + S)^-gamma", "OneTrainer"),
        Weighting::KohyaDebiasedV {} => ("raw, v: 1 / (1 + min(S, 1000))", "kohya's scripts"),
    };
    Description { formula, source }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::EXAMPLES;
    use crate::weights::spec;

    /// serde names every variant when it is asked for one that there is not.
    #[test]
    fn every_kind_has_an_example() {
        let unknown = serde_json::json!({ "kind": "" });
        let error = serde_json::from_value::<p2_diffusion::Weighting>(unknown).unwrap_err();
        let message = error.to_string();
        let (_, names) = message.split_once("expected one of ").unwrap();
        let names: BTreeSet<_> = names
            .split(", ")
            .map(|name| name.trim_matches('`'))
            .collect();
        let kinds: Vec<String> = EXAMPLES.into_iter().map(spec::kind).collect();
        assert_eq!(names.len(), EXAMPLES.len());
        assert_eq!(names, kinds.iter().map(String::as_str).collect());
    }
}
