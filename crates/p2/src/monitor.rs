//! What a run shows of itself: records, curves, a progress line, pictures.

pub mod grid;
pub mod metrics;
pub mod progress;
pub(crate) mod records;
pub mod tensorboard;
