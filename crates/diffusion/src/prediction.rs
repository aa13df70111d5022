//! What a network predicts: conversions between eps, x0, v and x-prev, and the exchange rates of their errors.

use std::fmt;

use candle_core::Tensor;

use crate::per_image::{self, Term};
use crate::{Error, ErrorUnit, NoiseLevel, NoiseSchedule, Result, Time};

/// What the network predicts.
///
/// For one and the same x_t all say the same, in units that differ by a factor per noise level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prediction {
    /// The noise that was added.
    Eps,
    /// The clean image.
    X0,
    /// `sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans and Ho 2022, arXiv 2202.00512).
    V,
    /// The mean of q(x_{t-1} given x_t, x0), the images one timestep less noisy (Ho et al. 2020, arXiv 2006.11239,
    /// eq. 7): `PREVIOUS_X` of the reference code.
    ///
    /// It is the mean of a step between timesteps of training, and so has no meaning at times between these. The
    /// reference code takes it for the mean of whatever step a sampler makes; here, as for all predictions, it is the
    /// image it means that is clipped and stepped from.
    XPrev,
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eps => "eps",
            Self::X0 => "x0",
            Self::V => "v",
            Self::XPrev => "x-prev",
        })
    }
}

impl Prediction {
    /// Every prediction.
    pub const ALL: [Self; 4] = [Self::Eps, Self::X0, Self::V, Self::XPrev];

    /// What the network should say, like `x0`.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Timestep`] as for [`NoiseSchedule::add_noise`].
    pub fn target(
        self,
        schedule: &NoiseSchedule,
        x0: &Tensor,
        eps: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        per_image::check_shape("eps", eps, x0)?;
        schedule.check_images(x0, t)?;
        match self {
            Self::Eps => Ok(eps.clone()),
            Self::X0 => Ok(x0.clone()),
            Self::V => schedule.v_from_x0(x0, eps, t),
            Self::XPrev => {
                let x_t = schedule.add_noise(x0, eps, t)?;
                schedule.x_prev_from_x0(&x_t, x0, t)
            }
        }
    }

    /// The weight on this prediction's squared error that is a weight of 1 on the eps error.
    ///
    /// `|eps - eps_hat|^2 = rate |target - prediction|^2` with rate 1 for eps, `snr` for x0,
    /// `snr / (1 + snr) = alpha_bar` for v and `snr / posterior_mean_x0^2` for x-prev, which has one only at levels
    /// of a schedule.
    ///
    /// # Source
    /// Salimans and Ho 2022, arXiv 2202.00512, section 4.
    #[must_use]
    pub fn exchange_rate(self, level: NoiseLevel) -> f64 {
        ErrorUnit::from(self).log_exchange_rate(level).exp()
    }

    /// `f` in `x0 - x0_hat = f (output - target)`: the error of the image per error of the prediction.
    ///
    /// Infinite for eps where the SNR is 0.
    pub(crate) fn x0_error_factor(self, level: NoiseLevel) -> f64 {
        match self {
            Self::Eps => (-0.5 * level.log_snr()).exp(), // sqrt(1 - alpha_bar) / sqrt(alpha_bar)
            Self::X0 => -1.0,
            Self::V => level.one_minus_alpha_bar().sqrt(),
            Self::XPrev => -(-level.log_posterior_mean_x0()).exp(),
        }
    }

    /// The image that a prediction means, like `x_t`; not clipped.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Timestep`] as for [`NoiseSchedule::add_noise`];
    /// [`Error::ZeroSnr`] for eps at a level with an SNR of 0; [`Error::BetweenTimesteps`] for x-prev at a time that
    /// is no timestep.
    pub fn x0_hat<T: Time>(
        self,
        schedule: &NoiseSchedule,
        predicted: &Tensor,
        x_t: &Tensor,
        t: &[T],
    ) -> Result<Tensor> {
        match self {
            Self::Eps => schedule.x0_from_eps(x_t, predicted, t),
            Self::X0 => {
                per_image::check_shape("x0_hat", predicted, x_t)?;
                schedule.alpha_bars(t, n_images(x_t))?;
                Ok(predicted.clone())
            }
            Self::V => schedule.x0_from_v(x_t, predicted, t),
            Self::XPrev => schedule.x0_from_x_prev(x_t, predicted, t),
        }
    }
}

