//! The allowed ranges of all values of a configuration, and why some are refused.

mod density;
mod diffusion;
mod lint;
mod loss;
mod model;
mod sample;

pub(crate) use lint::short_variance;

use std::fmt::Display;

use super::section::{Data, Decay, Optim, Train};
use super::{ClassifierConfig, RunConfig};

/// A value outside its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The key, such as `optim.lr`.
    pub key: &'static str,
    /// The value as written.
    pub value: String,
    /// The allowed range.
    pub allowed: String,
    /// Why it is so, where that is not plain.
    pub because: Option<&'static str>,
}

/// Beyond these sizes a typing error is likelier than a wish, and products could overflow.
const MAX_IMAGE_SIZE: usize = 4096;
const MAX_TIMESTEPS: usize = 100_000;

/// Checks every range; returns warnings about values that are allowed but doubtful.
pub(super) fn check(config: &RunConfig) -> Result<Vec<String>, Violation> {
    check_data(&config.data)?;
    model::check(&config.model, config.data.image_size)?;
    diffusion::check(&config.diffusion)?;
    density::check(&config.loss, &config.diffusion)?;
    let objective = loss::check(&config.loss, &config.diffusion)?;
    check_optim(&config.optim, &config.train)?;
    ensure(
        config.ema.halflife_images.0 > 0,
        "ema.halflife_images",
        config.ema.halflife_images,
        "1 or more",
    )?;
    ensure(
        is_size(config.ema.rampup_ratio),
        "ema.rampup_ratio",
        config.ema.rampup_ratio,
        "0 or more, finite",
    )?;
    check_train(&config.train)?;
    sample::check(&config.sample, config)?;
    Ok(lint::lint(config, &objective))
}

/// The same for a classifier's.
pub(super) fn classifier(config: &ClassifierConfig) -> Result<Vec<String>, Violation> {
    check_data(&config.data)?;
    model::check_classifier(&config.model, config.data.image_size)?;
    diffusion::check(&config.diffusion.to_model())?;
    let train = config.train.to_model();
    check_optim(&config.optim, &train)?;
    check_train(&train)?;
    Ok(lint::lint_classifier(config))
}

fn ensure(
    holds: bool,
    key: &'static str,
    value: impl Display,
    allowed: impl Into<String>,
) -> Result<(), Violation> {
    if holds {
        return Ok(());
    }
    Err(Violation {
        key,
        value: value.to_string(),
        allowed: allowed.into(),
        because: None,
    })
}

fn because(reason: &'static str) -> impl FnOnce(Violation) -> Violation {
    move |violation| Violation {
        because: Some(reason),
        ..violation
    }
}

/// Finite and 0 or more.
fn is_size(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn check_data(data: &Data) -> Result<(), Violation> {
    let size = data.image_size;
    ensure(
        (1..=MAX_IMAGE_SIZE).contains(&size),
        "data.image_size",
        size,
        format!("1 to {MAX_IMAGE_SIZE}"),
    )?;
    ensure(
        (0.0..1.0).contains(&data.held_out),
        "data.held_out",
        data.held_out,
        "0 up to but not 1",
    )
}

fn check_optim(optim: &Optim, train: &Train) -> Result<(), Violation> {
    ensure(
        is_positive(optim.lr),
        "optim.lr",
        optim.lr,
        "above 0, finite",
    )?;
    ensure(
        (0.0..1.0).contains(&optim.beta1),
        "optim.beta1",
        optim.beta1,
        "0 up to but not 1",
    )?;
    ensure(
        (0.0..1.0).contains(&optim.beta2),
        "optim.beta2",
        optim.beta2,
        "0 up to but not 1",
    )?;
    ensure(
        is_positive(optim.eps),
        "optim.eps",
        optim.eps,
        "above 0, finite",
    )?;
    ensure(
        is_size(optim.weight_decay),
        "optim.weight_decay",
        optim.weight_decay,
        "0 or more, finite",
    )?;
    ensure(
        is_size(optim.max_grad_norm),
        "optim.max_grad_norm",
        optim.max_grad_norm,
        "0 (no clipping) or more, finite",
    )?;
    let ends_later = optim.decay == Decay::None || optim.warmup_images < train.total_images;
    let allowed = format!(
        "below the {} of `train.total_images`, where the decay ends",
        train.total_images
    );
    ensure(
        ends_later,
        "optim.warmup_images",
        optim.warmup_images,
        allowed,
    )
}

fn check_train(train: &Train) -> Result<(), Violation> {
    ensure(
        train.seed <= i64::MAX as u64,
        "train.seed",
        train.seed,
        format!("0 to {}", i64::MAX),
    )?;
    ensure(
        train.batch_size > 0,
        "train.batch_size",
        train.batch_size,
        "1 or more",
    )?;
    ensure(
        (1..=train.batch_size).contains(&train.micro_batch_size),
        "train.micro_batch_size",
        train.micro_batch_size,
        format!("1 to {}, the `train.batch_size`", train.batch_size),
    )?;
    ensure(
        train.total_images.0 > 0,
        "train.total_images",
        train.total_images,
        "1 or more",
    )?;
    ensure(
        train.log_every.0 > 0,
        "train.log_every",
        train.log_every,
        "1 or more",
    )?;
    ensure(
        train.checkpoint_every.0 > 0,
        "train.checkpoint_every",
        train.checkpoint_every,
        "1 or more",
    )?;
    ensure(
        train.keep_last > 0,
        "train.keep_last",
        train.keep_last,
        "1 or more",
    )
}

#[cfg(test)]
mod tests;
