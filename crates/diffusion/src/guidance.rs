//! Pushing samples toward a class: away from a worse denoiser, or along a classifier's gradient.

mod classifier;

use std::ops::RangeInclusive;

use candle_core::Tensor;

pub use classifier::{
    ClassGradient, ClassifierGuided, MeanGuidance, condition_mean, condition_score,
};

use crate::per_image::{self, Term};
use crate::{Denoised, Denoiser, DifferentiableDenoiser, NoiseSchedule, Result};

/// A denoiser that goes on from a bad guess through a good one: `bad + scale (good - bad)`.
///
/// With the same model without a class as the bad one it is classifier-free guidance; with a smaller or less trained
/// model it is autoguidance. A scale of 1 is the good one alone.
///
/// # Source
/// Ho and Salimans 2022, arXiv 2207.12598, eq. 6 (its w is `scale - 1`); Karras et al. 2024, arXiv 2406.02507, eq. 4
/// (autoguidance); Kynkäänniemi et al. 2024, arXiv 2404.07724 (intervals).
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor};
/// # use p2_diffusion::{Denoised, Denoiser, Guided, NoiseSchedule, Result};
/// let says = |x0: f64| move |x_t: &Tensor, _t: &[f64]| -> Result<Denoised> {
///     Ok(Denoised { x0_hat: x_t.affine(0.0, x0)?, variance_mix: None })
/// };
/// let schedule = NoiseSchedule::linear(1000)?;
/// let guided = Guided::new(says(0.5), says(0.25), 3.0, &schedule);
/// let guess = guided.denoise(&Tensor::zeros((1, 2), candle_core::DType::F64, &Device::Cpu)?, &[500.0])?;
/// assert_eq!(guess.x0_hat.to_vec2::<f64>()?, [[1.0, 1.0]]);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Guided<G, B> {
    good: G,
    bad: B,
    scale: f64,
    schedule: NoiseSchedule,
    log_snrs: RangeInclusive<f64>,
}

impl<G: Denoiser, B: Denoiser> Guided<G, B> {
    /// Guidance at all noise levels of the schedule of training.
    pub fn new(good: G, bad: B, scale: f64, schedule: &NoiseSchedule) -> Self {
        Self {
            good,
            bad,
            scale,
            schedule: schedule.clone(),
            log_snrs: f64::NEG_INFINITY..=f64::INFINITY,
        }
    }

    /// The same, at log-SNRs in a range only: elsewhere the good guess stands alone.
    #[must_use]
    pub fn within(self, log_snrs: RangeInclusive<f64>) -> Self {
        Self { log_snrs, ..self }
    }
}

impl<G, B> Guided<G, B> {
    /// The scale of each image; `None` if the good guess stands alone for all.
    fn scales(&self, t: &[f64]) -> Result<Option<Vec<f64>>> {
        let alpha_bars = self.schedule.alpha_bars(t, t.len())?;
        let scales: Vec<f64> = alpha_bars
            .iter()
            .map(|alpha_bar| {
                let log_snr = alpha_bar.ln() - (-alpha_bar).ln_1p();
                let is_inside = self.log_snrs.contains(&log_snr);
                if is_inside { self.scale } else { 1.0 }
            })
            .collect();
        let is_alone = scales.iter().all(|&scale| scale == 1.0);
        Ok((!is_alone).then_some(scales))
    }
}

/// `bad + scale (good - bad)`.
fn go_on(good: &Tensor, bad: &Tensor, scales: &[f64]) -> Result<Tensor> {
    per_image::check_shape("x0_hat", bad, good)?;
    per_image::sum(
        Term {
            tensor: good,
            factor: scales.to_vec(),
        },
        Term {
            tensor: bad,
            factor: scales.iter().map(|scale| 1.0 - scale).collect(),
        },
    )
}

impl<G: Denoiser, B: Denoiser> Denoiser for Guided<G, B> {
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        let good = self.good.denoise(x_t, t)?;
        let Some(scales) = self.scales(t)? else {
            return Ok(good);
        };
        let bad = self.bad.denoise(x_t, t)?;
        let x0_hat = go_on(&good.x0_hat, &bad.x0_hat, &scales)?;
        Ok(Denoised { x0_hat, ..good })
    }
}

impl<G, B> DifferentiableDenoiser for Guided<G, B>
where
    G: DifferentiableDenoiser,
    B: DifferentiableDenoiser,
{
    fn denoise_with_vjp(&self, x_t: &Tensor, t: &[f64], v: &Tensor) -> Result<(Denoised, Tensor)> {
        let (good, good_product) = self.good.denoise_with_vjp(x_t, t, v)?;
        let Some(scales) = self.scales(t)? else {
            return Ok((good, good_product));
        };
        let (bad, bad_product) = self.bad.denoise_with_vjp(x_t, t, v)?;
        let x0_hat = go_on(&good.x0_hat, &bad.x0_hat, &scales)?;
        let product = go_on(&good_product, &bad_product, &scales)?;
        Ok((Denoised { x0_hat, ..good }, product))
    }
}
