//! Schedules as functions of log-SNR, and changes of one.

use crate::constant::{self, Constant};
use crate::{Error, NoiseSchedule, Result};

impl NoiseSchedule {
    /// The schedule whose levels have these falling log-SNRs. The last may be minus infinity, pure noise.
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] without levels; [`Error::Beta`] where the log-SNR does not fall.
    pub fn from_log_snr(log_snr: &[f64]) -> Result<Self> {
        let alpha_bar = log_snr.iter().map(|l| 1.0 / (1.0 + (-l).exp()));
        Self::from_alpha_bars(alpha_bar.collect())
    }

    /// `alpha_bar` falls along a sigmoid of `(start + t (end - start)) / temperature`, scaled to end at 0 and 1.
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] for T = 0; [`Error::Constant`] if `start` is not below `end` or the temperature
    /// is not above 0.
    ///
    /// # Source
    /// Jabri et al. 2022, arXiv 2212.11972, and Chen 2023, arXiv 2301.10972, with start -3, end 3 and
    /// temperature 1 as their choice. Levels lie in the middle of T equal parts, so that none is pure.
    pub fn sigmoid(n_timesteps: usize, [start, end]: [f64; 2], temperature: f64) -> Result<Self> {
        finite_and(start < end, "start", start, "a number below the end")?;
        finite_and(
            temperature > 0.0,
            "temperature",
            temperature,
            "a number above 0",
        )?;
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x / temperature).exp());
        let (low, high) = (sigmoid(start), sigmoid(end));
        let alpha_bar =
            times(n_timesteps).map(|t| (high - sigmoid(start + t * (end - start))) / (high - low));
        Self::from_alpha_bars(alpha_bar.collect())
    }

    /// Noise of standard deviation sigma per unit of data, spaced evenly in `sigma^(1 / rho)`, as a process that
    /// keeps the variance.
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] for T = 0; [`Error::Constant`] unless 0 < sigma_min < sigma_max and rho > 0.
    ///
    /// # Source
    /// Karras et al. 2022, arXiv 2206.00364, eq. 5, with 0.002, 80 and 7 as its choice.
    pub fn karras(n_timesteps: usize, [sigma_min, sigma_max]: [f64; 2], rho: f64) -> Result<Self> {
        finite_and(sigma_min > 0.0, "sigma_min", sigma_min, "a number above 0")?;
        finite_and(
            sigma_max > sigma_min,
            "sigma_max",
            sigma_max,
            "a number above sigma_min",
        )?;
        finite_and(rho > 0.0, "rho", rho, "a number above 0")?;
        let (low, high) = (sigma_min.powf(1.0 / rho), sigma_max.powf(1.0 / rho));
        let last = n_timesteps.saturating_sub(1).max(1) as f64;
        let log_snr = (0..n_timesteps).map(|t| {
            let root = low + t as f64 / last * (high - low);
            -2.0 * rho * root.ln()
        });
        Self::from_log_snr(&log_snr.collect::<Vec<_>>())
    }

    /// Levels at the quantiles of a normal distribution of `ln sigma`: drawn uniformly they are log-normal.
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] for T = 0; [`Error::Constant`] if `std` is not above 0.
    ///
    /// # Source
    /// Karras et al. 2022, table 1, with mean -1.2 and standard deviation 1.2 as its choice.
    pub fn log_normal(n_timesteps: usize, mean: f64, std: f64) -> Result<Self> {
        finite_and(true, "mean", mean, "a finite number")?;
        finite_and(std > 0.0, "std", std, "a number above 0")?;
        let log_snr = times(n_timesteps).map(|t| -2.0 * (mean + std * normal_quantile(t)));
        Self::from_log_snr(&log_snr.collect::<Vec<_>>())
    }

    /// The same levels with another log-SNR: `log_snr + shift`.
    ///
    /// `2 ln(64 / d)` for images of d×d pixels (Hoogeboom et al. 2023, arXiv 2301.11093); `-2 ln s` is the shift s of
    /// Esser et al. 2024, arXiv 2403.03206.
    ///
    /// # Errors
    /// [`Error::Constant`] if the shift is not finite; [`Error::Beta`] if a level is lost to rounding.
    pub fn shifted(&self, shift: f64) -> Result<Self> {
        finite_and(true, "shift", shift, "a finite number")?;
        let shifted: Vec<f64> = self.log_snr().iter().map(|l| l + shift).collect();
        Self::from_log_snr(&shifted)
    }

    /// `sqrt(alpha_bar)` moved and scaled so that the first level stays and the last is pure noise.
    ///
    /// # Errors
    /// [`Error::Beta`] for a single level.
    ///
    /// # Source
    /// Lin et al. 2023, arXiv 2305.08891, algorithm 1. Needs a prediction of x0 or v.
    pub fn with_zero_terminal_snr(&self) -> Result<Self> {
        let roots: Vec<f64> = self.alpha_bar().iter().map(|a| a.sqrt()).collect();
        let (first, last) = match roots.as_slice() {
            [first, .., last] => (*first, *last),
            _ => return Err(Error::Beta { t: 0, beta: 1.0 }),
        };
        let scaled = roots
            .iter()
            .map(|root| ((root - last) * first / (first - last)).powi(2));
        Self::from_alpha_bars(scaled.collect())
    }
}

/// The middles of T equal parts of 0 to 1.
fn times(n_timesteps: usize) -> impl Iterator<Item = f64> {
    (0..n_timesteps).map(move |t| (t as f64 + 0.5) / n_timesteps as f64)
}

fn finite_and(holds: bool, name: &'static str, value: f64, expected: &'static str) -> Result<()> {
    let is_allowed = holds && value.is_finite();
    constant::check([Constant::that(name, value, is_allowed, expected)])
}

/// The number that a standard normal one is below with probability `p`, to the precision of f64 in `p`.
///
/// By halving: the distribution function is `libm`'s complementary error function.
fn normal_quantile(p: f64) -> f64 {
    let below = |x: f64| 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
    let (mut low, mut high) = (-40.0, 40.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if below(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}
