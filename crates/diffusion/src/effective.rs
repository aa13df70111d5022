//! The objective that a weighting and a density of noise levels make together.

use std::ops::Range;

use crate::{Error, NoiseLevel, NoiseSchedule, Result, Stage, TimestepDensity};

/// `p(log_snr) weight_eps(log_snr)`: how much each noise level counts in what is minimized.
///
/// The product alone decides the objective; how it is split into drawing a level more often and weighing it more
/// only decides the noise of gradients.
///
/// # Source
/// Kingma and Gao 2023, arXiv 2303.00848, section 3.
///
/// # Example
/// ```
/// # use p2_diffusion::{Density, EffectiveObjective, NoiseSchedule, TimestepDensity, Weighting};
/// let schedule = NoiseSchedule::cosine(1000)?;
/// let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
/// let density = TimestepDensity::new(Density::Uniform, &schedule)?;
/// let objective = EffectiveObjective::new(&schedule, &density, |level| p2.weight_eps(level))?;
/// assert!((objective.peak_log_snr() + 3.0_f64.ln()).abs() < 0.01);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveObjective {
    log_snr: Vec<f64>,
    mass: Vec<f64>,
    density: Vec<f64>,
    mean_weight: f64,
    stages: [Range<u32>; 3],
}

impl EffectiveObjective {
    /// The objective of levels drawn from `density` whose eps error is weighed by `weight_eps`.
    ///
    /// A level of pure noise has no share in it.
    ///
    /// # Errors
    /// [`Error::Shape`] if the density is one of another number of timesteps; [`Error::NoObjective`] if the weights are
    /// not finite or all 0.
    pub fn new(
        schedule: &NoiseSchedule,
        density: &TimestepDensity,
        weight_eps: impl Fn(NoiseLevel) -> f64,
    ) -> Result<Self> {
        let probability = density.probability();
        if probability.len() != schedule.n_timesteps() {
            return Err(Error::Shape {
                name: "density",
                shape: vec![probability.len()],
                expected: vec![schedule.n_timesteps()],
            });
        }
        let levels = || schedule.noise_levels();
        let products: Vec<f64> = levels()
            .zip(probability)
            .map(|(level, p)| match level.log_snr() {
                // Pure noise has no eps error, so that its weight may be anything, infinity included.
                f64::NEG_INFINITY => 0.0,
                _ => p * weight_eps(level),
            })
            .collect();
        let mean_weight: f64 = products.iter().sum();
        if !(mean_weight > 0.0 && mean_weight.is_finite()) {
            return Err(Error::NoObjective { mean_weight });
        }
        let mass: Vec<f64> = products.iter().map(|p| p / mean_weight).collect();
        let n_timesteps = schedule.n_timesteps() as f64;
        // A timestep covers 1 / T of t, and so |dlambda/dt| / T of the axis.
        let density = levels()
            .zip(&mass)
            .map(|(level, mass)| mass * n_timesteps / level.dlog_snr_dt().abs())
            .collect();
        Ok(Self {
            log_snr: schedule.log_snr().to_vec(),
            mass,
            density,
            mean_weight,
            stages: Stage::ALL.map(|stage| stage.timesteps(schedule)),
        })
    }

    /// The share of each timestep, `[T]`; they add up to 1.
    #[must_use]
    pub fn mass(&self) -> &[f64] {
        &self.mass
    }

    /// The share per unit of log-SNR at each timestep, `[T]`: an integral of 1 over the levels of the schedule.
    #[must_use]
    pub fn density(&self) -> &[f64] {
        &self.density
    }

    /// The mean weight on the eps error: what replacing L_simple does to the size of the loss, and to the
    /// learning rate where the optimizer does not undo it.
    #[must_use]
    pub fn mean_weight(&self) -> f64 {
        self.mean_weight
    }

    /// The log-SNR that counts most: the top of [`Self::density`].
    #[must_use]
    pub fn peak_log_snr(&self) -> f64 {
        let levels = self.density.iter().zip(&self.log_snr);
        let top = levels.max_by(|a, b| a.0.total_cmp(b.0));
        top.map_or(f64::NAN, |(_, &log_snr)| log_snr)
    }

    /// The log-SNR under which this share of the objective lies, from 0 to 1.
    #[must_use]
    pub fn log_snr_at(&self, share: f64) -> f64 {
        let mut sum = 0.0;
        // The log-SNR falls with t.
        for (mass, &log_snr) in self.mass.iter().zip(&self.log_snr).rev() {
            sum += mass;
            if sum >= share {
                return log_snr;
            }
        }
        self.log_snr.first().copied().unwrap_or(f64::NAN)
    }

    /// The share of a stage.
    #[must_use]
    pub fn share(&self, stage: Stage) -> f64 {
        let stages = Stage::ALL.iter().zip(&self.stages);
        stages
            .filter(|(other, _)| **other == stage)
            .flat_map(|(_, range)| &self.mass[range.start as usize..range.end as usize])
            .sum()
    }
}
