//! The convolution over all channels as a product of matrices.
//!
//! The forward pass multiplies gathered rows by the packed weights: the rows of a tap are pointers
//! into the image, or to a row of zeros outside of it, so nothing is copied. The gradient with
//! respect to the input is the same product with the turned weights; that with respect to the
//! weights sums outer products over runs of positions.

use super::{Conv2d, Inputs, sum_groups};
use crate::cpu::{Cpu, Shared};
use crate::gather::Gather;
use crate::gemm::{COLS, OuterProducts, Packed, ROWS, Run, Start};

/// Positions whose rows stay in the cache while all taps of a weight gradient pass over them.
const CHUNK: usize = 512;

/// Input channels of one tile of a weight gradient.
const C_IN_TILE: usize = 4 * ROWS;

impl Conv2d {
    /// See [`Conv2d::forward`].
    pub(super) fn gemm_forward(&self, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) {
        let k = self.n_taps() * self.c_in;
        let packed = Packed::from_rows(inputs.weight, k, self.c_out, self.c_out);
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
        gather.multiply(
            inputs.x,
            &packed,
            Start::Bias(inputs.bias),
            inputs.residual,
            y,
            cpu,
        );
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
        let n_taps = self.n_taps();
        let mut packed = Packed::zeros(n_taps * self.c_out, self.c_in);
        for (tap, slice) in weight
            .chunks_exact((self.c_in * self.c_out).max(1))
            .enumerate()
        {
            packed.set_columns(
                (n_taps - 1 - tap) * self.c_out,
                self.c_out,
                slice,
                self.c_out,
            );
        }
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
        gather.multiply(d_y, &packed, Start::Zero, None, d_x, cpu);
    }

    /// See [`Conv2d::backward_weight`].
    pub(super) fn gemm_backward_weight(
        &self,
        x: &[f32],
        d_y: &[f32],
        d_weight: &mut [f32],
        cpu: Cpu,
    ) {
        if d_weight.is_empty() {
            return;
        }
        let (padded, d_y_stride) = pad_columns(d_y, self.c_out);
        let d_y = padded.as_deref().unwrap_or(d_y);
        let n_rows = self.n * self.out_h();
        let n_groups = self.weight_groups().min(n_rows).max(1);
        let rows_per_group = n_rows.div_ceil(n_groups);
        let mut partial = vec![0.0; n_groups * d_weight.len()];
        let shared = Shared::new(&mut partial);
        let n_c_tiles = self.c_in.div_ceil(C_IN_TILE);
        cpu.threads.for_each(n_groups * n_c_tiles, |tile| {
            let (group, c) = (tile / n_c_tiles, tile % n_c_tiles * C_IN_TILE);
            let n_c = C_IN_TILE.min(self.c_in - c);
            let rows =
                (group * rows_per_group).min(n_rows)..((group + 1) * rows_per_group).min(n_rows);
            let rows_per_chunk = (CHUNK / self.out_w().max(1)).max(1);
            for first in rows.clone().step_by(rows_per_chunk) {
                let chunk = first..(first + rows_per_chunk).min(rows.end);
                for tap in 0..self.n_taps() {
                    let runs = self.runs(&x[c..], d_y, d_y_stride, tap, chunk.clone());
                    let start = ((group * self.n_taps() + tap) * self.c_in + c) * self.c_out;
                    // SAFETY: (group, tap, channels) of different tiles are disjoint, and so are
                    // the taps of one tile.
                    let out = unsafe { shared.tile(start, n_c * self.c_out) };
                    let sums = OuterProducts {
                        runs: &runs,
                        a_stride: self.stride * self.c_in,
                        b_stride: d_y_stride,
                        out,
                        out_stride: self.c_out,
                        n_rows: n_c,
                        n_cols: self.c_out,
                    };
                    // SAFETY: `runs` stay inside both images, and rows of `d_y` are padded.
                    unsafe { sums.run(cpu.isa) };
                }
            }
        });
        sum_groups(partial.chunks_exact(d_weight.len()), d_weight);
    }

    /// For some output rows (over all images): where the input of `tap` and `d_y` run side by side.
    fn runs(
        &self,
        x: &[f32],
        d_y: &[f32],
        d_y_stride: usize,
        tap: usize,
        rows: std::ops::Range<usize>,
    ) -> Vec<Run> {
        let (out_h, out_w) = (self.out_h(), self.out_w());
        let (ky, kx) = (tap / self.kernel[1], tap % self.kernel[1]);
        let std::ops::Range { start: first, end } = self.columns(kx);
        let mut runs = Vec::with_capacity(rows.len());
        for row in rows {
            let (image, oy) = (row / out_h, row % out_h);
            let Some(iy) = (oy * self.stride + ky).checked_sub(self.padding[0]) else {
                continue;
            };
            if iy >= self.h || first >= end {
                continue;
            }
            let ix = first * self.stride + kx - self.padding[1];
            runs.push(Run {
                a: x[((image * self.h + iy) * self.w + ix) * self.c_in..].as_ptr(),
                b: d_y[(row * out_w + first) * d_y_stride..].as_ptr(),
                len: end - first,
            });
        }
        runs
    }
}

/// Rows of `n` columns padded to whole panels, if they are not whole already, and their stride.
fn pad_columns(rows: &[f32], n: usize) -> (Option<Vec<f32>>, usize) {
    let stride = n.next_multiple_of(COLS);
    if stride == n {
        return (None, n);
    }
    let mut padded = vec![0.0; rows.len() / n * stride];
    for (into, from) in padded.chunks_exact_mut(stride).zip(rows.chunks_exact(n)) {
        into[..n].copy_from_slice(from);
    }
    (Some(padded), stride)
}
