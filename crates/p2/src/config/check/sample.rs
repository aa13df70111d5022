//! Which samplers are allowed, and what for.

use super::{Violation, because, ensure, is_size};
use crate::config::RunConfig;
use crate::config::section::{Diffusion, Prediction, Sample, Spacing};
use crate::model::schedule;

const MAX_GRID_IMAGES: usize = 4096;

/// Checks that the model can be drawn from in this way.
pub(super) fn check(sample: &Sample, config: &RunConfig) -> Result<(), Violation> {
    let n_timesteps = config.diffusion.n_timesteps;
    ensure(
        (1..=n_timesteps).contains(&sample.n_steps),
        "sample.n_steps",
        sample.n_steps,
        format!("1 to {n_timesteps}, the `diffusion.n_timesteps`"),
    )?;
    ensure(
        !sample.sampler.is_discrete() || sample.spacing != Spacing::Karras,
        "sample.spacing",
        "karras",
        "even, leading or trailing with the samplers ancestral and ddim",
    )
    .map_err(because("these two go from timestep to timestep"))?;
    check_levels(sample, &config.diffusion)?;
    ensure(
        (0.0..=1.0).contains(&sample.eta),
        "sample.eta",
        sample.eta,
        "0 to 1",
    )?;
    ensure(
        is_size(sample.guidance),
        "sample.guidance",
        sample.guidance,
        "0 or more, finite; 1 is none",
    )?;
    ensure(
        sample.guidance == 1.0 || config.model.label_dropout > 0.0,
        "sample.guidance",
        sample.guidance,
        "1 for a model that is not trained without classes as well",
    )
    .map_err(because(
        "guidance leads away from what the model says without a class: set model.label_dropout = 0.1",
    ))?;
    ensure(
        (1..=MAX_GRID_IMAGES).contains(&sample.n_images),
        "sample.n_images",
        sample.n_images,
        format!("1 to {MAX_GRID_IMAGES}"),
    )?;
    ensure(
        sample.seed <= i64::MAX as u64,
        "sample.seed",
        sample.seed,
        format!("0 to {}", i64::MAX),
    )
}

/// Checks that the sampler asks only for noise levels at which the network means something.
fn check_levels(sample: &Sample, diffusion: &Diffusion) -> Result<(), Violation> {
    let ends_in_noise = schedule(diffusion)
        .is_ok_and(|schedule| schedule.log_snr().last() == Some(&f64::NEG_INFINITY));
    ensure(
        sample.sampler.is_discrete() || !ends_in_noise,
        "sample.sampler",
        sample.sampler.name(),
        "ancestral or ddim, with a schedule that ends in pure noise",
    )?;
    let value = match sample.spacing {
        Spacing::Karras => format!("{} with karras spacing", sample.sampler.name()),
        _ => sample.sampler.name(),
    };
    ensure(
        diffusion.prediction != Prediction::XPrev || !sample.sampler.goes_between(sample.spacing),
        "sample.sampler",
        value,
        "one that stays on timesteps, such as ancestral or ddim, with diffusion.prediction = \"x-prev\"",
    )
    .map_err(because(
        "the mean of a step to the timestep before is none between timesteps",
    ))
}
