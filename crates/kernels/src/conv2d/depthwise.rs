//! The convolution of each channel by itself, vectorized over channels.
//!
//! Nothing is packed: a tap's weights and its inputs are both rows of channels already.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::{Conv2d, Inputs, sum_groups};
use crate::cpu::{Cpu, Shared};
use crate::lanes::{add, copy, load, read, store};
use crate::scratch::Scratch;

/// Neighboring output positions that share the loads of a tap's weights.
const POSITIONS: usize = 4;

/// Vectors of channels of one block: with the positions as many sums as the smallest register file
/// holds.
const VECTORS: usize = 2;

impl Conv2d {
    /// See [`Conv2d::forward`].
    pub(super) fn depthwise_forward(&self, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) {
        let taps = Taps {
            image: [self.h, self.w],
            out: [self.out_h(), self.out_w()],
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding.map(|padding| padding as isize),
            dilation: 1,
            weight_order: Order::AsIs,
        };
        let from = Sources {
            x: inputs.x,
            weight: inputs.weight,
            bias: inputs.bias,
            residual: inputs.residual,
        };
        taps.multiply(from, self.c_out, y, cpu);
    }

    /// See [`Conv2d::backward_input`]: the same with the filter turned by 180 degrees, over a
    /// gradient spread by the stride.
    pub(super) fn depthwise_backward_input(
        &self,
        d_y: &[f32],
        weight: &[f32],
        d_x: &mut [f32],
        cpu: Cpu,
    ) {
        let taps = Taps {
            image: [self.out_h(), self.out_w()],
            out: [self.h, self.w],
            kernel: self.kernel,
            stride: 1,
            padding: [0, 1].map(|i| self.kernel[i] as isize - 1 - self.padding[i] as isize),
            dilation: self.stride,
            weight_order: Order::Turned,
        };
        let from = Sources {
            x: d_y,
            weight,
            bias: &[],
            residual: None,
        };
        taps.multiply(from, self.c_in, d_x, cpu);
    }

    /// See [`Conv2d::backward_weight`].
    pub(super) fn depthwise_backward_weight(
        &self,
        x: &[f32],
        d_y: &[f32],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
        cpu: Cpu,
    ) {
        let c = self.c_out;
        if c == 0 {
            return;
        }
        let n_rows = self.n * self.out_h();
        let n_groups = self.weight_groups(n_rows * self.out_w());
        let rows_per_group = n_rows.div_ceil(n_groups);
        let mut partial_weight = Scratch::new(n_groups * d_weight.len());
        let mut partial_bias = Scratch::new(n_groups * d_bias.len());
        let weight_parts = Shared::new(&mut partial_weight);
        let bias_parts = Shared::new(&mut partial_bias);
        cpu.threads.for_each(n_groups, |group| {
            let start = (group * rows_per_group).min(n_rows);
            // SAFETY: each group has its own sums.
            let (d_weight, d_bias) = unsafe {
                (
                    weight_parts.tile(group * self.weight_len(), self.weight_len()),
                    bias_parts.tile(group * c, c),
                )
            };
            d_weight.fill(0.0);
            d_bias.fill(0.0);
            cpu.isa.dispatch(WeightSums {
                conv: self,
                x,
                d_y,
                rows: start..(start + rows_per_group).min(n_rows),
                d_weight,
                d_bias,
            });
        });
        sum_groups(&partial_weight, d_weight, cpu);
        sum_groups(&partial_bias, d_bias, cpu);
    }
}

/// Whether the last tap's weights come last or first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AsIs,
    Turned,
}

/// Which positions of an image an output position sees.
struct Taps {
    image: [usize; 2],
    out: [usize; 2],
    kernel: [usize; 2],
    stride: usize,
    /// Negative where the turned filter of an input gradient is smaller than its padding.
    padding: [isize; 2],
    /// Distance of two input positions, with zeros between.
    dilation: usize,
    weight_order: Order,
}

/// What the sums are made of.
#[derive(Clone, Copy)]
struct Sources<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    /// `[C]`, or nothing for zeros.
    bias: &'a [f32],
    residual: Option<&'a [f32]>,
}

