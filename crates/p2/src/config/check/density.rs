//! Which densities of noise levels are allowed.

use p2_diffusion::{Density, Error, TimestepDensity};

use super::{Violation, because, ensure};
use crate::config::section::{Diffusion, Loss, Time};
use crate::model::{training_density, training_schedule};

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
    ensure(
        !loss.antithetic || loss.strata == 1 || loss.strata.is_multiple_of(2),
        "loss.strata",
        loss.strata,
        "1 or an even number with loss.antithetic",
    )
    .map_err(because("a block holds whole pairs of images"))?;
    if let Density::LossSecondMoment { .. } = loss.density {
        ensure(
            diffusion.time == Time::Discrete,
            "loss.density",
            "loss-second-moment",
            "one that remembers nothing, with diffusion.time = \"continuous\"",
        )
        .map_err(because(
            "no level between timesteps is drawn often enough to be remembered",
        ))?;
    }
    if let Density::Speed { n_first, .. } = loss.density {
        let n_timesteps = diffusion.n_timesteps;
        ensure(
            (1..n_timesteps).contains(&n_first),
            "loss.density",
            format!("speed with n_first = {n_first}"),
            format!("n_first from 1 to {}", n_timesteps - 1),
        )?;
    }
    let density = training_schedule(diffusion)
        .and_then(|schedule| TimestepDensity::new(training_density(loss, diffusion), &schedule));
    let (value, allowed) = match density {
        Ok(_) => return Ok(()),
        Err(Error::Constant {
            name,
            value,
            expected,
        }) => (format!("one with {name} = {value}"), expected.to_owned()),
        Err(error) => (
            serde_json::to_string(&loss.density).unwrap_or_default(),
            format!("a density with its mass on the levels of the schedule: {error}"),
        ),
    };
    Err(Violation {
        key: "loss.density",
        value,
        allowed,
        because: None,
    })
}
