//! Which losses are allowed, and why some are refused.

use p2_diffusion::{Error, LossType, Objective, Weighting};

use super::{Violation, because, ensure, is_positive, is_size};
use crate::config::section::{Diffusion, Loss, Time};
use crate::model::objective;
use crate::weights::spec;

/// From here on clean levels hardly count: with k = 1 an SNR of 27 weighs `28^-5`, which is 6e-8.
const GAMMA_REFUSED: f64 = 5.0;

/// Checks that the weighting is one, and has a finite weight at every noise level: returns what is minimized.
pub(super) fn check(loss: &Loss, diffusion: &Diffusion) -> Result<Objective, Violation> {
    if loss.objective.is_bound() {
        check_bound(loss, diffusion)?;
    }
    if let Weighting::P2 { k, gamma } | Weighting::P2Raw { k, gamma } = loss.weighting {
        let refused = ensure(is_positive(k), "loss.weighting.k", k, "above 0, finite");
        if k == 0.0 {
            refused.map_err(because(
                "with k = 0 the weight SNR^-gamma grows without bound as images get noisier",
            ))?;
        } else {
            refused?;
        }
        let is_allowed = is_size(gamma) && gamma < GAMMA_REFUSED;
        let refused = ensure(
            is_allowed,
            "loss.weighting.gamma",
            gamma,
            "0 up to but not 5",
        );
        if gamma >= GAMMA_REFUSED {
            refused.map_err(because(
                "at gamma = 5 the clean levels, which the eye sees first, weigh nothing against the noisy ones",
            ))?;
        } else {
            refused?;
        }
    }
    objective(loss, diffusion).map_err(|error| refused(error, loss))
}

/// Checks that the variational bound is minimized as it is, step by step.
fn check_bound(loss: &Loss, diffusion: &Diffusion) -> Result<(), Violation> {
    let objective = word(loss.objective);
    ensure(
        loss.weighting == Weighting::Simple {},
        "loss.weighting",
        spec::kind(loss.weighting),
        format!("{{ kind = \"simple\" }} with loss.objective = \"{objective}\""),
    )
    .map_err(because(
        "the variational bound weighs noise levels itself: no weight, that of P2 included, applies to it",
    ))?;
    ensure(
        diffusion.time == Time::Discrete,
        "loss.objective",
        objective,
        "mse or rescaled-mse, with diffusion.time = \"continuous\"",
    )
    .map_err(because(
        "the terms of the variational bound are those of steps from timestep to timestep",
    ))
}

/// A type of loss as it is written.
pub(super) fn word(objective: LossType) -> &'static str {
    match objective {
        LossType::Mse => "mse",
        LossType::RescaledMse => "rescaled-mse",
        LossType::Kl => "kl",
        LossType::RescaledKl => "rescaled-kl",
    }
}

/// Why a pair of prediction and weighting has no objective.
fn refused(error: Error, loss: &Loss) -> Violation {
    let violation = |key: &'static str, value: String, allowed: String| Violation {
        key,
        value,
        allowed,
        because: None,
    };
    match error {
        Error::Constant {
            name,
            value,
            expected,
        } => violation(constant_key(name), value.to_string(), expected.into()),
        Error::ZeroSnr { .. } => violation(
            "diffusion.prediction",
            "eps".into(),
            "x0, v or x-prev, with a schedule that ends in pure noise".into(),
        ),
        error => violation(
            "loss.weighting",
            spec::kind(loss.weighting),
            format!("a weighting that this prediction can have: {error}"),
        ),
    }
}

/// The key of a constant of a weighting.
fn constant_key(name: &str) -> &'static str {
    match name {
        "k" => "loss.weighting.k",
        "gamma" => "loss.weighting.gamma",
        "s" => "loss.weighting.s",
        "sigma_data" => "loss.weighting.sigma_data",
        "bias" => "loss.weighting.bias",
        "mean" => "loss.weighting.mean",
        "std" => "loss.weighting.std",
        "scale" => "loss.weighting.scale",
        "n_features" => "loss.weighting.n_features",
        "lr" => "loss.weighting.lr",
        "n_buckets" => "loss.weighting.n_buckets",
        "max_log_snr" => "loss.weighting.max_log_snr",
        "min_log_snr" => "loss.weighting.min_log_snr",
        "beta" => "loss.weighting.beta",
        _ => "loss.weighting",
    }
}
