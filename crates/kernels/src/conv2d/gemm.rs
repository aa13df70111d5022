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
use crate::gemm::{OuterProducts, ROW_STEP, ROWS, Start, Sum};
use crate::panels::{COLS, Panels, Strips, transpose};
use crate::scratch::Scratch;

/// Positions whose rows stay in the cache while all taps of a weight gradient pass over them.
const CHUNK: usize = 512;

/// Most floats of such rows that a second-level cache of 2 MiB holds twice.
const CACHED_CHUNK: usize = 1 << 18;

/// Multiply-adds per weight above which packing pays: below, it takes as long as the product.
const PACK_FROM: usize = 512;

impl Conv2d {
    /// See [`Conv2d::forward`].
    pub(super) fn gemm_forward(&self, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) {
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
        gather.multiply(from, &self.panels(inputs.weight, cpu), y, cpu);
    }

    /// The weights of the forward pass, `[taps, C_in] x [C_out]`.
    pub(super) fn panels<'a>(&self, weight: &'a [f32], cpu: Cpu) -> Panels<'a> {
        let k = self.n_taps() * self.c_in;
        let n_positions = self.n * self.out_h() * self.out_w();
        Panels::in_place(weight, k, self.c_out)
            .filter(|_| n_positions < PACK_FROM)
            .unwrap_or_else(|| {
                let row = |i: usize| &weight[i * self.c_out..][..self.c_out];
                Panels::from_rows(k, self.c_out, row, cpu)
            })
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
    pub(super) fn turned(&self, weight: &[f32], cpu: Cpu) -> Panels<'static> {
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
        let add = |chunk: Chunk<'_>| self.add_chunk(x, d_y, chunk, cpu);
        self.weight_sums(d_y, d_weight, d_bias, add, cpu);
    }

    /// The outer products of a chunk.
    pub(super) fn add_chunk(&self, x: &[f32], d_y: &[f32], mut chunk: Chunk<'_>, cpu: Cpu) {
        if self.is_linear() {
            return self.add_linear_chunk(&[(x, self.c_in)], d_y, chunk, cpu);
        }
        let n_positions = chunk.positions.len();
        let b = self.pack_d_y(d_y, &chunk, cpu);
        // Divisions: once, and not for every tap.
        let origins: Vec<_> = chunk.positions.clone().map(|i| self.origin(i)).collect();
        for tap in 0..self.n_taps() {
            let channels = &chunk.channels;
            let row = |i: usize| {
                let source = self.source(tap, origins.get(i)?)?;
                Some(&x[source * self.c_in..][channels.clone()])
            };
            let sums = OuterProducts {
                a: &Strips::pack(n_positions, channels.len(), row, cpu.isa),
                b: &b,
                sum: chunk.sum,
                out: chunk.d_weight(self, tap),
                n_cols: self.c_out,
                next: Some([&[]; 2]),
            };
            sums.run(cpu.isa);
        }
    }

    /// The same where each position sees itself alone, of sources that have the channels given, one
    /// after the other.
    ///
    /// Where a chunk reads whole rows, and two chunks of them fit the cache, its products read them
    /// where they are, and ask for those of the next chunk.
    pub(super) fn add_linear_chunk(
        &self,
        sources: &[(&[f32], usize)],
        d_y: &[f32],
        mut chunk: Chunk<'_>,
        cpu: Cpu,
    ) {
        let (first, n_positions) = (chunk.positions.start, chunk.positions.len());
        let b = self.pack_d_y(d_y, &chunk, cpu);
        let is_whole =
            chunk.channels.len() == self.c_in && CHUNK * (self.c_in + self.c_out) <= CACHED_CHUNK;
        let next = chunk.positions.end..(chunk.positions.end + CHUNK).min(d_y.len() / self.c_out);
        let mut next_d_y = &d_y[next.start * self.c_out..next.end * self.c_out];
        let (sum, channels) = (chunk.sum, chunk.channels.clone());
        let mut out = chunk.d_weight(self, 0);
        let mut before = 0;
        for &(x, c) in sources {
            let own = channels.start.max(before)..channels.end.min(before + c);
            if own.is_empty() {
                before += c;
                continue;
            }
            let row = |i: usize| Some(&x[(first + i) * c..][own.start - before..own.end - before]);
            let (a, next) = match is_whole && c.is_multiple_of(ROW_STEP) {
                true => (
                    Strips::in_place(&x[first * c..], n_positions, c),
                    [
                        &x[next.start * c..next.end * c],
                        std::mem::take(&mut next_d_y),
                    ],
                ),
                false => (
                    Strips::pack(n_positions, own.len(), row, cpu.isa),
                    [&[][..]; 2],
                ),
            };
            let (own_out, rest) = out.split_at_mut(own.len() * self.c_out);
            let sums = OuterProducts {
                a: &a,
                b: &b,
                sum,
                out: own_out,
                n_cols: self.c_out,
                next: Some(next),
            };
            sums.run(cpu.isa);
            out = rest;
            before += c;
        }
    }

    /// The gradient of the output in a chunk.
    fn pack_d_y(&self, d_y: &[f32], chunk: &Chunk<'_>, cpu: Cpu) -> Strips<'static, COLS> {
        let rows = &d_y[chunk.positions.start * self.c_out..];
        let row = |i: usize| Some(&rows[i * self.c_out..][..self.c_out]);
        Strips::pack(chunk.positions.len(), self.c_out, row, cpu.isa)
    }

    /// Cuts the sums of a weight gradient into groups of positions and tiles of input channels,
    /// has each chunk of a tile added up, and adds the groups. The bias gradient, the sum of
    /// `d_y`, comes along while a chunk is at hand.
    pub(super) fn weight_sums(
        &self,
        d_y: &[f32],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
        add: impl Fn(Chunk<'_>) + Sync,
        cpu: Cpu,
    ) {
        if self.c_out == 0 {
            return;
        }
        let n_positions = self.n * self.out_h() * self.out_w();
        let cpu = Cpu {
            threads: cpu.threads.for_products(n_positions * self.weight_len()),
            ..cpu
        };
        let n_groups = self.weight_groups(n_positions);
        let positions_per_group = n_positions.div_ceil(n_groups).next_multiple_of(CHUNK);
        let c_in_per_tile = self.c_in_per_tile(n_groups, cpu);
        let n_c_tiles = self.c_in.div_ceil(c_in_per_tile).max(1);
        let parts = |len: usize| (n_groups > 1).then(|| Scratch::new(n_groups * len));
        let (mut weight_parts, mut bias_parts) = (parts(d_weight.len()), parts(d_bias.len()));
        let weight_sums = Shared::new(weight_parts.as_deref_mut().unwrap_or(&mut *d_weight));
        let bias_sums = Shared::new(bias_parts.as_deref_mut().unwrap_or(&mut *d_bias));
        cpu.threads.for_each(n_groups * n_c_tiles, |tile| {
            let (group, c) = (tile / n_c_tiles, tile % n_c_tiles * c_in_per_tile);
            let start = (group * positions_per_group).min(n_positions);
            let end = (start + positions_per_group).min(n_positions);
            // At least one chunk, even if it is empty: it writes zeros.
            for first in (start..end.max(start + 1)).step_by(CHUNK) {
                let positions = first..(first + CHUNK).min(end);
                let sum = if first == start { Sum::Set } else { Sum::Add };
                if c == 0 {
                    let rows = &d_y[positions.start * self.c_out..positions.end * self.c_out];
                    // SAFETY: each group has its own sums, and one tile with these channels.
                    let sums = unsafe { bias_sums.tile(group * self.c_out, self.c_out) };
                    add_rows(rows, sum, sums, cpu);
                }
                add(Chunk {
                    positions,
                    channels: c..(c + c_in_per_tile).min(self.c_in),
                    sum,
                    group,
                    weight_sums: &weight_sums,
                });
            }
        });
        if let (Some(weight_parts), Some(bias_parts)) = (weight_parts, bias_parts) {
            sum_groups(&weight_parts, d_weight, cpu);
            sum_groups(&bias_parts, d_bias, cpu);
        }
    }

    /// Input channels of one tile of a weight gradient: as many as leave the sums in the cache and
    /// like shares of tiles to all threads, or many tiles. Changes no bit.
    fn c_in_per_tile(&self, n_groups: usize, cpu: Cpu) -> usize {
        const CACHED: usize = 1 << 17;
        let n_threads = cpu.threads.count();
        let most = (CACHED / self.c_out).clamp(2 * ROWS, 256);
        let width = |n_tiles: usize| self.c_in.div_ceil(n_tiles).next_multiple_of(ROWS).max(ROWS);
        let is_fair = |width: &usize| {
            let n_tiles = self.c_in.div_ceil(*width) * n_groups;
            n_tiles.is_multiple_of(n_threads) || n_tiles >= 4 * n_threads
        };
        let fewest = self.c_in.div_ceil(most).max(1);
        (fewest..=self.c_in.div_ceil(ROWS))
            .map(width)
            .find(is_fair)
            .unwrap_or(ROWS)
    }

    /// Where the first tap of an output position stands.
    fn origin(&self, position: usize) -> Origin {
        let (row, ox) = (position / self.out_w(), position % self.out_w());
        let (image, oy) = (row / self.out_h(), row % self.out_h());
        Origin {
            first_row: image * self.h,
            padded: [oy * self.stride, ox * self.stride],
        }
    }

    /// Which position of all images a tap sees, if it lies in the image.
    #[inline(always)]
    fn source(&self, tap: usize, origin: &Origin) -> Option<usize> {
        let (ky, kx) = (tap / self.kernel[1], tap % self.kernel[1]);
        let iy = (origin.padded[0] + ky).checked_sub(self.padding[0])?;
        let ix = (origin.padded[1] + kx).checked_sub(self.padding[1])?;
        (iy < self.h && ix < self.w).then_some((origin.first_row + iy) * self.w + ix)
    }
}

/// Where the filter stands for an output position.
struct Origin {
    /// The first row of its image among those of all.
    first_row: usize,
    /// Row and column in the padded image.
    padded: [usize; 2],
}

/// A part of the positions whose outer products a tile of a weight gradient adds up.
pub(super) struct Chunk<'a> {
    /// Of all images.
    pub(super) positions: Range<usize>,
    /// Input channels.
    pub(super) channels: Range<usize>,
    pub(super) sum: Sum,
    group: usize,
    weight_sums: &'a Shared<'a>,
}

impl Chunk<'_> {
    /// Where the sums of a tap go, `[channels, C_out]`.
    pub(super) fn d_weight(&mut self, conv: &Conv2d, tap: usize) -> &mut [f32] {
        let first =
            ((self.group * conv.n_taps() + tap) * conv.c_in + self.channels.start) * conv.c_out;
        // SAFETY: (group, channels) of different tiles are disjoint, and the mutable borrow of the
        // chunk keeps apart the taps of one.
        unsafe {
            self.weight_sums
                .tile(first, self.channels.len() * conv.c_out)
        }
    }
}

/// Adds up rows as long as `sums`, in four interleaved parts that hide the latency of an addition.
fn add_rows(rows: &[f32], sum: Sum, sums: &mut [f32], cpu: Cpu) {
    if sum == Sum::Set {
        sums.fill(0.0);
    }
    cpu.isa.vectorize(
        #[inline(always)]
        |_| {
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
