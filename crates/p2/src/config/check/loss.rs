//! Which losses are allowed, and why some are refused.

use p2_diffusion::{Error, Weighting};

use super::{Violation, because, ensure, is_positive, is_size};
use crate::config::section::{Diffusion, Loss};
use crate::model::objective;

/// Above this, samples are known to be noisy (Choi et al. 2022, section 5).
const GAMMA_NOISY: f64 = 2.0;
/// From here on clean levels hardly count: with k = 1 an SNR of 27 weighs `28^-5`, which is 6e-8.
const GAMMA_REFUSED: f64 = 5.0;
/// Checks that the weighting is one, has a finite weight at every noise level, and means what it says.
pub(super) fn check(loss: &Loss, diffusion: &Diffusion) -> Result<Vec<String>, Violation> {
    let mut warnings = Vec::new();
    let weighting = loss.weighting;
    if let Weighting::P2 { k, gamma } | Weighting::P2Raw { k, gamma } = weighting {
        ensure(is_positive(k), "loss.weighting.k", k, "above 0, finite").map_err(because(
            "with k = 0 the weight SNR^-gamma grows without bound as images get noisier",
        ))?;
        ensure(
            is_size(gamma) && gamma < GAMMA_REFUSED,
            "loss.weighting.gamma",
            gamma,
            "0 up to but not 5",
        )
        .map_err(because(
            "at gamma = 5 the clean levels, which the eye sees first, weigh nothing against the noisy ones",
        ))?;
        if gamma > GAMMA_NOISY {
            warnings.push(format!(
                "loss.weighting.gamma = {gamma} is above 2: samples tend to keep visible noise"
            ));
        }
    }
    if weighting.is_raw() {
        warnings.push(
            "loss.weighting is raw: it repeats what another program computes, mistakes included"
                .into(),
        );
    }
    check_objective(loss, diffusion)?;
    Ok(warnings)
}

/// What the loss would be; an error if the pair of prediction and weighting has none.
fn check_objective(loss: &Loss, diffusion: &Diffusion) -> Result<(), Violation> {
    let Err(error) = objective(loss, diffusion) else {
        return Ok(());
    };
    let refused = |key: &'static str, value: String, allowed: String| Violation {
        key,
        value,
        allowed,
        because: None,
    };
    Err(match error {
        Error::Constant {
            name,
            value,
            expected,
        } => refused(constant_key(name), value.to_string(), expected.into()),
        Error::ZeroSnr { .. } => refused(
            "diffusion.prediction",
            "eps".into(),
            "x0 or v, with a schedule that ends in pure noise".into(),
        ),
        error => refused(
            "loss.weighting",
            kind_of(loss.weighting),
            format!("a weighting that this prediction can have: {error}"),
        ),
    })
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
        _ => "loss.weighting",
    }
}

/// The name of a weighting, as written.
fn kind_of(weighting: Weighting) -> String {
    let value = serde_json::to_value(weighting).unwrap_or_default();
    value["kind"].as_str().unwrap_or_default().to_owned()
}
