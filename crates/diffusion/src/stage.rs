//! What a network learns at a noise level: the three stages of Choi et al. 2022.

use std::ops::Range;

use crate::{NoiseLevel, NoiseSchedule};

/// SNR at which clean-up ends and content begins.
const CLEAN_UP_SNR: f64 = 1.0;
/// SNR under which no content is left to recognize.
const CONTENT_SNR: f64 = 1e-2;

/// What is learnt at a noise level.
///
/// # Source
/// Choi et al. 2022, arXiv 2204.00227, section 3.
///
/// # Example
/// ```
/// # use p2_diffusion::{NoiseSchedule, Stage};
/// let schedule = NoiseSchedule::linear(1000)?;
/// assert_eq!(Stage::Content.timesteps(&schedule), 259..674);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// SNR of 1 and more: remaining noise, details that nobody sees.
    CleanUp,
    /// SNR from 1e-2 to 1: what makes an image recognizable.
    Content,
    /// SNR under 1e-2: colors and rough layout.
    Coarse,
}

impl Stage {
    /// All stages, from the least noisy to the noisiest.
    pub const ALL: [Self; 3] = [Self::CleanUp, Self::Content, Self::Coarse];

    /// The stage that a level belongs to.
    #[must_use]
    pub fn of(level: NoiseLevel) -> Self {
        if level.log_snr() >= CLEAN_UP_SNR.ln() {
            Self::CleanUp
        } else if level.log_snr() >= CONTENT_SNR.ln() {
            Self::Content
        } else {
            Self::Coarse
        }
    }

    /// The timesteps of a schedule that belong to this stage; may be empty.
    #[must_use]
    pub fn timesteps(self, schedule: &NoiseSchedule) -> Range<u32> {
        // The SNR falls with t, so each stage is one range.
        let first_under = |snr: f64| {
            let under = schedule.log_snr().partition_point(|&l| l >= snr.ln());
            under as u32
        };
        match self {
            Self::CleanUp => 0..first_under(CLEAN_UP_SNR),
            Self::Content => first_under(CLEAN_UP_SNR)..first_under(CONTENT_SNR),
            Self::Coarse => first_under(CONTENT_SNR)..schedule.n_timesteps() as u32,
        }
    }
}
