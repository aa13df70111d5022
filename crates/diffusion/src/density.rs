//! How often each noise level is trained on, apart from how its error is weighed.

use serde::{Deserialize, Serialize};

use crate::{Error, NoiseLevel, NoiseSchedule, Result};

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
    /// The first timesteps are drawn `ratio` times as often as the others: SpeeD, Wang et al. 2024, arXiv
    /// 2405.17403.
    Speed {
        /// How many there are.
        n_first: usize,
        /// How much more often, above 0.
        ratio: f64,
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
            Self::Uniform => vec![1.0; schedule.n_timesteps()],
            Self::LogNormal { mean, std } => {
                per_log_snr(&|log_snr| (-0.5 * ((-0.5 * log_snr - mean) / std).powi(2)).exp())
            }
            Self::Laplace { mean, scale } => {
                per_log_snr(&|log_snr| (-(log_snr - mean).abs() / scale).exp())
            }
            Self::Speed { n_first, ratio } => (0..schedule.n_timesteps())
                .map(|t| if t < n_first { ratio } else { 1.0 })
                .collect(),
        }
    }

    fn check(self) -> Result<()> {
        let positive = "a finite number above 0";
        let (middle, width) = match self {
            Self::Uniform => return Ok(()),
            Self::LogNormal { mean, std } => (mean, ("std", std)),
            Self::Laplace { mean, scale } => (mean, ("scale", scale)),
            Self::Speed { ratio, .. } => (0.0, ("ratio", ratio)),
        };
        for (name, value, is_allowed, expected) in [
            ("mean", middle, middle.is_finite(), "a finite number"),
            (
                width.0,
                width.1,
                width.1 > 0.0 && width.1.is_finite(),
                positive,
            ),
        ] {
            if !is_allowed {
                return Err(Error::Constant {
                    name,
                    value,
                    expected,
                });
            }
        }
        Ok(())
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
        density.check()?;
        let shares = density.shares(schedule);
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
