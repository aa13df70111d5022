//! Which image comes when: the k-th of a run is the k-th of a new permutation each epoch.

use anyhow::{Result, ensure};

use crate::rng::{Draws, Stream};

/// The order in which a run sees its images.
#[derive(Debug, Clone)]
pub(super) struct Order {
    seed: u64,
    n_images: usize,
    epoch: u64,
    permutation: Vec<u32>,
}

impl Order {
    /// The order of `n_images` images under a seed.
    ///
    /// # Errors
    /// If there is no image, or more than `u32` can count.
    pub(super) fn new(seed: u64, n_images: usize) -> Result<Self> {
        ensure!(n_images > 0, "cannot order 0 images");
        ensure!(
            u32::try_from(n_images).is_ok(),
            "cannot order {n_images} images: too many"
        );
        let permutation = Draws::at(seed, Stream::Shuffle, 0).permutation(n_images);
        Ok(Self {
            seed,
            n_images,
            epoch: 0,
            permutation,
        })
    }

    /// Index, in the list of training images, of the image at place `image_idx` of the run.
    ///
    /// It remembers the epoch of the last call, so that calls in a row are cheap.
    pub(super) fn index_at(&mut self, image_idx: u64) -> usize {
        let epoch = image_idx / self.n_images as u64;
        if epoch != self.epoch {
            let mut draws = Draws::at(self.seed, Stream::Shuffle, epoch);
            self.permutation = draws.permutation(self.n_images);
            self.epoch = epoch;
        }
        self.permutation[(image_idx % self.n_images as u64) as usize] as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_shows_every_image_once_in_another_order() {
        let mut order = Order::new(5, 50).unwrap();
        let mut epochs: Vec<Vec<usize>> = (0..4)
            .map(|epoch| (0..50).map(|k| order.index_at(50 * epoch + k)).collect())
            .collect();
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(epochs[1], epochs[2]);
        for epoch in &mut epochs {
            epoch.sort_unstable();
            assert_eq!(*epoch, (0..50).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_order_depends_on_seed_and_place_alone() {
        let mut order = Order::new(5, 50).unwrap();
        let forward: Vec<usize> = (0..200).map(|k| order.index_at(k)).collect();
        let backward: Vec<usize> = (0..200).rev().map(|k| order.index_at(k)).collect();
        assert!(forward.iter().eq(backward.iter().rev()));
        let mut other = Order::new(6, 50).unwrap();
        assert_ne!(
            forward,
            (0..200).map(|k| other.index_at(k)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn no_images_have_no_order() {
        assert_eq!(
            Order::new(0, 0).unwrap_err().to_string(),
            "cannot order 0 images"
        );
    }
}
