//! Gradients of the norm.

use super::columns::{Backward, Sums, for_all};
use super::{Gradients, GroupNorm, Inputs};
use crate::cpu::{Cpu, Shared};
use crate::element::Element;

impl GroupNorm {
    /// Computes the gradients, given that of `y` and the moments that the forward pass returned.
    pub fn backward<Y: Element>(
        &self,
        inputs: Inputs<'_>,
        moments: &[f32],
        d_y: &[Y],
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

    fn image_backward<Y: Element>(
        &self,
        inputs: Inputs<'_>,
        moments: &[f32],
        d_y: &[Y],
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
        self.sum_tiles(&partial, d_scale, d_shift, cpu);
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
                    |mul_add| {
                        let mut part = Backward {
                            x,
                            lines: [slope, along, offset, mean],
                            d_x,
                            mul_add,
                        };
                        for_all(width, &mut part);
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
    fn backward_sums<Y: Element>(
        &self,
        inputs: &Inputs<'_>,
        moments: &[f32],
        d_y: &[Y],
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
                cpu.isa.vectorize(
                    #[inline(always)]
                    |mul_add| {
                        let mut part = Sums {
                            x: &inputs.x[source.index][elements],
                            d_y,
                            y_width: c,
                            y_first: channels.start,
                            lines: lines.map(|line| &line[channels.clone()]),
                            d_u,
                            sums: [&mut *sum, &mut *sum_xhat].map(|sum| &mut sum[channels.clone()]),
                            activation: self.activation,
                            mul_add,
                        };
                        for_all(channels.len(), &mut part);
                    },
                );
            }
        });
        partial
    }

    /// Adds the tiles of an image in order, in f64.
    fn sum_tiles(&self, partial: &[f32], d_scale: &mut [f32], d_shift: &mut [f32], cpu: Cpu) {
        let mut sums = vec![0.0; 2 * self.c()];
        cpu.isa.vectorize(
            #[inline(always)]
            |_| {
                for tile in partial.chunks_exact(2 * self.c()) {
                    for (sum, of_tile) in sums.iter_mut().zip(tile) {
                        *sum += f64::from(*of_tile);
                    }
                }
            },
        );
        let (of_shift, of_scale) = sums.split_at(self.c());
        for (d, sum) in d_shift.iter_mut().zip(of_shift) {
            *d = *sum as f32;
        }
        for (d, sum) in d_scale.iter_mut().zip(of_scale) {
            *d = *sum as f32;
        }
    }
}
