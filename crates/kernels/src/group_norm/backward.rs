//! Gradients of the norm.

use super::{Activation, Gradients, GroupNorm, Inputs};
use crate::cpu::{Cpu, Shared};
use crate::elementwise::silu_slope;

impl GroupNorm {
    /// Computes the gradients, given that of `y` and the moments that the forward pass returned.
    pub fn backward(
        &self,
        inputs: Inputs<'_>,
        moments: &[f32],
        d_y: &[f32],
        gradients: Gradients<'_>,
        cpu: Cpu,
    ) {
        self.check(&inputs);
        let Gradients {
            d_x,
            d_scale,
            d_shift,
        } = gradients;
        let (c, image_len) = (self.c(), self.image_len());
        assert_eq!(d_x.each_ref().map(|d_x| d_x.len()), self.source_lens());
        assert_eq!(
            [d_y.len(), moments.len(), d_scale.len(), d_shift.len()],
            [image_len, 2 * c, c, c].map(|len| self.n * len)
        );
        let shared_x = d_x.map(Shared::new);
        let shared = [d_scale, d_shift].map(Shared::new);
        self.for_each_image(cpu, |image, cpu| {
            let source = |source: usize| {
                let len = self.n_positions * self.channels[source];
                // SAFETY: images are disjoint.
                unsafe { shared_x[source].tile(image * len, len) }
            };
            // SAFETY: images are disjoint.
            let [d_scale, d_shift] = [0, 1].map(|i| unsafe { shared[i].tile(image * c, c) });
            let gradients = Gradients {
                d_x: [source(0), source(1)],
                d_scale,
                d_shift,
            };
            let moments = &moments[image * 2 * c..][..2 * c];
            let d_y = &d_y[image * image_len..][..image_len];
            self.image_backward(self.image(&inputs, image), moments, d_y, gradients, cpu);
        });
    }

