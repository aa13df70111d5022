//! The convolution over all channels as a product of matrices.
//!
//! The forward pass multiplies gathered rows by the weights: the rows of a tap are pointers into
//! the image, or to a row of zeros outside of it, so nothing is copied. The gradient with respect
//! to the input is the same product with the turned weights; that with respect to the weights sums
//! outer products over positions, chunk by chunk.

use std::ops::Range;

use super::{Conv2d, Inputs, sum_groups};
use crate::cpu::{Cpu, Shared};
use crate::gather::{Gather, Sources};
use crate::gemm::{OuterProducts, ROWS, Start, Sum};
use crate::panels::{COLS, Panels, Strips, transpose};
use crate::scratch::Scratch;

/// Positions whose rows stay in the cache while all taps of a weight gradient pass over them.
const CHUNK: usize = 256;

/// Multiply-adds per weight above which packing pays: below, it takes as long as the product.
const PACK_FROM: usize = 512;

impl Conv2d {
    /// See [`Conv2d::forward`].
    pub(super) fn gemm_forward(&self, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) {
        let k = self.n_taps() * self.c_in;
        let n_positions = self.n * self.out_h() * self.out_w();
        let in_place = Panels::in_place(inputs.weight, k, self.c_out);
        let panels = in_place
            .filter(|_| n_positions < PACK_FROM)
            .unwrap_or_else(|| {
                let row = |i: usize| &inputs.weight[i * self.c_out..][..self.c_out];
                Panels::from_rows(k, self.c_out, row, cpu)
            });
        let gather = Gather {
            n: self.n,
            image: [self.h, self.w],
            out: [self.out_h(), self.out_w()],
            channels: self.c_in,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding.map(|padding| padding as isize),
            dilation: 1,
        };
        let from = Sources {
            x: inputs.x,
            start: Start::Bias(inputs.bias),
            residual: inputs.residual,
        };
        gather.multiply(from, &panels, y, cpu);
    }

    /// See [`Conv2d::backward_input`].
    pub(super) fn gemm_backward_input(
        &self,
        d_y: &[f32],
        weight: &[f32],
        d_x: &mut [f32],
        cpu: Cpu,
    ) {
        // The input gradient is a convolution of the output's, spread by the stride, with the
        // filter turned by 180 degrees and its channels exchanged.
        let gather = Gather {
            n: self.n,
            image: [self.out_h(), self.out_w()],
            out: [self.h, self.w],
            channels: self.c_out,
            kernel: self.kernel,
            stride: 1,
            padding: [0, 1].map(|i| self.kernel[i] as isize - 1 - self.padding[i] as isize),
            dilation: self.stride,
        };
        let from = Sources {
            x: d_y,
            start: Start::Zero,
            residual: None,
        };
        gather.multiply(from, &self.turned(weight, cpu), d_x, cpu);
    }

    /// The weights of the input gradient, `[taps in reverse, C_out] x [C_in]`.
    fn turned(&self, weight: &[f32], cpu: Cpu) -> Panels<'static> {
        let (n_taps, c_out) = (self.n_taps(), self.c_out);
        Panels::pack(n_taps * c_out, self.c_in, cpu.threads, |columns, panel| {
            for (tap, panel) in panel.chunks_exact_mut((c_out * COLS).max(1)).enumerate() {
                let weight = &weight[(n_taps - 1 - tap) * self.c_in * c_out..];
                let columns = columns.clone().map(|c_in| &weight[c_in * c_out..][..c_out]);
                transpose(columns, panel);
            }
        })
    }

    /// See [`Conv2d::backward_weight`].
    pub(super) fn gemm_backward_weight(
        &self,
        x: &[f32],
        d_y: &[f32],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
        cpu: Cpu,
    ) {
        let n_positions = self.n * self.out_h() * self.out_w();
        if self.c_out == 0 {
            return;
        }
        let n_groups = self.weight_groups(n_positions);
        let tiles = WeightTiles {
            conv: self,
            x,
            d_y,
            positions_per_group: n_positions.div_ceil(n_groups).next_multiple_of(CHUNK),
            c_in_per_tile: self.c_in_per_tile(n_groups, cpu),
        };
        if n_groups == 1 {
            return tiles.run(1, d_weight, d_bias, cpu);
        }
        let mut partial_weight = Scratch::new(n_groups * d_weight.len());
        let mut partial_bias = Scratch::new(n_groups * d_bias.len());
        tiles.run(n_groups, &mut partial_weight, &mut partial_bias, cpu);
        sum_groups(&partial_weight, d_weight, cpu);
        sum_groups(&partial_bias, d_bias, cpu);
    }

    /// Input channels of one tile of a weight gradient: as many as leave each thread a few tiles
    /// and the sums in the cache. Changes no bit.
    fn c_in_per_tile(&self, n_groups: usize, cpu: Cpu) -> usize {
        const CACHED: usize = 1 << 17;
        let tiles_per_group = (2 * cpu.threads.count()).div_ceil(n_groups);
        let cached = (CACHED / self.c_out).clamp(2 * ROWS, 256);
        self.c_in
            .div_ceil(tiles_per_group)
            .clamp(1, cached)
            .next_multiple_of(ROWS)
    }
}

