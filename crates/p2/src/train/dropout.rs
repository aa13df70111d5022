//! Dropout masks as a function of (seed, image of the run, layer).

use p2_nn::unet::{Dropout, DropoutSite};

use crate::rng::{Draws, Stream};

/// The masks of one micro-batch.
#[derive(Debug)]
pub(super) struct RunDropout {
    pub(super) seed: u64,
    /// Place in the run of the micro-batch's first image.
    pub(super) first_image_idx: u64,
    /// Share of activations dropped.
    pub(super) probability: f64,
}

impl Dropout for RunDropout {
    fn fill(&self, at: DropoutSite, mask: &mut [f32]) {
        let image_idx = self.first_image_idx + at.image as u64;
        let mut draws = Draws::at_lane(self.seed, Stream::Dropout, image_idx, at.layer);
        let kept = (1.0 / (1.0 - self.probability)) as f32;
        for value in mask {
            *value = if draws.uniform() < self.probability {
                0.0
            } else {
                kept
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(first_image_idx: u64, image: usize, layer: u64) -> Vec<f32> {
        let dropout = RunDropout {
            seed: 1,
            first_image_idx,
            probability: 0.25,
        };
        let mut mask = vec![f32::NAN; 40_000];
        dropout.fill(DropoutSite { image, layer }, &mut mask);
        mask
    }

    #[test]
    fn masks_drop_their_share_and_keep_the_mean() {
        let mask = mask(0, 0, 0);
        let n_dropped = mask.iter().filter(|&&value| value == 0.0).count();
        assert!(
            (n_dropped as f64 / 40_000.0 - 0.25).abs() < 0.01,
            "{n_dropped} dropped"
        );
        let mean = mask.iter().sum::<f32>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.015, "mean {mean}");
    }

    #[test]
    fn masks_depend_on_the_image_of_the_run_and_the_layer_alone() {
        assert_eq!(mask(10, 2, 3), mask(12, 0, 3));
        assert_ne!(mask(10, 2, 3), mask(10, 1, 3));
        assert_ne!(mask(10, 2, 3), mask(10, 2, 4));
    }
}
