//! One point on the log-SNR axis, the common axis of schedules, weightings and losses.

/// One noise level: the ratio of signal to noise, `snr = alpha_bar / (1 - alpha_bar)`, and where it lies on a
/// schedule, if on any.
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
    dlog_snr_dt: f64,
    previous_log_snr: f64,
    is_first: bool,
}

/// Where limits of weights are read off: logarithms of weights are straight lines there.
const FAR: f64 = 1e6;

impl NoiseLevel {
    /// The level with this natural logarithm of the SNR, on no schedule.
    #[must_use]
    pub fn from_log_snr(log_snr: f64) -> Self {
        Self::on_schedule(log_snr, f64::NAN, f64::NAN)
    }

    /// A level of a schedule: how fast the log-SNR changes there, with t from 0 to 1, and the log-SNR of the
    /// next less noisy level.
    #[must_use]
    pub fn on_schedule(log_snr: f64, dlog_snr_dt: f64, previous_log_snr: f64) -> Self {
        Self {
            log_snr,
            dlog_snr_dt,
            previous_log_snr,
            is_first: false,
        }
    }

    /// The same level as the first of a schedule: the step from it leads to the clean image.
    pub(crate) fn as_first(self) -> Self {
        Self {
            is_first: true,
            ..self
        }
    }

    /// Natural logarithm of the SNR.
    #[must_use]
    pub fn log_snr(self) -> f64 {
        self.log_snr
    }

    /// Slope of the log-SNR over t from 0 to 1, negative; not a number off a schedule.
    #[must_use]
    pub fn dlog_snr_dt(self) -> f64 {
        self.dlog_snr_dt
    }

    /// Log-SNR of the next less noisy level; not a number off a schedule.
    #[must_use]
    pub fn previous_log_snr(self) -> f64 {
        self.previous_log_snr
    }

    /// Natural logarithm of the factor of x0 in the mean of q(x_{t-1} given x_t, x0); not a number off a schedule.
    ///
    /// With S the SNR and S' that of the next less noisy level the factor is `(1 - S / S') sqrt(S' / (1 + S'))`. At
    /// the first level of a schedule it is 1.
    pub(crate) fn log_posterior_mean_x0(self) -> f64 {
        if self.is_first {
            return 0.0;
        }
        let (here, before) = (self.bounded_log_snr(), self.previous_log_snr);
        (-(here - before).exp_m1()).ln() - 0.5 * softplus(-before)
    }

    /// The log-SNR, with a large number in place of infinity, so that differences of it are numbers.
    pub(crate) fn bounded_log_snr(self) -> f64 {
        self.log_snr.clamp(-FAR, FAR)
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

/// `ln(1 + e^x)`.
pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `ln(e^a + e^b)`; either may be minus infinity.
pub(crate) fn log_add_exp(a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    if low == f64::NEG_INFINITY {
        high
    } else {
        high + (low - high).exp().ln_1p()
    }
}