impl Taps {
    /// Computes all output rows, each for itself.
    fn multiply(&self, from: Sources<'_>, channels: usize, y: &mut [f32], cpu: Cpu) {
        let [out_h, out_w] = self.out;
        let row_len = out_w * channels;
        let n_rows = y.len().checked_div(row_len).unwrap_or(0);
        let shared = Shared::new(y);
        cpu.threads.for_each(n_rows, |row| {
            let (image, oy) = (row / out_h, row % out_h);
            let sources = (0..self.kernel[0]).filter_map(|ky| {
                let iy = self.source(oy, ky, 0)?;
                let start = (image * self.image[0] + iy) * self.image[1] * channels;
                Some((&from.x[start..][..self.image[1] * channels], ky))
            });
            let residual = from
                .residual
                .map(|residual| &residual[row * row_len..][..row_len]);
            cpu.isa.dispatch(Row {
                taps: self,
                sources: &sources.collect::<Vec<_>>(),
                weight: from.weight,
                bias: from.bias,
                residual,
                channels,
                // SAFETY: rows are disjoint.
                out: unsafe { shared.tile(row * row_len, row_len) },
            });
        });
    }

    /// The image coordinate that tap `k` of output coordinate `o` sees on an axis, if there is one.
    #[inline(always)]
    fn source(&self, o: usize, k: usize, axis: usize) -> Option<usize> {
        let i = (o * self.stride + k).checked_add_signed(-self.padding[axis])?;
        // Most images are not dilated, and a division is slower than a tap.
        let i = match self.dilation {
            1 => i,
            dilation => i.is_multiple_of(dilation).then(|| i / dilation)?,
        };
        (i < self.image[axis]).then_some(i)
    }

    /// Whether all taps of the columns from `ox` on lie in the image, side by side.
    #[inline(always)]
    fn is_inside(&self, ox: usize, n: usize) -> bool {
        self.dilation == 1
            && ox + n <= self.out[1]
            && self.source(ox, 0, 1).is_some()
            && self.source(ox + n - 1, self.kernel[1] - 1, 1).is_some()
    }
}

/// One output row.
struct Row<'a> {
    taps: &'a Taps,
    /// The input rows that lie in the image, `[W, C]`, each with its row of the filter.
    sources: &'a [(&'a [f32], usize)],
    weight: &'a [f32],
    bias: &'a [f32],
    residual: Option<&'a [f32]>,
    channels: usize,
    out: &'a mut [f32],
}

impl Row<'_> {
    /// The channels from `c` on: V vectors, or fewer channels where `WHOLE` is false.
    #[inline(always)]
    fn channels<S: Simd, const V: usize, const WHOLE: bool>(&mut self, simd: S, c: usize) {
        let out_w = self.taps.out[1];
        let mut ox = 0;
        while ox < out_w {
            if self.taps.is_inside(ox, POSITIONS) {
                self.positions::<S, POSITIONS, V, WHOLE>(simd, ox, c);
                ox += POSITIONS;
            } else {
                self.positions::<S, 1, V, WHOLE>(simd, ox, c);
                ox += 1;
            }
        }
    }

    /// R neighboring positions; if more than one, all their taps lie in the image.
    #[inline(always)]
    fn positions<S: Simd, const R: usize, const V: usize, const WHOLE: bool>(
        &mut self,
        simd: S,
        ox: usize,
        c: usize,
    ) {
        let n_c = (V * S::F32_LANES).min(self.channels - c);
        let start = if self.bias.is_empty() {
            [load::<S, V>(&[]); R]
        } else {
            [load::<S, V>(&self.bias[c..][..n_c]); R]
        };
        // A copy of its own, touched by short loops alone: it stays in registers.
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        copy(&start, &mut acc);
        let [kernel_h, kernel_w] = self.taps.kernel;
        let step = self.taps.stride * self.channels;
        for &(source, ky) in self.sources {
            for kx in 0..kernel_w {
                let Some(ix) = self.taps.source(ox, kx, 1) else {
                    continue;
                };
                let tap = match self.taps.weight_order {
                    Order::AsIs => ky * kernel_w + kx,
                    Order::Turned => kernel_h * kernel_w - 1 - (ky * kernel_w + kx),
                };
                let weight = part::<S, V, WHOLE>(self.weight, tap * self.channels + c, n_c);
                let first = ix * self.channels + c;
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = part::<S, V, WHOLE>(source, first + r * step, n_c);
                    for v in 0..V {
                        acc[v] = simd.mul_add_e_f32s(x[v], weight[v], acc[v]);
                    }
                }
            }
        }
        for (r, mut sum) in acc.into_iter().enumerate() {
            let at = (ox + r) * self.channels + c;
            if let Some(residual) = self.residual {
                add(simd, &mut sum, part::<S, V, WHOLE>(residual, at, n_c));
            }
            store::<S, V>(sum, &mut self.out[at..][..n_c]);
        }
    }
}

