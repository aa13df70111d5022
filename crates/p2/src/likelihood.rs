//! The negative log-likelihood of images under a model: bounded term by term, or estimated without a bound.

mod exact;

use std::ops::Range;

use candle_core::{Device, Tensor};
use p2_diffusion::sampler::{AncestralOptions, Clip};
use p2_diffusion::{Denoiser as _, Levels, bound_terms, prior_bpd};
use serde::Serialize;

use crate::data::{Dataset, Split};
use crate::model::{Condition, Model};
use crate::rng::{Draws, Stream};
use crate::train::values;
pub use exact::{Exact, ExactOptions, exact};

/// Which images, at which levels.
#[derive(Debug, Clone)]
pub struct BoundOptions {
    /// Which list of the dataset.
    pub split: Split,
    /// The levels of the bound.
    pub levels: Levels,
    /// Images computed at once; changes no result.
    pub batch_size: usize,
    /// Seed of the noise: each image has its own at each level.
    pub seed: u64,
}

/// Bits per dimension (per number of a pixel) of each image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BitsPerDim(pub Vec<f64>);

impl BitsPerDim {
    /// The mean over images.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// The standard error of [`Self::mean`]: how far another choice of as many images would move it. Not a number for
    /// one image.
    pub fn standard_error(&self) -> f64 {
        let (n, mean) = (self.0.len() as f64, self.mean());
        let squares = self.0.iter().map(|bits| (bits - mean).powi(2));
        (squares.sum::<f64>() / (n - 1.0) / n).sqrt()
    }
}

/// A bound, and what it is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bound {
    /// The bound of each image: the sum of its terms and of `prior_bpd`.
    pub bits_per_dim: BitsPerDim,
    /// Means over images of the part that no model changes.
    pub prior_bpd: f64,
    /// Means over images at each level, the cleanest first.
    pub terms: Vec<LevelTerm>,
}

/// One level's part of a bound, the mean over images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LevelTerm {
    /// Timestep of training.
    pub t: u32,
    /// Its log-SNR.
    pub log_snr: f64,
    /// Bits per dimension.
    pub bits_per_dim: f64,
    /// Squared error on the noise, with guesses clipped to the range of pixels.
    pub mse_eps: f64,
}

/// Bounds the negative log-likelihood of images; they are neither cropped nor mirrored at random.
///
/// `on_batch` is told how many are done.
///
/// # Errors
/// If an image cannot be read, or `on_batch` says so.
///
/// # Source
/// Ho et al. 2020, arXiv 2006.11239, eq. 5; with guesses clipped and fresh noise at each level, as Nichol and Dhariwal
/// 2021, arXiv 2102.09672, report it.
pub fn bound(
    model: &Model,
    dataset: &Dataset,
    images: Range<usize>,
    options: &BoundOptions,
    mut on_batch: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Bound> {
    let (n_images, levels) = (images.len(), &options.levels);
    let mut sums = Sums {
        bits: vec![0.0; levels.n_steps()],
        mse_eps: vec![0.0; levels.n_steps()],
        prior: 0.0,
        per_image: Vec::with_capacity(n_images),
    };
    for first in images.clone().step_by(options.batch_size.max(1)) {
        let batch = first..(first + options.batch_size.max(1)).min(images.end);
        add_batch(model, dataset, batch.clone(), options, &mut sums)?;
        on_batch(batch.end - images.start)?;
    }
    let mean = |sum: f64| sum / n_images as f64;
    let terms = levels
        .timesteps()
        .iter()
        .enumerate()
        .map(|(i, &t)| LevelTerm {
            t,
            log_snr: levels.schedule().log_snr()[i],
            bits_per_dim: mean(sums.bits[i]),
            mse_eps: mean(sums.mse_eps[i]),
        });
    Ok(Bound {
        terms: terms.collect(),
        prior_bpd: mean(sums.prior),
        bits_per_dim: BitsPerDim(sums.per_image),
    })
}

/// Sums over images, added in their order whatever the batch size.
struct Sums {
    /// Per level.
    bits: Vec<f64>,
    mse_eps: Vec<f64>,
    prior: f64,
    per_image: Vec<f64>,
}

impl Sums {
    fn add_prior(&mut self, per_image: &[f64]) {
        // A sum per batch would round by the size of the batch.
        for bits in per_image {
            self.prior += bits;
        }
    }
}

fn add_batch(
    model: &Model,
    dataset: &Dataset,
    images: Range<usize>,
    options: &BoundOptions,
    sums: &mut Sums,
) -> anyhow::Result<()> {
    let n = images.len();
    let (x0, labels) = dataset.images(options.split, images.clone())?; // [N, H, W, 3]
    let prior = values(&prior_bpd(options.levels.schedule(), &x0)?)?;
    let mut totals: Vec<f64> = prior.iter().copied().map(f64::from).collect();
    sums.add_prior(&totals);
    let low_res = model.low_res(&x0)?;
    let denoiser = model.denoiser(Condition {
        labels: &labels,
        low_res: low_res.as_ref(),
    });
    let bound_options = AncestralOptions {
        clip: Clip::Pixels,
        variance: model.variance(),
    };
    for (i, &t) in options.levels.timesteps().iter().enumerate() {
        let mut noise = vec![0.0; x0.elem_count()];
        let n_pixels = noise.len() / n;
        for (index, noise) in images.clone().zip(noise.chunks_exact_mut(n_pixels)) {
            let (index, lane) = (index as u64, u64::from(t));
            Draws::at_lane(options.seed, Stream::Likelihood, index, lane).fill_normal(noise);
        }
        let eps = Tensor::from_vec(noise, x0.shape(), &Device::Cpu)?;
        let schedule = options.levels.schedule();
        let indices = vec![i as u32; n];
        let x_t = schedule.add_noise(&x0, &eps, &indices)?;
        let denoised = denoiser.denoise(&x_t, &vec![f64::from(t); n])?;
        let terms = bound_terms(schedule, (&x0, &x_t), &denoised, &indices, bound_options)?;
        for (total, term) in totals.iter_mut().zip(values(&terms)?) {
            *total += f64::from(term);
            sums.bits[i] += f64::from(term);
        }
        let x0_hat = denoised.x0_hat.clamp(-1.0, 1.0)?;
        let error = (schedule.eps_from_x0(&x_t, &x0_hat, &indices)? - eps)?.sqr()?;
        for error in values(&error.flatten_from(1)?.mean(1)?)? {
            sums.mse_eps[i] += f64::from(error);
        }
    }
    sums.per_image.extend(totals);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Priors of real images are too much alike for f64 to round their sums: here is what would show it.
    #[test]
    fn the_sum_of_priors_does_not_depend_on_the_batch() {
        let priors = [1.0, 1e16, 1.0, 1.0, -1e16, 3.0];
        let in_batches = |size: usize| {
            let mut sums = Sums {
                bits: Vec::new(),
                mse_eps: Vec::new(),
                prior: 0.0,
                per_image: Vec::new(),
            };
            for batch in priors.chunks(size) {
                sums.add_prior(batch);
            }
            sums.prior
        };
        for size in 1..=6 {
            assert_eq!(in_batches(size), in_batches(1), "batches of {size}");
        }
    }
}