    fn image_backward(
        &self,
        inputs: Inputs<'_>,
        moments: &[f32],
        d_y: &[f32],
        gradients: Gradients<'_>,
        cpu: Cpu,
    ) {
        let Gradients {
            d_x,
            d_scale,
            d_shift,
        } = gradients;
        let shared = d_x.map(Shared::new);
        let partial = self.backward_sums(&inputs, moments, d_y, &shared, cpu);
        self.sum_tiles(&partial, d_scale, d_shift);
        let line = self.backward_line(&inputs, moments, d_scale, d_shift);
        let (slope, rest) = line.split_at(self.c());
        let (along, offset) = rest.split_at(self.c());
        self.for_each_tile(cpu, |positions| {
            for source in self.sources() {
                let elements = source.elements(&positions);
                // SAFETY: tiles are disjoint, and so are sources.
                let d_x = unsafe { shared[source.index].tile(elements.start, elements.len()) };
                let x = &inputs.x[source.index][elements];
                let width = source.channels.len();
                let [slope, along, offset, mean] =
                    [slope, along, offset, moments].map(|line| &line[source.channels.clone()]);
                cpu.isa.vectorize(
                    #[inline(always)]
                    || {
                        for (d_x, x) in d_x.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                            let line = slope.iter().zip(along).zip(offset).zip(mean);
                            let row = d_x.iter_mut().zip(x).zip(line);
                            for ((d_x, x), (((slope, along), offset), mean)) in row {
                                *d_x = slope * *d_x + (along * (x - mean) + offset);
                            }
                        }
                    },
                );
            }
        });
    }

    /// What turns the gradient before the activation into that of the input, `[3, C]`.
    ///
    /// `d_x = rstd (scale d_u - mean(scale d_u) - xhat mean(scale d_u xhat))`, means over a group,
    /// is written as `slope * d_u + along * (x - mean) + offset`.
    fn backward_line(
        &self,
        inputs: &Inputs<'_>,
        moments: &[f32],
        d_scale: &[f32],
        d_shift: &[f32],
    ) -> Vec<f32> {
        let n_channels = self.c();
        let per_group = n_channels / self.n_groups;
        let count = (per_group * self.n_positions) as f64;
        let mut line = vec![0.0; 3 * n_channels];
        for group in 0..self.n_groups {
            let channels = group * per_group..(group + 1) * per_group;
            let (mut sum, mut sum_xhat) = (0.0, 0.0);
            for c in channels.clone() {
                sum += f64::from(inputs.scale[c]) * f64::from(d_shift[c]);
                sum_xhat += f64::from(inputs.scale[c]) * f64::from(d_scale[c]);
            }
            for c in channels {
                let rstd = f64::from(moments[n_channels + c]);
                line[c] = (rstd * f64::from(inputs.scale[c])) as f32;
                line[n_channels + c] = (-rstd * rstd * sum_xhat / count) as f32;
                line[2 * n_channels + c] = (-rstd * sum / count) as f32;
            }
        }
        line
    }

    /// Writes the gradient before the activation into `d_u`, source by source, and returns, per
    /// tile, its sums and its sums times the normalized input, `[n_tiles, 2, C]`.
    fn backward_sums(
        &self,
        inputs: &Inputs<'_>,
        moments: &[f32],
        d_y: &[f32],
        d_u: &[Shared<'_>; 2],
        cpu: Cpu,
    ) -> Vec<f32> {
        let c = self.c();
        let slope = self.slopes(inputs, moments);
        let (mean, rstd) = moments.split_at(c);
        let mut partial = vec![0.0; self.n_tiles() * 2 * c];
        let shared_partial = Shared::new(&mut partial);
        self.for_each_tile(cpu, |positions| {
            let tile = positions.start / self.tile_positions();
            // SAFETY: each tile has its own sums.
            let sums = unsafe { shared_partial.tile(tile * 2 * c, 2 * c) };
            let (sum, sum_xhat) = sums.split_at_mut(c);
            let d_y = &d_y[positions.start * c..positions.end * c];
            for source in self.sources() {
                let elements = source.elements(&positions);
                // SAFETY: tiles are disjoint, and so are sources.
                let d_u = unsafe { d_u[source.index].tile(elements.start, elements.len()) };
                let channels = source.channels;
                let lines = [mean, rstd, &slope, inputs.shift];
                let part = Part {
                    x: &inputs.x[source.index][elements],
                    d_y: d_y.chunks_exact(c).map(|row| &row[channels.clone()]),
                    lines: lines.map(|line| &line[channels.clone()]),
                };
                let sums = [&mut *sum, &mut *sum_xhat].map(|sum| &mut sum[channels.clone()]);
                cpu.isa.vectorize(
                    #[inline(always)]
                    || part.sums(self.activation, d_u, sums),
                );
            }
        });
        partial
    }

    /// Adds the tiles of an image in order, in f64.
    fn sum_tiles(&self, partial: &[f32], d_scale: &mut [f32], d_shift: &mut [f32]) {
        let n_channels = self.c();
        for c in 0..n_channels {
            let sum = |offset: usize| -> f64 {
                let tiles = partial.chunks_exact(2 * n_channels);
                tiles.map(|tile| f64::from(tile[offset + c])).sum()
            };
            (d_shift[c], d_scale[c]) = (sum(0) as f32, sum(n_channels) as f32);
        }
    }
}

/// A tile of one source: what [`GroupNorm::backward_sums`] reads.
struct Part<'a, Rows> {
    /// `[positions, width]`.
    x: &'a [f32],
    /// As many rows of `width`.
    d_y: Rows,
    /// Mean, reciprocal deviation, slope and shift, `width` each.
    lines: [&'a [f32]; 4],
}

impl<'a, Rows: Iterator<Item = &'a [f32]>> Part<'a, Rows> {
    /// Writes `d_u`, `[positions, width]`, and adds to its sums and those times the normalized input.
    #[inline(always)]
    fn sums(self, activation: Activation, d_u: &mut [f32], [sum, sum_xhat]: [&mut [f32]; 2]) {
        let [mean, rstd, slope, shift] = self.lines;
        let width = mean.len();
        let rows = self.x.chunks_exact(width).zip(self.d_y);
        for (d_u, (x, d_y)) in d_u.chunks_exact_mut(width).zip(rows) {
            match activation {
                Activation::Identity => d_u.copy_from_slice(d_y),
                Activation::Silu => {
                    let line = mean.iter().zip(slope).zip(shift);
                    let row = d_u.iter_mut().zip(d_y).zip(x).zip(line);
                    for (((d_u, d_y), x), ((mean, slope), shift)) in row {
                        *d_u = d_y * silu_slope((x - mean) * slope + shift);
                    }
                }
            }
            let sums = sum.iter_mut().zip(sum_xhat.iter_mut());
            let row = d_u.iter().zip(x).zip(mean.iter().zip(rstd));
            for ((sum, sum_xhat), ((d_u, x), (mean, rstd))) in sums.zip(row) {
                *sum += d_u;
                *sum_xhat += d_u * ((x - mean) * rstd);
            }
        }
    }
}