/// V vectors of a slice from `at` on, or `n` elements and zeros where `WHOLE` is false.
#[inline(always)]
fn part<S: Simd, const V: usize, const WHOLE: bool>(
    slice: &[f32],
    at: usize,
    n: usize,
) -> [S::f32s; V] {
    if !WHOLE {
        return load::<S, V>(&slice[at..][..n]);
    }
    let vectors = &slice[at..][..V * S::F32_LANES];
    // SAFETY: the slice holds V vectors.
    unsafe { read::<S, V>(vectors.as_ptr()) }
}

impl WithSimd for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let whole = VECTORS * S::F32_LANES;
        let mut c = 0;
        while c + whole <= self.channels {
            self.channels::<S, VECTORS, true>(simd, c);
            c += whole;
        }
        while c < self.channels {
            if c + S::F32_LANES <= self.channels {
                self.channels::<S, 1, true>(simd, c);
            } else {
                self.channels::<S, 1, false>(simd, c);
            }
            c += S::F32_LANES;
        }
    }
}

/// Adds the gradients of weights and bias over some output rows to `d_weight` and `d_bias`.
struct WeightSums<'a> {
    conv: &'a Conv2d,
    x: &'a [f32],
    d_y: &'a [f32],
    /// Rows of all images.
    rows: Range<usize>,
    d_weight: &'a mut [f32],
    d_bias: &'a mut [f32],
}

impl WeightSums<'_> {
    /// The channels from `c` on, V vectors or fewer channels.
    #[inline(always)]
    fn channels<S: Simd, const V: usize>(&mut self, simd: S, row: usize, c: usize) {
        let Conv2d {
            h,
            w,
            stride,
            kernel,
            padding,
            ..
        } = *self.conv;
        let (channels, out_h, out_w) = (self.conv.c_out, self.conv.out_h(), self.conv.out_w());
        let n_c = (V * S::F32_LANES).min(channels - c);
        let (image, oy) = (row / out_h, row % out_h);
        let d_y = &self.d_y[row * out_w * channels + c..];
        let bias = &mut self.d_bias[c..][..n_c];
        let mut sum = load::<S, V>(bias);
        for ox in 0..out_w {
            add(simd, &mut sum, load::<S, V>(&d_y[ox * channels..][..n_c]));
        }
        store::<S, V>(sum, bias);
        for ky in 0..kernel[0] {
            let iy = (oy * stride + ky).checked_sub(padding[0]);
            let Some(iy) = iy.filter(|&iy| iy < h) else {
                continue;
            };
            let x = &self.x[(image * h + iy) * w * channels + c..];
            for kx in 0..kernel[1] {
                let weight = &mut self.d_weight[(ky * kernel[1] + kx) * channels + c..][..n_c];
                let mut sum = load::<S, V>(weight);
                for ox in self.conv.columns(kx) {
                    let ix = ox * stride + kx - padding[1];
                    let x = load::<S, V>(&x[ix * channels..][..n_c]);
                    let d_y = load::<S, V>(&d_y[ox * channels..][..n_c]);
                    for v in 0..V {
                        sum[v] = simd.mul_add_e_f32s(x[v], d_y[v], sum[v]);
                    }
                }
                store::<S, V>(sum, weight);
            }
        }
    }
}

impl WithSimd for WeightSums<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let channels = self.conv.c_out;
        for row in self.rows.clone() {
            let mut c = 0;
            while c + 4 * S::F32_LANES <= channels {
                // Four independent sums hide the latency of an addition.
                self.channels::<S, 4>(simd, row, c);
                c += 4 * S::F32_LANES;
            }
            while c < channels {
                self.channels::<S, 1>(simd, row, c);
                c += S::F32_LANES;
            }
        }
    }
}