/// Conversions, result first. Tensors are `[N, ..]` of one shape, `t` is `[N]`.
///
/// All fail with [`Error::Shape`] or [`Error::Timestep`] as [`NoiseSchedule::add_noise`] does.
impl NoiseSchedule {
    /// `x0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)`.
    ///
    /// # Errors
    /// [`Error::ZeroSnr`] too, where `alpha_bar` is 0.
    pub fn x0_from_eps<T: Time>(&self, x_t: &Tensor, eps: &Tensor, t: &[T]) -> Result<Tensor> {
        per_image::check_shape("eps", eps, x_t)?;
        let alpha_bar = self.alpha_bars(t, n_images(x_t))?;
        if let Some(image_idx) = alpha_bar.iter().position(|&a| a == 0.0) {
            let t: f64 = t[image_idx].into();
            return Err(Error::ZeroSnr { t: t as usize });
        }
        let x_t = Term {
            tensor: x_t,
            factor: alpha_bar.iter().map(|a| (1.0 / a).sqrt()).collect(),
        };
        let eps = Term {
            tensor: eps,
            factor: alpha_bar.iter().map(|a| -((1.0 - a) / a).sqrt()).collect(),
        };
        per_image::sum(x_t, eps)
    }

    /// `eps = (x_t - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)`.
    ///
    /// # Errors
    /// As for all conversions.
    pub fn eps_from_x0<T: Time>(&self, x_t: &Tensor, x0: &Tensor, t: &[T]) -> Result<Tensor> {
        per_image::check_shape("x0", x0, x_t)?;
        let alpha_bar = self.alpha_bars(t, n_images(x_t))?;
        let x_t = Term {
            tensor: x_t,
            factor: alpha_bar.iter().map(|a| (1.0 / (1.0 - a)).sqrt()).collect(),
        };
        let x0 = Term {
            tensor: x0,
            factor: alpha_bar.iter().map(|a| -(a / (1.0 - a)).sqrt()).collect(),
        };
        per_image::sum(x_t, x0)
    }

    /// `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0`.
    ///
    /// # Errors
    /// As for all conversions.
    pub fn v_from_x0<T: Time>(&self, x0: &Tensor, eps: &Tensor, t: &[T]) -> Result<Tensor> {
        per_image::check_shape("eps", eps, x0)?;
        let alpha_bar = self.alpha_bars(t, n_images(x0))?;
        let eps = Term {
            tensor: eps,
            factor: alpha_bar.iter().map(|a| a.sqrt()).collect(),
        };
        let x0 = Term {
            tensor: x0,
            factor: alpha_bar.iter().map(|a| -(1.0 - a).sqrt()).collect(),
        };
        per_image::sum(eps, x0)
    }

    /// `x0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v`.
    ///
    /// # Errors
    /// As for all conversions.
    pub fn x0_from_v<T: Time>(&self, x_t: &Tensor, v: &Tensor, t: &[T]) -> Result<Tensor> {
        per_image::check_shape("v", v, x_t)?;
        // The same rotation as from (eps, x0) to v.
        self.v_from_x0(v, x_t, t)
    }

    /// The mean of q(x_{t-1} given x_t, x0): `posterior_mean_x0 x0 + posterior_mean_x_t x_t`.
    ///
    /// # Errors
    /// As for all conversions.
    pub fn x_prev_from_x0(&self, x_t: &Tensor, x0: &Tensor, t: &[u32]) -> Result<Tensor> {
        per_image::check_shape("x0", x0, x_t)?;
        self.check_images(x_t, t)?;
        let x0 = Term {
            tensor: x0,
            factor: per_image::gather(self.posterior_mean_x0(), t, |factor| factor),
        };
        let x_t = Term {
            tensor: x_t,
            factor: per_image::gather(self.posterior_mean_x_t(), t, |factor| factor),
        };
        per_image::sum(x0, x_t)
    }

    /// `x0 = (x_prev - posterior_mean_x_t x_t) / posterior_mean_x0`.
    ///
    /// # Errors
    /// [`Error::BetweenTimesteps`] too, with the first time that is no timestep, to rounding.
    pub fn x0_from_x_prev<T: Time>(
        &self,
        x_t: &Tensor,
        x_prev: &Tensor,
        t: &[T],
    ) -> Result<Tensor> {
        per_image::check_shape("x_prev", x_prev, x_t)?;
        let t = self.timesteps_at(t, n_images(x_t))?;
        let tables = self
            .posterior_mean_x0()
            .iter()
            .zip(self.posterior_mean_x_t());
        let of_x_t: Vec<f64> = tables.map(|(x0, x_t)| -x_t / x0).collect();
        let x_prev = Term {
            tensor: x_prev,
            factor: per_image::gather(self.posterior_mean_x0(), &t, f64::recip),
        };
        let x_t = Term {
            tensor: x_t,
            factor: per_image::gather(&of_x_t, &t, |factor| factor),
        };
        per_image::sum(x_prev, x_t)
    }
}

fn n_images(x: &Tensor) -> usize {
    x.dims().first().copied().unwrap_or(0)
}
