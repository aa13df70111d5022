//! What the loss of an image is made of: a weighted error, or the variational bound itself.

use serde::{Deserialize, Serialize};

/// What the loss of an image is made of: one of the four losses of the reference code.
///
/// Its bits are the image's term of the variational bound, in bits per dimension. T is the number of timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossType {
    /// The weighted squared error; a learned variance is trained by the bits: `MSE`, what the reference code takes
    /// without flags (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 16).
    Mse,
    /// The same with T / 1000 times the bits: `RESCALED_MSE`, `--rescale_learned_sigmas True`.
    ///
    /// For T = 1000 that is [`Self::Mse`]; otherwise the bits count as much as in a sum over 1000 levels.
    RescaledMse,
    /// The bits, which train prediction and variance alike: `KL`. No weight applies.
    Kl,
    /// T times the bits, so that the mean over levels is the bound itself: `RESCALED_KL`, `--use_kl True`.
    RescaledKl,
}

impl LossType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Mse, Self::RescaledMse, Self::Kl, Self::RescaledKl];

    /// Whether it is the variational bound, which weighs noise levels itself.
    #[must_use]
    pub fn is_bound(self) -> bool {
        matches!(self, Self::Kl | Self::RescaledKl)
    }

    /// What the bits are multiplied by.
    #[must_use]
    pub fn bits_factor(self, n_timesteps: usize) -> f64 {
        match self {
            Self::Mse | Self::Kl => 1.0,
            Self::RescaledMse => n_timesteps as f64 / 1000.0,
            Self::RescaledKl => n_timesteps as f64,
        }
    }
}
