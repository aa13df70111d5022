//! Between timesteps: noise levels at any time, and the time of any noise level.

use crate::{Error, NoiseSchedule, Result};

/// A timestep, or a time between two: `u32` or `f64`.
pub trait Time: Copy + Into<f64> {}

/// A timestep that was found by its log-SNR is not exactly one.
const ROUNDING: f64 = 1e-6;

impl Time for u32 {}
impl Time for f64 {}

impl NoiseSchedule {
    /// `alpha_bar` at a time from 0 to T - 1: that of the timestep, or between two on a line in log-SNR (before pure
    /// noise in `sqrt(alpha_bar)`). Not a number beyond.
    #[must_use]
    pub fn alpha_bar_at(&self, t: f64) -> f64 {
        let (alpha_bar, log_snr) = (self.alpha_bar(), self.log_snr());
        let (before, share) = (t.floor() as usize, t.fract());
        let in_range = t >= 0.0 && t <= (alpha_bar.len() - 1) as f64;
        if !in_range {
            return f64::NAN;
        }
        if share == 0.0 {
            return alpha_bar[before];
        }
        if alpha_bar[before + 1] == 0.0 {
            return alpha_bar[before] * (1.0 - share).powi(2);
        }
        let log_snr = log_snr[before] + share * (log_snr[before + 1] - log_snr[before]);
        1.0 / (1.0 + (-log_snr).exp())
    }

    /// The time at which the log-SNR is this: the inverse of [`Self::alpha_bar_at`]. The nearest end where the schedule
    /// does not reach so far.
    #[must_use]
    pub fn time_of(&self, log_snr: f64) -> f64 {
        let levels = self.log_snr();
        let last = levels.len() - 1;
        let after = levels.partition_point(|&l| l >= log_snr);
        if after == 0 {
            return 0.0;
        }
        if after > last {
            return last as f64;
        }
        let before = after - 1;
        let share = if levels[after] == f64::NEG_INFINITY {
            let alpha_bar = 1.0 / (1.0 + (-log_snr).exp());
            1.0 - (alpha_bar / self.alpha_bar()[before]).sqrt()
        } else {
            (levels[before] - log_snr) / (levels[before] - levels[after])
        };
        before as f64 + share
    }

    /// The same course of noise in finer steps: `n` levels for each timestep, so that level `n t` is timestep t.
    ///
    /// Training on all of them is training in continuous time, as far as a network can tell.
    ///
    /// # Errors
    /// [`Error::Beta`] if two levels are the same to rounding.
    ///
    /// # Example
    /// ```
    /// # use p2_diffusion::NoiseSchedule;
    /// let cosine = NoiseSchedule::cosine(1000)?;
    /// let fine = cosine.refined(100)?;
    /// assert_eq!(fine.n_timesteps(), 99_901);
    /// assert_eq!(fine.alpha_bar()[50_000], cosine.alpha_bar()[500]);
    /// # Ok::<(), p2_diffusion::Error>(())
    /// ```
    pub fn refined(&self, n: usize) -> Result<Self> {
        if n <= 1 {
            return Ok(self.clone());
        }
        let n_levels = (self.n_timesteps() - 1) * n + 1;
        let times = (0..n_levels).map(|i| i as f64 / n as f64);
        Self::from_alpha_bars(times.map(|t| self.alpha_bar_at(t)).collect())
    }

    /// The timesteps that the times of images are, to rounding: `[N]`.
    pub(crate) fn timesteps_at<T: Time>(&self, t: &[T], n_images: usize) -> Result<Vec<u32>> {
        self.alpha_bars(t, n_images)?;
        let timestep = |&t: &T| {
            let t = t.into();
            let is_one = (t - t.round()).abs() < ROUNDING;
            is_one
                .then_some(t.round() as u32)
                .ok_or(Error::BetweenTimesteps { t })
        };
        t.iter().map(timestep).collect()
    }

    /// `alpha_bar` at the times of images, `[N]`.
    pub(crate) fn alpha_bars<T: Time>(&self, t: &[T], n_images: usize) -> Result<Vec<f64>> {
        if t.len() != n_images {
            return Err(Error::Shape {
                name: "t",
                shape: vec![t.len()],
                expected: vec![n_images],
            });
        }
        let alpha_bars = t.iter().enumerate().map(|(image_idx, &t)| {
            let t = t.into();
            let alpha_bar = self.alpha_bar_at(t);
            if alpha_bar.is_nan() {
                return Err(Error::Timestep {
                    image_idx,
                    t,
                    n_timesteps: self.n_timesteps(),
                });
            }
            Ok(alpha_bar)
        });
        alpha_bars.collect()
    }
}
