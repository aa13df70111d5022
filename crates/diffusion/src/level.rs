//! One point on the log-SNR axis, the common axis of schedules, weightings and losses.

/// One noise level: the ratio of signal to noise, `snr = alpha_bar / (1 - alpha_bar)`.
///
/// All numbers are f64; an SNR of 0 (pure noise) is a level, with a log-SNR of minus infinity.
///
/// # Example
/// ```
/// # use p2_diffusion::NoiseLevel;
/// let level = NoiseLevel::from_log_snr(0.0); // as much signal as noise
/// assert_eq!((level.snr(), level.alpha_bar()), (1.0, 0.5));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct NoiseLevel {
    log_snr: f64,
}

impl NoiseLevel {
    /// The level with this natural logarithm of the SNR.
    #[must_use]
    pub fn from_log_snr(log_snr: f64) -> Self {
        Self { log_snr }
    }

    /// Natural logarithm of the SNR.
    #[must_use]
    pub fn log_snr(self) -> f64 {
        self.log_snr
    }

    /// `alpha_bar / (1 - alpha_bar)`, from 0 (pure noise) upwards.
    #[must_use]
    pub fn snr(self) -> f64 {
        self.log_snr.exp()
    }

    /// Share of the signal in the variance of x_t, `snr / (1 + snr)`.
    #[must_use]
    pub fn alpha_bar(self) -> f64 {
        1.0 / (1.0 + (-self.log_snr).exp())
    }

    /// Share of the noise in the variance of x_t, `1 - alpha_bar` without cancellation.
    #[must_use]
    pub fn one_minus_alpha_bar(self) -> f64 {
        1.0 / (1.0 + self.log_snr.exp())
    }
}
