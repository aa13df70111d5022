//! The configuration of a run: read, checked, written.

pub mod section;

use serde::{Deserialize, Serialize};

/// A number of images, written as `12800`, `"200k"` or `"2M"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Count(pub u64);

/// All sections of a configuration file, as written.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Which images.
    pub data: section::Data,
    /// The network.
    pub model: section::Model,
    /// The noise process.
    pub diffusion: section::Diffusion,
    /// The objective.
    pub loss: section::Loss,
    /// The optimizer.
    pub optim: section::Optim,
    /// The averaged weights.
    pub ema: section::Ema,
    /// The run.
    pub train: section::Train,
    /// The samples.
    pub sample: section::Sample,
}
