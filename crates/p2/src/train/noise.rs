//! The noise of a step: levels and noise of each image, by its place in the run.

use std::ops::Range;

use candle_core::{Device, Tensor};
use p2_diffusion::NoiseSchedule;
use rayon::prelude::*;

use super::levels::LevelDraws;
use crate::rng::{Draws, Stream};

/// Noise levels and noise of some images.
pub(super) struct Noise {
    /// `[N]`.
    pub(super) t: Vec<u32>,
    /// `[N, H, W, 3]`.
    pub(super) eps: Tensor,
}

/// Images before and after noise was added, `[N, H, W, 3]` each.
pub(super) struct Images {
    pub(super) x0: Tensor,
    pub(super) x_t: Tensor,
}

impl Noise {
    /// The noise of the images of the run from the first of `images` on, `size` pixels wide and high.
    pub(super) fn draw(
        seed: u64,
        images: Range<u64>,
        size: usize,
        levels: &LevelDraws,
    ) -> anyhow::Result<Self> {
        let (image_idx, n) = (images.start, (images.end - images.start) as usize);
        let t = images
            .map(|image_idx| levels.t(image_idx))
            .collect::<Result<_, _>>()?;
        let eps = normal_images(n, size, |i| {
            Draws::at(seed, Stream::Noise, image_idx + i as u64)
        })?;
        Ok(Self { t, eps })
    }

    /// Adds the noise to as many images, given by their pixels in `[-1, 1]`.
    pub(super) fn add_to(
        &self,
        pixels: &[f32],
        schedule: &NoiseSchedule,
    ) -> anyhow::Result<Images> {
        let x0 = Tensor::from_slice(pixels, self.eps.dims(), &Device::Cpu)?; // [N, H, W, 3]
        let x_t = schedule.add_noise(&x0, &self.eps, &self.t)?;
        Ok(Images { x0, x_t })
    }
}

/// Images of normal noise, each from draws of its own, on all threads: `[N, H, W, 3]`.
pub(super) fn normal_images(
    n: usize,
    size: usize,
    draws: impl Fn(usize) -> Draws + Sync,
) -> anyhow::Result<Tensor> {
    let n_pixels = size * size * 3;
    let mut values = vec![0.0; n * n_pixels];
    let images = values.par_chunks_exact_mut(n_pixels).enumerate();
    images.for_each(|(i, values)| draws(i).fill_normal(values));
    Ok(Tensor::from_vec(values, (n, size, size, 3), &Device::Cpu)?)
}
