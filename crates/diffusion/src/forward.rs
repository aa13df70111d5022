//! From a clean image to a noised one.

use candle_core::Tensor;

use crate::per_image::{self, Term};
use crate::{NoiseSchedule, Result};

/// What clean images and noise are multiplied by, one number per image, cast to f32 once.
///
/// For fused operations that take slices; [`NoiseSchedule::add_noise`] is the same in plain operations.
#[derive(Debug, Clone, PartialEq)]
pub struct MixingCoefficients {
    /// `sqrt(alpha_bar[t])`, the factor of x0; `[N]`.
    pub sqrt_alpha_bar: Vec<f32>,
    /// `sqrt(1 - alpha_bar[t])`, the factor of eps; `[N]`.
    pub sqrt_one_minus_alpha_bar: Vec<f32>,
}

impl NoiseSchedule {
    /// Mixes clean images with noise: draws `x_t` from q(x_t given x_0).
    ///
    /// `x_t = sqrt(alpha_bar[t]) x0 + sqrt(1 - alpha_bar[t]) eps`
    ///
    /// The caller draws `eps`, so that a resumed run sees the same noise.
    ///
    /// # Shapes and units
    /// - `x0`: `[N, H, W, C]` (or `[N, ..]` of any rank), pixels in `[-1, 1]`
    /// - `eps`: like `x0`, standard normal
    /// - `t`: `[N]`, below `n_timesteps`; 0 is the least noisy level
    /// - returns: like `x0`; variance 1 if the data has variance 1
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if `eps` is not shaped like `x0` or `t` is not `[N]`;
    /// [`Error::Timestep`](crate::Error::Timestep) with the first offending image if some `t` is too large.
    ///
    /// # Source
    /// Ho et al. 2020, arXiv 2006.11239, eq. 4. Golden: `tests/all/goldens.rs`.
    ///
    /// # Example
    /// ```
    /// # use candle_core::{Device, Tensor};
    /// # use p2_diffusion::NoiseSchedule;
    /// let points = Tensor::new(&[[1f32, -1.0], [0.5, 0.0]], &Device::Cpu)?; // [2 points, x and y]
    /// let eps = Tensor::new(&[[0f32, 0.3], [-1.2, 0.7]], &Device::Cpu)?;
    /// let x_t = NoiseSchedule::linear(1000)?.add_noise(&points, &eps, &[0, 999])?;
    /// assert!((x_t.to_vec2::<f32>()?[0][0] - 0.9999f32.sqrt()).abs() < 1e-6);
    /// # Ok::<(), p2_diffusion::Error>(())
    /// ```
    pub fn add_noise(&self, x0: &Tensor, eps: &Tensor, t: &[u32]) -> Result<Tensor> {
        per_image::check_shape("eps", eps, x0)?;
        self.check_images(x0, t)?;
        per_image::sum(
            Term {
                tensor: x0,
                factor: self.sqrt_alpha_bar_at(t),
            },
            Term {
                tensor: eps,
                factor: self.sqrt_one_minus_alpha_bar_at(t),
            },
        )
    }

    /// The factors of [`Self::add_noise`], one pair per image.
    ///
    /// # Errors
    /// [`Error::Timestep`](crate::Error::Timestep) with the first offending image if some `t` is too large.
    pub fn mixing_coefficients(&self, t: &[u32]) -> Result<MixingCoefficients> {
        self.check_timesteps(t, t.len())?;
        let cast = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok(MixingCoefficients {
            sqrt_alpha_bar: cast(self.sqrt_alpha_bar_at(t)),
            sqrt_one_minus_alpha_bar: cast(self.sqrt_one_minus_alpha_bar_at(t)),
        })
    }

    /// Refuses timesteps that do not fit the images `[N, ..]`.
    pub(crate) fn check_images(&self, images: &Tensor, t: &[u32]) -> Result<()> {
        let n_images = images.dims().first().copied().unwrap_or(0);
        self.check_timesteps(t, n_images)
    }

    pub(crate) fn sqrt_alpha_bar_at(&self, t: &[u32]) -> Vec<f64> {
        per_image::gather(self.alpha_bar(), t, f64::sqrt)
    }

    pub(crate) fn sqrt_one_minus_alpha_bar_at(&self, t: &[u32]) -> Vec<f64> {
        per_image::gather(self.alpha_bar(), t, |alpha_bar| (1.0 - alpha_bar).sqrt())
    }
}
