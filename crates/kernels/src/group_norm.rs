//! Group normalization with a scale and a shift per image and channel, and the SiLU after it.
//!
//! `y = act(scale * (x - mean) / sqrt(variance + eps) + shift)`, moments over a group's channels
//! and all positions. The statistics of an image are sums over fixed tiles of its positions.

mod moments;

use crate::cpu::{Cpu, Shared, Threads};
use crate::elementwise::{sigmoid, silu_slope};

/// Elements of one tile of an image: a short sum, so that f32 suffices inside; tiles add up in f64.
const TILE: usize = 1 << 12;

/// Elements of an image that one core's cache holds two or three times over.
const CACHED: usize = 1 << 17;

/// What follows the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x sigmoid(x)`.
    Silu,
}

/// Sizes of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupNorm {
    /// Images.
    pub n: usize,
    /// Positions of an image, H times W.
    pub n_positions: usize,
    /// Channels, a multiple of `n_groups`.
    pub c: usize,
    /// Groups of channels.
    pub n_groups: usize,
    /// What follows.
    pub activation: Activation,
}

/// Inputs of both directions.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[N, H*W, C]`.
    pub x: &'a [f32],
    /// `[N, C]`.
    pub scale: &'a [f32],
    /// `[N, C]`.
    pub shift: &'a [f32],
}

/// The gradients with respect to [`Inputs`], each shaped like its input.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[N, H*W, C]`.
    pub d_x: &'a mut [f32],
    /// `[N, C]`.
    pub d_scale: &'a mut [f32],
    /// `[N, C]`.
    pub d_shift: &'a mut [f32],
}

