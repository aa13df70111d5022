//! What samplers need of a model: its guess of the clean image.

use candle_core::{Tensor, Var};

use crate::{Error, NoiseSchedule, Prediction, Result, Time, Variance, per_image};

/// A denoiser's view of noised images.
#[derive(Debug, Clone)]
pub struct Denoised {
    /// The guess of the clean images, like `x_t`; not clipped.
    pub x0_hat: Tensor,
    /// With learned variance: where the log-variance lies between the posterior's (-1) and beta's (1), like
    /// `x_t`; not clamped. With [`Variance::Learned`] the log-variance itself.
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

/// A denoiser that also says how its guess moves with what it sees.
pub trait DifferentiableDenoiser: Denoiser {
    /// The guess, and its vector-Jacobian product `v^T dx0_hat / dx_t`, from one pass.
    ///
    /// The product of an image is that with the Jacobian of its own guess: images do not see each other.
    ///
    /// # Shapes and units
    /// - `x_t`, `t`: as for [`Denoiser::denoise`]
    /// - `v` and the product: like `x_t`
    ///
    /// # Errors
    /// [`Error::Shape`] if `v` is not shaped like `x_t`, and as for [`Denoiser::denoise`].
    fn denoise_with_vjp(&self, x_t: &Tensor, t: &[f64], v: &Tensor) -> Result<(Denoised, Tensor)>;
}

/// A denoiser made of candle's operations alone, which candle differentiates.
///
/// Whatever the closure detaches, or computes outside of candle's graph, counts as constant.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use p2_diffusion::{CandleGraph, Denoised, DifferentiableDenoiser, Result};
/// // Believes one half of what it sees.
/// let half = CandleGraph(|x_t: &Tensor, _t: &[f64]| -> Result<Denoised> {
///     Ok(Denoised { x0_hat: x_t.affine(0.5, 0.0)?, variance_mix: None })
/// });
/// let ones = Tensor::ones((1, 2), DType::F64, &Device::Cpu)?;
/// let (_, product) = half.denoise_with_vjp(&ones, &[500.0], &ones)?;
/// assert_eq!(product.to_vec2::<f64>()?, [[0.5, 0.5]]);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct CandleGraph<F>(
    /// The guess of `x_t` at times `t`.
    pub F,
);

impl<F> Denoiser for CandleGraph<F>
where
    F: Fn(&Tensor, &[f64]) -> Result<Denoised>,
{
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        self.0(x_t, t)
    }
}

impl<F> DifferentiableDenoiser for CandleGraph<F>
where
    F: Fn(&Tensor, &[f64]) -> Result<Denoised>,
{
    fn denoise_with_vjp(&self, x_t: &Tensor, t: &[f64], v: &Tensor) -> Result<(Denoised, Tensor)> {
        per_image::check_shape("v", v, x_t)?;
        let x_t = Var::from_tensor(&x_t.detach())?;
        let denoised = self.0(&x_t, t)?;
        per_image::check_shape("x0_hat", &denoised.x0_hat, &x_t)?;
        let gradients = (&denoised.x0_hat * v)?.sum_all()?.backward()?;
        let product = gradients.get(&x_t).ok_or(Error::NoDerivative)?;
        Ok((denoised.detach(), product.clone()))
    }
}

impl Denoised {
    /// The same, cut from the graph of the network: uncut, a run would keep the activations of all its steps.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            x0_hat: self.x0_hat.detach(),
            variance_mix: self.variance_mix.as_ref().map(Tensor::detach),
        }
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
