//! Schedules, prediction targets, loss weightings, losses and samplers of image diffusion models.
#![doc = include_str!("../README.md")]

mod bound;
mod constant;
mod denoiser;
mod density;
mod effective;
mod error;
mod error_unit;
mod flow;
mod forward;
mod guidance;
mod level;
mod log_density;
mod loss;
mod loss_type;
mod per_image;
mod prediction;
mod respacing;
pub mod sampler;
mod schedule;
mod stage;
mod variance;
mod variational;
mod weighting;

pub use bound::{bound_terms, prior_bpd};
pub use denoiser::{CandleGraph, Denoised, Denoiser, DifferentiableDenoiser, NetworkOutput};
pub use density::{Density, LossHistory, TimestepDensity};
pub use effective::EffectiveObjective;
pub use error::{Error, Result};
pub use error_unit::ErrorUnit;
pub use forward::MixingCoefficients;
pub use guidance::{
    ClassGradient, ClassifierGuided, Guided, MeanGuidance, condition_mean, condition_score,
};
pub use level::NoiseLevel;
pub use log_density::{LogDensities, log_densities};
pub use loss::{ImageBound, ImageLoss, ImageMeans, ImageTerm, LossPlan, LossTerms, Objective};
pub use loss_type::LossType;
pub use prediction::Prediction;
pub use respacing::{Levels, space_timesteps};
pub use schedule::{NoiseSchedule, Time};
pub use stage::Stage;
pub use variance::Variance;
pub use variational::discretized_gaussian_log_likelihood;
pub use weighting::{AdaptiveBuckets, Adjustment, StateTensor, StatefulWeighting, Weighting};
