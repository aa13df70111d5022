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
        self.combine_tiles(&partial, moments, cpu);
    }

    /// Combines means and spreads of an image's tiles, in f64 (Chan et al. 1979).
    fn combine_tiles(&self, tiles: &[f32], moments: &mut [f32], cpu: Cpu) {
        let n = self.n_positions as f64;
        let [channel_means, channel_spreads] = self.channel_moments(tiles, cpu);
        let per_group = self.c() / self.n_groups;
        let (means, rstds) = moments.split_at_mut(self.c());
        let spreads = channel_spreads.chunks_exact(per_group);
        for (group, (channels, spreads)) in channel_means
            .chunks_exact(per_group)
            .zip(spreads)
            .enumerate()
        {
            let mean = channels.iter().sum::<f64>() / per_group as f64;
            let channels = channels.iter().zip(spreads);
            let spread: f64 = channels
                .map(|(channel_mean, spread)| spread + n * (channel_mean - mean).powi(2))
                .sum();
            let variance = (spread / (n * per_group as f64)).max(0.0);
            means[group * per_group..][..per_group].fill(mean as f32);
            rstds[group * per_group..][..per_group].fill((1.0 / (variance + EPS).sqrt()) as f32);
        }
    }
    /// Per channel the mean of all tiles, and the sum of squares about it.
    ///
    /// Tiles are the outer loop: a large image has thousands, whose numbers lie apart.
    fn channel_moments(&self, tiles: &[f32], cpu: Cpu) -> [Vec<f64>; 2] {
        let (c, per_tile) = (self.c(), self.tile_positions());
        let n_in_tile = |tile: usize| per_tile.min(self.n_positions - tile * per_tile) as f64;
        let tiles = || tiles.chunks_exact(2 * c).enumerate();
        let (mut means, mut spreads) = (vec![0.0; c], vec![0.0; c]);
        cpu.isa.vectorize(
            #[inline(always)]
            |_| {
                for (i, tile) in tiles() {
                    let share = n_in_tile(i) / self.n_positions as f64;
                    for (mean, of_tile) in means.iter_mut().zip(tile) {
                        *mean += f64::from(*of_tile) * share;
                    }
                }
                for (i, tile) in tiles() {
                    let n = n_in_tile(i);
                    let of_tile = tile[..c].iter().zip(&tile[c..]);
                    for ((spread, mean), (tile_mean, tile_spread)) in
                        spreads.iter_mut().zip(&means).zip(of_tile)
                    {
                        let distance = f64::from(*tile_mean) - mean;
                        *spread += f64::from(*tile_spread) + n * (distance * distance);
                    }
                }
            },
        );
        [means, spreads]
    }
}
