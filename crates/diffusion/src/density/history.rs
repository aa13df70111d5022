//! The last losses of each timestep, and the density that they ask for.

use super::TimestepDensity;
use crate::weighting::StateTensor;
use crate::{Density, Error, Result};

/// The last losses of each timestep: what [`Density::LossSecondMoment`] draws by.
///
/// # Example
/// ```
/// # use p2_diffusion::{Density, LossHistory};
/// let density = Density::LossSecondMoment { n_history: 2, uniform: 0.001 };
/// let mut history = LossHistory::new(density, 3).ok_or("it remembers nothing")?;
/// history.learn(&[0, 0, 1, 1, 2], &[1.0, 1.0, 3.0, 3.0, 4.0])?;
/// assert_eq!(history.density()?.probability()[0], 1.0 / 3.0); // timestep 2 was seen but once
/// history.learn(&[2], &[4.0])?;
/// assert!((history.density()?.probability()[0] - 0.125).abs() < 0.001); // 1 / (1 + 3 + 4)
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LossHistory {
    n_history: usize,
    uniform: f64,
    n_timesteps: usize,
    /// `[T, n_history]`, the oldest first; those that are missing are not a number.
    losses: Vec<f32>,
}

impl LossHistory {
    /// An empty history of a schedule with T timesteps; `None` for a density that remembers nothing.
    #[must_use]
    pub fn new(density: Density, n_timesteps: usize) -> Option<Self> {
        match density {
            Density::LossSecondMoment { n_history, uniform } => Some(Self {
                n_history,
                uniform,
                n_timesteps,
                losses: vec![f32::NAN; n_timesteps * n_history],
            }),
            _ => None,
        }
    }

    /// Remembers the images of a step, in their order: their timesteps and their losses, `[N]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many losses as timesteps; [`Error::Timestep`] with the first image whose t
    /// is too large.
    pub fn learn(&mut self, t: &[u32], losses: &[f32]) -> Result<()> {
        if t.len() != losses.len() {
            return Err(Error::Shape {
                name: "losses",
                shape: vec![losses.len()],
                expected: vec![t.len()],
            });
        }
        for (image_idx, (&t, &loss)) in t.iter().zip(losses).enumerate() {
            let mut rows = self.losses.chunks_exact_mut(self.n_history);
            let row = rows.nth(t as usize).ok_or_else(|| Error::Timestep {
                image_idx,
                t: t.into(),
                n_timesteps: self.n_timesteps,
            })?;
            row.rotate_left(1);
            if let Some(last) = row.last_mut() {
                *last = loss;
            }
        }
        Ok(())
    }

    /// The density that it asks for: `sqrt(mean of squared losses)`, mixed with a uniform one, and uniform until every
    /// timestep has a full history.
    ///
    /// # Errors
    /// [`Error::NoObjective`] if a loss was not finite.
    pub fn density(&self) -> Result<TimestepDensity> {
        let n_timesteps = self.n_timesteps;
        let is_full = !self.losses.iter().any(|loss| loss.is_nan());
        let roots: Vec<f64> = self
            .losses
            .chunks_exact(self.n_history)
            .map(|losses| {
                let squares = losses.iter().map(|&loss| f64::from(loss).powi(2));
                (squares.sum::<f64>() / self.n_history as f64).sqrt()
            })
            .collect();
        let total: f64 = roots.iter().sum();
        // Without any loss there is nothing to choose by.
        if !is_full || total == 0.0 {
            return TimestepDensity::from_shares(&vec![1.0; n_timesteps]);
        }
        let share = |root| (1.0 - self.uniform) * root / total + self.uniform / n_timesteps as f64;
        let shares: Vec<f64> = roots.into_iter().map(share).collect();
        TimestepDensity::from_shares(&shares)
    }

    /// All that is remembered.
    #[must_use]
    pub fn state(&self) -> Vec<StateTensor> {
        vec![StateTensor {
            name: "losses".into(),
            values: self.losses.clone(),
        }]
    }

    /// Goes on from what [`Self::state`] returned.
    ///
    /// # Errors
    /// [`Error::State`] if it is missing or has another length.
    pub fn restore(&mut self, state: &[StateTensor]) -> Result<()> {
        let losses = StateTensor::find(state, "losses", self.losses.len())?;
        self.losses.copy_from_slice(losses);
        Ok(())
    }
}