impl GroupNorm {
    /// Computes `y`, `[N, H*W, C]`, and returns the moments that [`GroupNorm::backward`] needs:
    /// per image and channel its group's mean and reciprocal deviation, `[N, 2, C]`.
    pub fn forward(&self, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) -> Vec<f32> {
        self.check(&inputs);
        assert_eq!(y.len(), inputs.x.len());
        let mut moments = vec![0.0; self.n * 2 * self.c];
        let (shared_y, shared_moments) = (Shared::new(y), Shared::new(&mut moments));
        self.for_each_image(cpu, |image, cpu| {
            // SAFETY: images are disjoint.
            let (y, moments) = unsafe {
                (
                    shared_y.tile(image * self.image_len(), self.image_len()),
                    shared_moments.tile(image * 2 * self.c, 2 * self.c),
                )
            };
            let inputs = self.image(&inputs, image);
            self.image_moments(inputs.x, moments, cpu);
            self.image_forward(inputs, moments, y, cpu);
        });
        moments
    }

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
        assert_eq!((d_y.len(), d_x.len()), (inputs.x.len(), inputs.x.len()));
        assert_eq!(
            (moments.len(), d_scale.len(), d_shift.len()),
            (self.n * 2 * self.c, self.n * self.c, self.n * self.c)
        );
        let shared = [d_x, d_scale, d_shift].map(Shared::new);
        self.for_each_image(cpu, |image, cpu| {
            // SAFETY: images are disjoint.
            let [d_x, d_scale, d_shift] = unsafe {
                [
                    shared[0].tile(image * self.image_len(), self.image_len()),
                    shared[1].tile(image * self.c, self.c),
                    shared[2].tile(image * self.c, self.c),
                ]
            };
            let gradients = Gradients {
                d_x,
                d_scale,
                d_shift,
            };
            let moments = &moments[image * 2 * self.c..][..2 * self.c];
            let d_y = &d_y[image * self.image_len()..][..self.image_len()];
            self.image_backward(self.image(&inputs, image), moments, d_y, gradients, cpu);
        });
    }

    /// Runs `f` for each image, on all threads together or each image on one.
    ///
    /// An image that fits a core's cache is read from memory once by a thread of its own.
    fn for_each_image(&self, cpu: Cpu, f: impl Fn(usize, Cpu) + Sync) {
        if self.image_len() <= CACHED && self.n >= cpu.threads.count() {
            let alone = Cpu {
                threads: Threads::new(1),
                ..cpu
            };
            cpu.threads.for_each(self.n, |image| f(image, alone));
        } else {
            (0..self.n).for_each(|image| f(image, cpu));
        }
    }

    /// The inputs of one image.
    fn image<'a>(&self, inputs: &Inputs<'a>, image: usize) -> Inputs<'a> {
        Inputs {
            x: &inputs.x[image * self.image_len()..][..self.image_len()],
            scale: &inputs.scale[image * self.c..][..self.c],
            shift: &inputs.shift[image * self.c..][..self.c],
        }
    }

    fn image_forward(&self, inputs: Inputs<'_>, moments: &[f32], y: &mut [f32], cpu: Cpu) {
        let mean = &moments[..self.c];
        let slope = self.slopes(&inputs, moments);
        let shared = Shared::new(y);
        self.for_each_tile(cpu, |tile| {
            // SAFETY: tiles are disjoint.
            let y = unsafe { shared.tile(tile.start, tile.len()) };
            let x = &inputs.x[tile];
            let (slope, shift) = (&slope[..self.c], &inputs.shift[..self.c]);
            cpu.isa.vectorize(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(self.c).zip(x.chunks_exact(self.c)) {
                        let line = mean.iter().zip(slope).zip(shift);
                        for ((y, x), ((mean, slope), shift)) in y.iter_mut().zip(x).zip(line) {
                            *y = (x - mean) * slope + shift;
                        }
                        if self.activation == Activation::Silu {
                            for y in y {
                                *y *= sigmoid(*y);
                            }
                        }
                    }
                },
            );
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
        let partial = self.backward_sums(&inputs, moments, d_y, d_x, cpu);
        self.sum_tiles(&partial, d_scale, d_shift);
        let line = self.backward_line(&inputs, moments, d_scale, d_shift);
        let (slope, rest) = line.split_at(self.c);
        let (along, offset) = rest.split_at(self.c);
        let mean = &moments[..self.c];
        let shared = Shared::new(d_x);
        self.for_each_tile(cpu, |tile| {
            // SAFETY: tiles are disjoint.
            let d_x = unsafe { shared.tile(tile.start, tile.len()) };
            let x = &inputs.x[tile];
            cpu.isa.vectorize(
                #[inline(always)]
                || {
                    for (d_x, x) in d_x.chunks_exact_mut(self.c).zip(x.chunks_exact(self.c)) {
                        let line = slope.iter().zip(along).zip(offset).zip(mean);
                        let row = d_x.iter_mut().zip(x).zip(line);
                        for ((d_x, x), (((slope, along), offset), mean)) in row {
                            *d_x = slope * *d_x + (along * (x - mean) + offset);
                        }
                    }
                },
            );
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
        let per_group = self.c / self.n_groups;
        let count = (per_group * self.n_positions) as f64;
        let mut line = vec![0.0; 3 * self.c];
        for group in 0..self.n_groups {
            let channels = group * per_group..(group + 1) * per_group;
            let (mut sum, mut sum_xhat) = (0.0, 0.0);
            for c in channels.clone() {
                sum += f64::from(inputs.scale[c]) * f64::from(d_shift[c]);
                sum_xhat += f64::from(inputs.scale[c]) * f64::from(d_scale[c]);
            }
            for c in channels {
                let rstd = f64::from(moments[self.c + c]);
                line[c] = (rstd * f64::from(inputs.scale[c])) as f32;
                line[self.c + c] = (-rstd * rstd * sum_xhat / count) as f32;
                line[2 * self.c + c] = (-rstd * sum / count) as f32;
            }
        }
        line
    }

    /// Writes the gradient before the activation into `d_u` and returns, per tile, its sums and
    /// its sums times the normalized input, `[n_tiles, 2, C]`.
    fn backward_sums(
        &self,
        inputs: &Inputs<'_>,
        moments: &[f32],
        d_y: &[f32],
        d_u: &mut [f32],
        cpu: Cpu,
    ) -> Vec<f32> {
        let slope = self.slopes(inputs, moments);
        let (mean, rstd) = moments.split_at(self.c);
        let mut partial = vec![0.0; self.n_tiles() * 2 * self.c];
        let (shared, shared_partial) = (Shared::new(d_u), Shared::new(&mut partial));
        self.for_each_tile(cpu, |tile| {
            let sums_start = tile.start / self.tile_len() * 2 * self.c;
            // SAFETY: tiles are disjoint, and each has its own sums.
            let (d_u, sums) = unsafe {
                (
                    shared.tile(tile.start, tile.len()),
                    shared_partial.tile(sums_start, 2 * self.c),
                )
            };
            let (sum, sum_xhat) = sums.split_at_mut(self.c);
            let (x, d_y) = (&inputs.x[tile.clone()], &d_y[tile]);
            let (slope, shift) = (&slope[..self.c], &inputs.shift[..self.c]);
            cpu.isa.vectorize(
                #[inline(always)]
                || {
                    let rows = x.chunks_exact(self.c).zip(d_y.chunks_exact(self.c));
                    for (d_u, (x, d_y)) in d_u.chunks_exact_mut(self.c).zip(rows) {
                        match self.activation {
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
                },
            );
        });
        partial
    }

    /// Adds the tiles of an image in order, in f64.
    fn sum_tiles(&self, partial: &[f32], d_scale: &mut [f32], d_shift: &mut [f32]) {
        for c in 0..self.c {
            let sum = |offset: usize| -> f64 {
                let tiles = partial.chunks_exact(2 * self.c);
                tiles.map(|tile| f64::from(tile[offset + c])).sum()
            };
            (d_shift[c], d_scale[c]) = (sum(0) as f32, sum(self.c) as f32);
        }
    }

    /// `scale * rstd` of an image's channels.
    fn slopes(&self, inputs: &Inputs<'_>, moments: &[f32]) -> Vec<f32> {
        let rstds = moments[self.c..].iter();
        rstds
            .zip(inputs.scale)
            .map(|(rstd, scale)| rstd * scale)
            .collect()
    }

    /// Runs `f` with the elements of each tile of an image.
    fn for_each_tile(&self, cpu: Cpu, f: impl Fn(std::ops::Range<usize>) + Sync) {
        cpu.threads.for_each(self.n_tiles(), |tile| {
            let first = tile * self.tile_len();
            f(first..(first + self.tile_len()).min(self.image_len()));
        });
    }

    fn image_len(&self) -> usize {
        self.n_positions * self.c
    }

    fn tile_positions(&self) -> usize {
        (TILE / self.c).max(1)
    }

    fn tile_len(&self) -> usize {
        self.tile_positions() * self.c
    }

    fn n_tiles(&self) -> usize {
        self.n_positions.div_ceil(self.tile_positions())
    }

    fn check(&self, inputs: &Inputs<'_>) {
        assert!(
            self.n_groups > 0 && self.c > 0 && self.c.is_multiple_of(self.n_groups),
            "{self:?}"
        );
        assert_eq!(inputs.x.len(), self.n * self.n_positions * self.c);
        assert_eq!(inputs.scale.len(), self.n * self.c);
        assert_eq!(inputs.shift.len(), self.n * self.c);
    }
}
