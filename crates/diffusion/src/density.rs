//! How often each noise level is trained on, apart from how its error is weighed.

mod history;

pub use history::LossHistory;

use serde::{Deserialize, Serialize};

use crate::constant::{self, Constant};
use crate::{Error, NoiseLevel, NoiseSchedule, Result, flow};

/// A density of noise levels to draw from.
///
/// A weighting times a density is the objective ([`crate::EffectiveObjective`]); drawing a level twice as often or
/// weighing it twice as much differ in the noise of gradients alone.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Density {
    /// Every timestep of the schedule as often as any other: Ho et al. 2020, arXiv 2006.11239.
    Uniform,
    /// `ln sigma` is normal, with `sigma^2 = 1 / snr`: Karras et al. 2022, arXiv 2206.00364.
    ///
    /// On a straight path `logit t = ln sigma`, so this is the logit-normal density of Esser et al. 2024,
    /// arXiv 2403.03206, too.
    #[serde(alias = "logit-normal")]
    LogNormal {
        /// Mean of ln sigma.
        mean: f64,
        /// Standard deviation of ln sigma, above 0.
        std: f64,
    },
    /// The log-SNR has a Laplace density: Hang et al. 2024, arXiv 2407.03297.
    Laplace {
        /// Its middle.
        mean: f64,
        /// Its scale, above 0.
        scale: f64,
    },
    /// The time of a straight path has the density "mode": Esser et al. 2024, arXiv 2403.03206, section 3.1.
    FlowMode {
        /// From -1 to 2 / (pi - 2); 0 is uniform.
        scale: f64,
    },
    /// The time of a straight path has the density `2 / (pi (1 - 2 t + 2 t^2))`: "cosmap" there.
    FlowCosmap,
    /// The first timesteps are drawn `ratio` times as often as the others: SpeeD, Wang et al. 2024, arXiv
    /// 2405.17403.
    Speed {
        /// How many there are.
        n_first: usize,
        /// How much more often, above 0.
        ratio: f64,
    },
    /// Timesteps are drawn the more often the larger their last losses were, and weigh the less for it: Nichol and
    /// Dhariwal 2021, arXiv 2102.09672, section 3.3. It starts uniform ([`LossHistory`]).
    ///
    /// The objective stays that of [`Self::Uniform`], whatever was seen; only the noise of its gradients changes.
    LossSecondMoment {
        /// Last losses of a timestep that are remembered, at least 1; 10 there.
        n_history: usize,
        /// Share of draws that stay uniform, above 0 and up to 1; 0.001 there.
        uniform: f64,
    },
}

impl Density {
    /// How often each timestep of a schedule is drawn, `[T]`, up to a constant.
    ///
    /// A timestep stands for the piece of the log-SNR axis around it, `|dlog_snr/dt| / T` long.
    fn shares(self, schedule: &NoiseSchedule) -> Vec<f64> {
        let per_log_snr = |density: &dyn Fn(f64) -> f64| {
            let share = |level: NoiseLevel| density(level.log_snr()) * level.dlog_snr_dt().abs();
            let shares = schedule.noise_levels().map(share);
            // Pure noise is infinitely far out, where a density has no mass.
            shares.map(|s| if s.is_nan() { 0.0 } else { s }).collect()
        };
        match self {
            Self::Uniform | Self::LossSecondMoment { .. } => vec![1.0; schedule.n_timesteps()],
            Self::LogNormal { mean, std } => {
                per_log_snr(&|log_snr| (-0.5 * ((-0.5 * log_snr - mean) / std).powi(2)).exp())
            }
            Self::Laplace { mean, scale } => {
                per_log_snr(&|log_snr| (-(log_snr - mean).abs() / scale).exp())
            }
            Self::FlowMode { scale } => {
                per_log_snr(&|l| flow::per_log_snr(flow::log_mode(scale, l), l))
            }
            Self::FlowCosmap => per_log_snr(&|l| flow::per_log_snr(flow::log_cosmap(l), l)),
            Self::Speed { n_first, ratio } => (0..schedule.n_timesteps())
                .map(|t| if t < n_first { ratio } else { 1.0 })
                .collect(),
        }
    }

