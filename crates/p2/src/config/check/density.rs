//! Which densities of noise levels are allowed.

use p2_diffusion::{Density, TimestepDensity};

use super::{Violation, ensure};
use crate::config::section::{Diffusion, Loss};
use crate::model::schedule;

/// Beyond this, a typing error is likelier than a wish.
const MAX_STRATA: u64 = 1 << 20;

/// Checks that the density has its mass on the levels of the schedule.
pub(super) fn check(loss: &Loss, diffusion: &Diffusion) -> Result<(), Violation> {
    let allowed = format!("1 to {MAX_STRATA}");
    ensure(
        (1..=MAX_STRATA).contains(&loss.strata),
        "loss.strata",
        loss.strata,
        allowed,
    )?;
    if let Density::Speed { n_first, .. } = loss.density {
        let n_timesteps = diffusion.n_timesteps;
        ensure(
            (1..n_timesteps).contains(&n_first),
            "loss.density",
            format!("speed with n_first = {n_first}"),
            format!("n_first from 1 to {}", n_timesteps - 1),
        )?;
    }
    let density =
        schedule(diffusion).and_then(|schedule| TimestepDensity::new(loss.density, &schedule));
    let Err(error) = density else {
        return Ok(());
    };
    Err(Violation {
        key: "loss.density",
        value: serde_json::to_string(&loss.density).unwrap_or_default(),
        allowed: format!("a density with its mass on the levels of the schedule: {error}"),
        because: None,
    })
}
