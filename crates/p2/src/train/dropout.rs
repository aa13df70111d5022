//! Dropout masks as a function of (seed, image of the run, layer).

use p2_kernels::Isa;
use p2_nn::unet::{Dropout, DropoutSite};

use crate::rng::{Stream, Trials};

/// The masks of one micro-batch.
#[derive(Debug)]
pub(super) struct RunDropout {
    pub(super) seed: u64,
    /// Place in the run of the micro-batch's first image.
    pub(super) first_image_idx: u64,
    /// Share of activations dropped.
    pub(super) probability: f64,
    /// What draws the masks; it changes no bit of them.
    pub(super) isa: Isa,
}

impl Dropout for RunDropout {
    fn kept(&self) -> f32 {
        (1.0 / (1.0 - self.probability)) as f32
    }

    fn fill(&self, at: DropoutSite, dropped: &mut [u8]) {
        let image_idx = self.first_image_idx + at.image as u64;
        let (layer, first) = (at.layer, at.first as u64);
        Trials::at_lane(
            self.seed,
            Stream::Dropout,
            image_idx,
            layer,
            self.probability,
        )
        .fill(first, dropped, self.isa);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Draws;

    const N_BYTES: usize = 5000;

    fn mask(first_image_idx: u64, image: usize, layer: u64) -> Vec<u8> {
        let dropout = RunDropout {
            seed: 1,
            first_image_idx,
            probability: 0.25,
            isa: Isa::best(),
        };
        let mut dropped = vec![0; N_BYTES];
        for (i, piece) in dropped.chunks_mut(2048).enumerate() {
            let first = i * 8 * 2048;
            dropout.fill(
                DropoutSite {
                    image,
                    layer,
                    first,
                },
                piece,
            );
        }
        dropped
    }

    #[test]
    fn masks_drop_their_share() {
        let n_dropped: u32 = mask(0, 0, 0).iter().map(|byte| byte.count_ones()).sum();
        let share = f64::from(n_dropped) / (8 * N_BYTES) as f64;
        assert!((share - 0.25).abs() < 0.01, "{share} dropped");
    }

    #[test]
    fn masks_depend_on_the_image_of_the_run_and_the_layer_alone() {
        assert_eq!(mask(10, 2, 3), mask(12, 0, 3));
        assert_ne!(mask(10, 2, 3), mask(10, 1, 3));
        assert_ne!(mask(10, 2, 3), mask(10, 2, 4));
    }

    #[test]
    fn an_element_is_dropped_where_its_uniform_draw_is_below_the_probability() {
        let mut draws = Draws::at_lane(1, Stream::Dropout, 12, 3);
        for (byte, dropped) in mask(10, 2, 3).into_iter().enumerate() {
            for bit in 0..8 {
                let expected = draws.uniform() < 0.25;
                assert_eq!(
                    dropped >> bit & 1 == 1,
                    expected,
                    "element {byte} * 8 + {bit}"
                );
            }
        }
    }
}
