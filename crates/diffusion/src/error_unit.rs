//! The units in which one and the same error of a denoiser can be stated, and their exchange rates.

use crate::level::softplus;
use crate::{NoiseLevel, Prediction};

/// What the squared error of a denoiser is measured on.
///
/// The error of one guess is a number in any of these units; they differ by a factor per noise level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ErrorUnit {
    /// The noise.
    Eps,
    /// The clean image.
    X0,
    /// `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans and Ho 2022, arXiv 2202.00512).
    V,
    /// The mean of q(x_{t-1} given x_t, x0), the images one timestep less noisy. Only at levels of a schedule.
    XPrev,
    /// The output F of the preconditioned network of Karras et al. 2022, arXiv 2206.00364, eq. 7.
    EdmF {
        /// Standard deviation of the data, above 0.
        sigma_data: f64,
    },
    /// `u = eps - x0` on the path `x_t = (1 - t) x0 + t eps` (Lipman et al. 2023, arXiv 2210.02747).
    FlowVelocity,
}

impl ErrorUnit {
    /// Natural logarithm of the rate in `|eps - eps_hat|^2 = rate |error in this unit|^2`.
    ///
    /// A weight on the eps error times this rate is the weight on the error in this unit that means the same.
    ///
    /// # Source
    /// With S the SNR: S for x0, `S / (1 + S)` for v (Salimans and Ho 2022, section 4), S over the square of
    /// [`NoiseSchedule::posterior_mean_x0`](crate::NoiseSchedule::posterior_mean_x0) for x-prev,
    /// `S sigma_data^2 / (1 + S sigma_data^2)` for F (from `c_out`), `S / (1 + sqrt(S))^2` for u (from
    /// `t = 1 / (1 + sqrt(S))`).
    #[must_use]
    pub fn log_exchange_rate(self, level: NoiseLevel) -> f64 {
        let log_snr = level.bounded_log_snr();
        match self {
            Self::Eps => 0.0,
            Self::X0 => log_snr,
            Self::V => -softplus(-log_snr),
            Self::XPrev => log_snr - 2.0 * level.log_posterior_mean_x0(),
            Self::EdmF { sigma_data } => -softplus(-(log_snr + 2.0 * sigma_data.ln())),
            Self::FlowVelocity => -2.0 * softplus(-0.5 * log_snr),
        }
    }
}

impl From<Prediction> for ErrorUnit {
    fn from(prediction: Prediction) -> Self {
        match prediction {
            Prediction::Eps => Self::Eps,
            Prediction::X0 => Self::X0,
            Prediction::V => Self::V,
            Prediction::XPrev => Self::XPrev,
        }
    }
}
