//! Mean and deviation of an image's groups.

use super::GroupNorm;
use crate::cpu::{Cpu, Shared};

/// Added to the variance.
const EPS: f64 = 1e-5;

impl GroupNorm {
    /// Mean and reciprocal deviation of an image, `[2, C]`, the same for all channels of a group.
    pub(super) fn image_moments(&self, x: &[f32], moments: &mut [f32], cpu: Cpu) {
        let mut partial = vec![0.0; self.n_tiles() * 2 * self.c];
        let shared = Shared::new(&mut partial);
        self.for_each_tile(cpu, |tile| {
            // Differences from one of the tile's positions, then squares about the tile's mean: no
            // digits are lost to a mean that is large against the deviation.
            let sums_start = tile.start / self.tile_len() * 2 * self.c;
            // SAFETY: each tile has its own sums.
            let sums = unsafe { shared.tile(sums_start, 2 * self.c) };
            let (mean, spread) = sums.split_at_mut(self.c);
            let x = &x[tile];
            let reciprocal = 1.0 / (x.len() / self.c) as f32;
            cpu.isa.vectorize(
                #[inline(always)]
                || {
                    let origin = &x[..self.c];
                    for x in x.chunks_exact(self.c) {
                        for ((mean, x), origin) in mean.iter_mut().zip(x).zip(origin) {
                            *mean += x - origin;
                        }
                    }
                    for c in 0..self.c {
                        mean[c] = origin[c] + mean[c] * reciprocal;
                    }
                    for x in x.chunks_exact(self.c) {
                        for ((spread, x), mean) in spread.iter_mut().zip(x).zip(mean.iter()) {
                            let difference = x - mean;
                            *spread += difference * difference;
                        }
                    }
                },
            );
        });
        self.combine_tiles(&partial, moments);
    }

    /// Combines means and spreads of an image's tiles, in f64 (Chan et al. 1979).
    fn combine_tiles(&self, tiles: &[f32], moments: &mut [f32]) {
        let n = self.n_positions as f64;
        let per_tile = self.tile_positions();
        let n_in_tile = |tile: usize| per_tile.min(self.n_positions - tile * per_tile) as f64;
        let mut mean_and_spread = vec![(0.0, 0.0); self.c]; // per channel: mean, sum of squares about it
        for (c, (mean, spread)) in mean_and_spread.iter_mut().enumerate() {
            let tiles = || tiles.chunks_exact(2 * self.c).enumerate();
            for (i, tile) in tiles() {
                *mean += f64::from(tile[c]) * n_in_tile(i) / n;
            }
            for (i, tile) in tiles() {
                *spread += f64::from(tile[self.c + c])
                    + n_in_tile(i) * (f64::from(tile[c]) - *mean).powi(2);
            }
        }
        let per_group = self.c / self.n_groups;
        let (means, rstds) = moments.split_at_mut(self.c);
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
