//! The noise of a step: levels and noise of each image, by its place in the run.

use std::ops::Range;

use candle_core::{Device, Tensor};
use p2_diffusion::TimestepDensity;
use rayon::prelude::*;

use crate::model::Model;
use crate::rng::{Draws, Stream};

/// Which noise levels are drawn.
pub(super) struct LevelDraws {
    pub(super) density: TimestepDensity,
    /// Images per block in which levels are spread evenly.
    pub(super) strata: u64,
}

impl LevelDraws {
    /// The level of an image of the run.
    ///
    /// Blocks are of images of the run, not of a batch, so that the batch size changes no draw (Kingma et al. 2021,
    /// arXiv 2107.00630, appendix I.1, spreads the levels of a batch).
    fn t(&self, seed: u64, image_idx: u64) -> p2_diffusion::Result<u32> {
        let (block, place) = (image_idx / self.strata, image_idx % self.strata);
        let u = Draws::at(seed, Stream::Timestep, block).uniform();
        self.density
            .timestep((u + place as f64 / self.strata as f64).fract())
    }
}

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
            .map(|image_idx| levels.t(seed, image_idx))
            .collect::<Result<_, _>>()?;
        let eps = normal_images(n, size, |i| {
            Draws::at(seed, Stream::Noise, image_idx + i as u64)
        })?;
        Ok(Self { t, eps })
    }

    /// Adds the noise to as many images, given by their pixels in `[-1, 1]`.
    pub(super) fn add_to(&self, pixels: &[f32], model: &Model) -> anyhow::Result<Images> {
        let x0 = Tensor::from_slice(pixels, self.eps.dims(), &Device::Cpu)?; // [N, H, W, 3]
        let x_t = model.schedule().add_noise(&x0, &self.eps, &self.t)?;
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

#[cfg(test)]
mod tests {
    use p2_diffusion::{Density, NoiseSchedule, TimestepDensity};

    use super::LevelDraws;

    #[test]
    fn a_block_of_images_has_a_level_in_each_stratum() {
        let schedule = NoiseSchedule::linear(1000).unwrap();
        let density = TimestepDensity::new(Density::Uniform, &schedule).unwrap();
        let levels = LevelDraws { density, strata: 8 };
        let mut first_of_blocks = Vec::new();
        for block in 0..50 {
            let mut t: Vec<u32> = (8 * block..8 * block + 8)
                .map(|image_idx| levels.t(1, image_idx).unwrap())
                .collect();
            first_of_blocks.push(t[0]);
            t.sort_unstable();
            let strata: Vec<u32> = t.iter().map(|t| t / 125).collect();
            assert_eq!(strata, [0, 1, 2, 3, 4, 5, 6, 7], "{t:?}");
        }
        // Blocks are drawn apart.
        first_of_blocks.sort_unstable();
        first_of_blocks.dedup();
        assert!(first_of_blocks.len() > 40);
    }
}
