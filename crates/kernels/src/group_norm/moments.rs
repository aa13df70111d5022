//! Mean and deviation of an image's groups.

use super::GroupNorm;
use super::columns::{Moments, for_all};
use crate::cpu::{Cpu, Shared};

/// Added to the variance.
const EPS: f64 = 1e-5;

impl GroupNorm {
    /// Mean and reciprocal deviation of an image, `[2, C]`, the same for all channels of a group.
    pub(super) fn image_moments(&self, x: [&[f32]; 2], moments: &mut [f32], cpu: Cpu) {
        let c = self.c();
        let mut partial = vec![0.0; self.n_tiles() * 2 * c];
        let shared = Shared::new(&mut partial);
        self.for_each_tile(cpu, |positions| {
            let tile = positions.start / self.tile_positions();
            // SAFETY: each tile has its own sums.
            let sums = unsafe { shared.tile(tile * 2 * c, 2 * c) };
            let (mean, spread) = sums.split_at_mut(c);
            for source in self.sources() {
                let x = &x[source.index][source.elements(&positions)];
                let mean = &mut mean[source.channels.clone()];
                let spread = &mut spread[source.channels];
                cpu.isa.vectorize(
                    #[inline(always)]
                    |mul_add| {
                        let width = mean.len();
                        let mut moments = Moments {
                            x,
                            mean,
                            spread,
                            mul_add,
                        };
                        for_all(width, &mut moments);
                    },
                );
            }
        });
        self.combine_tiles(&partial, moments);
    }

    /// Combines means and spreads of an image's tiles, in f64 (Chan et al. 1979).
    fn combine_tiles(&self, tiles: &[f32], moments: &mut [f32]) {
        let n = self.n_positions as f64;
        let (n_channels, per_tile) = (self.c(), self.tile_positions());
        let n_in_tile = |tile: usize| per_tile.min(self.n_positions - tile * per_tile) as f64;
        let mut mean_and_spread = vec![(0.0, 0.0); n_channels]; // per channel: mean, sum of squares about it
        for (c, (mean, spread)) in mean_and_spread.iter_mut().enumerate() {
            let tiles = || tiles.chunks_exact(2 * n_channels).enumerate();
            for (i, tile) in tiles() {
                *mean += f64::from(tile[c]) * n_in_tile(i) / n;
            }
            for (i, tile) in tiles() {
                *spread += f64::from(tile[n_channels + c])
                    + n_in_tile(i) * (f64::from(tile[c]) - *mean).powi(2);
            }
        }
        let per_group = n_channels / self.n_groups;
        let (means, rstds) = moments.split_at_mut(n_channels);
        for (group, channels) in mean_and_spread.chunks_exact(per_group).enumerate() {
            let mean = channels.iter().map(|(mean, _)| mean).sum::<f64>() / per_group as f64;
            let spread: f64 = channels
                .iter()
                .map(|(channel_mean, spread)| spread + n * (channel_mean - mean).powi(2))
                .sum();
            let variance = (spread / (n * per_group as f64)).max(0.0);
            means[group * per_group..][..per_group].fill(mean as f32);
            rstds[group * per_group..][..per_group].fill((1.0 / (variance + EPS).sqrt()) as f32);
        }
    }
}
