//! The mathematics of noise: schedules, targets, weightings, losses, samplers.

mod error;
mod forward;
mod level;
mod loss;
mod per_image;
mod prediction;
mod schedule;
mod stage;
mod timestep;
mod variational;
mod weighting;

pub use error::{Error, Result};
pub use forward::MixingCoefficients;
pub use level::NoiseLevel;
pub use loss::{LossTerms, Objective};
pub use prediction::{Prediction, Variance};
pub use schedule::NoiseSchedule;
pub use stage::Stage;
pub use timestep::timestep_from_uniform;
pub use variational::discretized_gaussian_log_likelihood;
pub use weighting::Weighting;
