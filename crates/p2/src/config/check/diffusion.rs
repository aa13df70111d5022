//! Which noise schedules are allowed.

use super::{MAX_TIMESTEPS, Violation, because, ensure};
use crate::config::section::{Diffusion, Prediction, Schedule, Time, Variance};
use crate::model::training_schedule;

/// Timesteps with levels between them.
const MAX_CONTINUOUS: usize = 10_000;

/// Checks that the schedule has enough levels, and that noise grows along them.
pub(super) fn check(diffusion: &Diffusion) -> Result<(), Violation> {
    let (least, reason) = least_timesteps(&diffusion.schedule);
    let n = diffusion.n_timesteps;
    let allowed = format!("{least} to {MAX_TIMESTEPS}");
    ensure(
        (least..=MAX_TIMESTEPS).contains(&n),
        "diffusion.n_timesteps",
        n,
        allowed,
    )
    .map_err(because(reason))?;
    if diffusion.time == Time::Continuous {
        check_continuous(diffusion)?;
    }
    let Err(error) = training_schedule(diffusion) else {
        return Ok(());
    };
    Err(Violation {
        key: "diffusion.schedule",
        value: serde_json::to_string(&diffusion.schedule).unwrap_or_default(),
        allowed: format!("a schedule whose noise grows with t: {error}"),
        because: None,
    })
}

/// Between two timesteps there is no step of the sampler.
fn check_continuous(diffusion: &Diffusion) -> Result<(), Violation> {
    let learned = match diffusion.variance {
        Variance::FixedSmall | Variance::FixedLarge => None,
        Variance::LearnedRange => Some("learned-range"),
        Variance::Learned => Some("learned"),
    };
    ensure(
        learned.is_none(),
        "diffusion.variance",
        learned.unwrap_or_default(),
        "fixed-small or fixed-large, with diffusion.time = \"continuous\"",
    )
    .map_err(because(
        "a learned variance is that of a step from timestep to timestep",
    ))?;
    ensure(
        diffusion.prediction != Prediction::XPrev,
        "diffusion.prediction",
        "x-prev",
        "eps, x0 or v, with diffusion.time = \"continuous\"",
    )
    .map_err(because(
        "it is the mean of a step from timestep to timestep",
    ))?;
    let n = diffusion.n_timesteps;
    ensure(
        n <= MAX_CONTINUOUS,
        "diffusion.n_timesteps",
        n,
        format!("at most {MAX_CONTINUOUS} with diffusion.time = \"continuous\""),
    )
    .map_err(because("each timestep has 100 levels then"))
}

/// How few levels a schedule can have, and why.
fn least_timesteps(schedule: &Schedule) -> (usize, &'static str) {
    match schedule {
        Schedule::Linear => (
            21,
            "the linear schedule ends at beta = 20 / T, which must stay below 1",
        ),
        Schedule::Shifted { of, .. } | Schedule::ZeroTerminalSnr { of } => least_timesteps(of),
        Schedule::Cosine
        | Schedule::Sigmoid { .. }
        | Schedule::Karras { .. }
        | Schedule::LogNormal { .. } => (2, "one level is no schedule"),
    }
}