/// How the sums of a weight gradient are cut.
struct WeightTiles<'a> {
    conv: &'a Conv2d,
    x: &'a [f32],
    d_y: &'a [f32],
    positions_per_group: usize,
    c_in_per_tile: usize,
}

impl WeightTiles<'_> {
    /// Writes each group's `[n_groups, taps, C_in, C_out]` and `[n_groups, C_out]`.
    fn run(&self, n_groups: usize, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_c_tiles = self.conv.c_in.div_ceil(self.c_in_per_tile).max(1);
        let (d_weight, d_bias) = (Shared::new(d_weight), Shared::new(d_bias));
        let conv = self.conv;
        let n_positions = conv.n * conv.out_h() * conv.out_w();
        cpu.threads.for_each(n_groups * n_c_tiles, |tile| {
            let (group, c) = (tile / n_c_tiles, tile % n_c_tiles * self.c_in_per_tile);
            let n_c = self.c_in_per_tile.min(conv.c_in - c);
            let start = group * self.positions_per_group;
            let end = (start + self.positions_per_group).min(n_positions);
            let mut sum = Sum::Set;
            // At least one chunk, even if it is empty: it writes zeros.
            let mut first = start.min(end);
            loop {
                let chunk = first..(first + CHUNK).min(end);
                let rows = &self.d_y[chunk.start * conv.c_out..chunk.end * conv.c_out];
                let row = |i: usize| Some(&rows[i * conv.c_out..][..conv.c_out]);
                let b = Strips::<COLS>::pack(chunk.len(), conv.c_out, row, cpu.isa);
                if c == 0 {
                    // SAFETY: each group has its own sums, and one tile with these channels.
                    let d_bias = unsafe { d_bias.tile(group * conv.c_out, conv.c_out) };
                    add_rows(rows, sum, d_bias, cpu);
                }
                for tap in 0..conv.n_taps() {
                    let a = self.inputs(tap, c..c + n_c, chunk.clone(), cpu);
                    let start = ((group * conv.n_taps() + tap) * conv.c_in + c) * conv.c_out;
                    // SAFETY: (group, tap, channels) of different tiles are disjoint, and so are
                    // the taps of one tile.
                    let out = unsafe { d_weight.tile(start, n_c * conv.c_out) };
                    let sums = OuterProducts {
                        a: &a,
                        b: &b,
                        sum,
                        out,
                        n_cols: conv.c_out,
                    };
                    sums.run(cpu.isa);
                }
                sum = Sum::Add;
                first = chunk.end;
                if first >= end {
                    break;
                }
            }
        });
    }

    /// Some channels of what a tap sees from each of some output positions.
    fn inputs(
        &self,
        tap: usize,
        channels: Range<usize>,
        positions: Range<usize>,
        cpu: Cpu,
    ) -> Strips<'static, ROWS> {
        let conv = self.conv;
        let (n_positions, n_c) = (positions.len(), channels.len());
        let channels = &channels;
        if conv.kernel == [1, 1] && conv.stride == 1 && conv.padding == [0, 0] {
            let x = &self.x[positions.start * conv.c_in..];
            let row = |i: usize| Some(&x[i * conv.c_in..][channels.clone()]);
            return Strips::pack(n_positions, n_c, row, cpu.isa);
        }
        let sources: Vec<_> = positions
            .map(|position| conv.source(tap, position))
            .collect();
        let row = |i: usize| Some(&self.x[sources[i]? * conv.c_in..][channels.clone()]);
        Strips::pack(n_positions, n_c, row, cpu.isa)
    }
}

impl Conv2d {
    /// Which position of all images `tap` sees from an output position, if it lies in the image.
    fn source(&self, tap: usize, position: usize) -> Option<usize> {
        let (out_h, out_w) = (self.out_h(), self.out_w());
        let (row, ox) = (position / out_w, position % out_w);
        let (image, oy) = (row / out_h, row % out_h);
        let iy = (oy * self.stride + tap / self.kernel[1]).checked_sub(self.padding[0])?;
        let ix = (ox * self.stride + tap % self.kernel[1]).checked_sub(self.padding[1])?;
        (iy < self.h && ix < self.w).then_some((image * self.h + iy) * self.w + ix)
    }
}

/// Adds up rows as long as `sums`, in four interleaved parts that hide the latency of an addition.
fn add_rows(rows: &[f32], sum: Sum, sums: &mut [f32], cpu: Cpu) {
    if sum == Sum::Set {
        sums.fill(0.0);
    }
    cpu.isa.vectorize(
        #[inline(always)]
        || {
            let quads = rows.chunks_exact(4 * sums.len());
            let rest = quads.remainder();
            for quad in quads {
                let (ab, cd) = quad.split_at(2 * sums.len());
                let ((a, b), (c, d)) = (ab.split_at(sums.len()), cd.split_at(sums.len()));
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += (a[i] + b[i]) + (c[i] + d[i]);
                }
            }
            for row in rest.chunks_exact(sums.len()) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += value;
                }
            }
        },
    );
}
