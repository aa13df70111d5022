//! What can go wrong, with the values that were wrong.

use crate::Prediction;

/// The result of every fallible function of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // === Noise levels ===
    /// A schedule without a single level.
    #[error("a noise schedule needs at least one level")]
    EmptySchedule,
    /// A beta outside of (0, 1), or so small that `1 - alpha_bar` rounds to 0. Only the last may be 1.
    #[error("beta at t = {t} is {beta}, expected a value above 0 and below 1 (the last may be 1)")]
    Beta {
        /// Where.
        t: usize,
        /// The refused value.
        beta: f64,
    },
    /// A timestep beyond the schedule.
    #[error("timestep of image {image_idx} is {t}, the schedule has {n_timesteps} levels")]
    Timestep {
        /// Position in the batch.
        image_idx: usize,
        /// The refused value: a timestep, or a time between two.
        t: f64,
        /// Length of the schedule.
        n_timesteps: usize,
    },
    /// A time between two timesteps, for a network whose prediction means something at timesteps alone.
    #[error("prediction x-prev means something at timesteps alone, and t = {t} is none")]
    BetweenTimesteps {
        /// The first offending time.
        t: f64,
    },
    /// A number that should have been drawn uniformly from `[0, 1)`.
    #[error("uniform draw is {u}, expected a value in [0, 1)")]
    Uniform {
        /// The refused value.
        u: f64,
    },
    /// A list of levels to sample at that the schedule cannot give.
    #[error("cannot space {n_timesteps} timesteps as `{spec}`: {reason}")]
    Respacing {
        /// What was asked for.
        spec: String,
        /// Length of the training schedule.
        n_timesteps: usize,
        /// Why it cannot be done.
        reason: String,
    },

    /// An adaptive solver that came to no end.
    #[error(
        "the probability flow has no end after {n_steps} steps: less exactness may help, if guesses are finite"
    )]
    NotFollowed {
        /// Steps tried.
        n_steps: usize,
    },

    // === Weights ===
    /// A constant of a weighting, or the eta of a sampler, outside of its range.
    #[error("{name} is {value}, expected {expected}")]
    Constant {
        /// Which constant.
        name: &'static str,
        /// The refused value.
        value: f64,
        /// The allowed range, in words.
        expected: &'static str,
    },
    /// A loss weight that is negative, not finite, or lost in the cast to f32.
    #[error("weight on the {prediction} error at t = {t} is {weight:e}: {reason}")]
    Weight {
        /// The error that the weight multiplies.
        prediction: Prediction,
        /// The first offending timestep.
        t: usize,
        /// The refused value.
        weight: f64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A raw weighting for a prediction that its program does not have.
    #[error(
        "this raw weighting reproduces another program, which does not predict {prediction} with it"
    )]
    RawWeighting {
        /// What was to be predicted.
        prediction: Prediction,
    },
    /// A saved state of something that learns which is not its own.
    #[error("the saved state has {found} numbers of {name}, expected {expected}")]
    State {
        /// Which part of it.
        name: String,
        /// How many numbers it needs.
        expected: usize,
        /// How many there are; 0 if the part is missing.
        found: usize,
    },
    /// A weighting that learned what is no weight: not a number, or too large for f32.
    #[error(
        "the learned weight at t = {t} is {weight:e}: what is learned has diverged, a smaller learning rate of the weighting may help"
    )]
    LearnedWeight {
        /// The first offending timestep.
        t: u32,
        /// The refused value.
        weight: f64,
    },
    /// A loss whose weighting learns, without the state that it learns into.
    #[error("this weighting learns: give the objective its state with `with_stateful`")]
    MissingState,
    /// Weights whose mean is 0 or no finite number.
    #[error("the mean weight is {mean_weight}, expected a finite number above 0")]
    NoObjective {
        /// The mean.
        mean_weight: f64,
    },
    /// A weight on the variational bound, which weighs noise levels itself.
    #[error("the variational bound weighs noise levels itself: its weighting must be simple")]
    WeightedBound,
    /// Where the SNR is 0, x_t says nothing about x0, so that eps cannot be turned into an image.
    #[error("prediction eps needs an SNR above 0, at t = {t} it is 0")]
    ZeroSnr {
        /// The first offending timestep.
        t: usize,
    },

    /// Pure noise has no finite amount of noise per unit of data, which most samplers count.
    #[error(
        "there is nothing but noise at t = {t}: this sampler needs an SNR above 0 (ancestral and ddim do not)"
    )]
    PureNoise {
        /// The first offending timestep.
        t: usize,
    },

    // === Tensors ===
    /// A tensor or list whose shape does not fit the others.
    #[error("shape of {name} is {shape:?}, expected {expected:?}")]
    Shape {
        /// Which argument.
        name: &'static str,
        /// The refused shape.
        shape: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A reverse process with learned variance met a denoiser without one.
    #[error("the variance is learned, but the denoiser returned no variance_mix")]
    MissingVarianceMix,
    /// A guess that does not depend on what was seen, as far as candle's graph knows.
    #[error("the guess does not depend on x_t in candle's graph: its derivative is not known")]
    NoDerivative,
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// A closure of the caller (denoiser, noise, observer) failed or asked to stop.
    #[error(transparent)]
    Caller(Box<dyn std::error::Error + Send + Sync>),
}
