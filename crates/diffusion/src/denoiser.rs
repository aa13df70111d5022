//! What samplers need of a model: its guess of the clean image.

use candle_core::Tensor;

use crate::{NoiseSchedule, Prediction, Result, Time, Variance};

/// A denoiser's view of noised images.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// The guess of the clean images, like `x_t`; not clipped.
    pub x0_hat: Tensor,
    /// With learned variance: where the log-variance lies between the posterior's (-1) and beta's (1), like
    /// `x_t`; not clamped.
    pub variance_mix: Option<Tensor>,
}

/// A model as samplers see it: noised images in, guesses of the clean images out.
///
/// Closures `Fn(&Tensor, &[f64]) -> Result<Denoised>` are denoisers; labels and weights are captured.
///
/// # Example
/// ```
/// # use candle_core::Tensor;
/// # use p2_diffusion::{Denoised, Denoiser, Result};
/// // Knows that all images are black.
/// let black = |x_t: &Tensor, _t: &[f64]| -> Result<Denoised> {
///     Ok(Denoised { x0_hat: x_t.affine(0.0, -1.0)?, variance_mix: None })
/// };
/// fn is_denoiser(_: &impl Denoiser) {}
/// is_denoiser(&black);
/// ```
pub trait Denoiser {
    /// Guesses the clean images behind `x_t`.
    ///
    /// # Shapes and units
    /// - `x_t`: `[N, ..]`
    /// - `t`: `[N]`, times of the schedule of training: its timesteps, or between these
    ///
    /// # Errors
    /// Whatever goes wrong inside; [`Error::Caller`](crate::Error::Caller) carries foreign errors.
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised>;
}

impl<F> Denoiser for F
where
    F: Fn(&Tensor, &[f64]) -> Result<Denoised>,
{
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        self(x_t, t)
    }
}

/// What a network returned, and what it means.
#[derive(Debug, Clone, Copy)]
pub struct NetworkOutput<'a> {
    /// `[N, .., C]`, or `[N, .., 2C]` with learned variance.
    pub values: &'a Tensor,
    /// What the (first) C channels are.
    pub prediction: Prediction,
    /// Whether there are C more.
    pub variance: Variance,
}

impl NetworkOutput<'_> {
    /// The images that the output means, given what the network saw.
    ///
    /// # Shapes and units
    /// - `schedule`: of training
    /// - `x_t`: `[N, .., C]`, the network's input
    /// - `t`: `[N]`, times of `schedule`
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::Timestep`](crate::Error::Timestep) or
    /// [`Error::ZeroSnr`](crate::Error::ZeroSnr), as for [`Prediction::x0_hat`].
    pub fn denoised<T: Time>(
        &self,
        schedule: &NoiseSchedule,
        x_t: &Tensor,
        t: &[T],
    ) -> Result<Denoised> {
        let (predicted, variance_mix) = self.variance.split(self.values, x_t)?;
        Ok(Denoised {
            x0_hat: self.prediction.x0_hat(schedule, &predicted, x_t, t)?,
            variance_mix,
        })
    }
}