    fn constants(self) -> Vec<Constant> {
        match self {
            Self::Uniform | Self::FlowCosmap => Vec::new(),
            Self::LogNormal { mean, std } => {
                vec![Constant::any("mean", mean), Constant::positive("std", std)]
            }
            Self::Laplace { mean, scale } => {
                vec![
                    Constant::any("mean", mean),
                    Constant::positive("scale", scale),
                ]
            }
            Self::FlowMode { scale } => vec![flow::mode_scale(scale)],
            Self::Speed { ratio, .. } => vec![Constant::positive("ratio", ratio)],
            Self::LossSecondMoment { n_history, uniform } => {
                let is_share = uniform > 0.0 && uniform <= 1.0;
                vec![
                    Constant::count("n_history", n_history, 1, "1 to 65536"),
                    Constant::that("uniform", uniform, is_share, "above 0, up to 1"),
                ]
            }
        }
    }
}

/// The timesteps of a schedule, each with the probability that it is trained on.
///
/// # Example
/// ```
/// # use p2_diffusion::{Density, NoiseSchedule, TimestepDensity};
/// let schedule = NoiseSchedule::cosine(1000)?;
/// let karras = Density::LogNormal { mean: -1.2, std: 1.2 };
/// let density = TimestepDensity::new(karras, &schedule)?;
/// let t = density.timestep(0.5)?; // the median, where ln sigma is -1.2
/// assert!((schedule.log_snr()[t as usize] - 2.4).abs() < 0.02);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TimestepDensity {
    probability: Vec<f64>,
    /// Probability of a timestep or one before it.
    cumulative: Vec<f64>,
}

impl TimestepDensity {
    /// A density on the timesteps of a schedule.
    ///
    /// # Errors
    /// [`Error::Constant`] for a constant without meaning; [`Error::NoObjective`] if the schedule has no level where
    /// the density has its mass.
    pub fn new(density: Density, schedule: &NoiseSchedule) -> Result<Self> {
        constant::check(density.constants())?;
        Self::from_shares(&density.shares(schedule))
    }

    /// A density with the shares of timesteps up to a constant, `[T]`.
    fn from_shares(shares: &[f64]) -> Result<Self> {
        let total: f64 = shares.iter().sum();
        if !(total > 0.0 && total.is_finite()) {
            return Err(Error::NoObjective { mean_weight: total });
        }
        let mut sum = 0.0;
        let cumulative = shares.iter().map(|share| {
            sum += share;
            sum / total
        });
        Ok(Self {
            cumulative: cumulative.collect(),
            probability: shares.iter().map(|share| share / total).collect(),
        })
    }

    /// The probability of each timestep, `[T]`; they add up to 1.
    #[must_use]
    pub fn probability(&self) -> &[f64] {
        &self.probability
    }

    /// What the loss of an image is multiplied by so that it counts as if timesteps were drawn uniformly:
    /// `1 / (T p[t])`.
    ///
    /// # Errors
    /// [`Error::Timestep`] with the first image whose t is too large.
    pub fn importance(&self, t: &[u32]) -> Result<Vec<f64>> {
        let n_timesteps = self.probability.len();
        let importance = t.iter().enumerate().map(|(image_idx, &t)| {
            let probability = self
                .probability
                .get(t as usize)
                .ok_or_else(|| Error::Timestep {
                    image_idx,
                    t: t.into(),
                    n_timesteps,
                })?;
            Ok(1.0 / (n_timesteps as f64 * probability))
        });
        importance.collect()
    }

    /// The timestep that a uniform draw falls on.
    ///
    /// The caller draws `u`, so that a resumed run sees the same noise levels. Shifted copies `u + i / B mod 1` of
    /// one draw give stratified timesteps.
    ///
    /// # Units
    /// - `u`: in `[0, 1)`
    /// - returns: t, below `schedule.n_timesteps()`; 0 is the least noisy level
    ///
    /// # Errors
    /// [`Error::Uniform`] if `u` is not in `[0, 1)`.
    pub fn timestep(&self, u: f64) -> Result<u32> {
        if !(0.0..1.0).contains(&u) {
            return Err(Error::Uniform { u });
        }
        let t = self.cumulative.partition_point(|&below| below <= u);
        // The last of the sums can round to just under 1.
        Ok(t.min(self.cumulative.len() - 1) as u32)
    }
}
