//! 2-D convolution, channels last: forward and both gradients. A linear layer is its 1×1 case.
//!
//! The forward pass multiplies gathered rows by the packed weights: the rows of a tap are pointers
//! into the image, or to a row of zeros outside of it, so nothing is copied. The gradient with
//! respect to the input is the same product with the turned weights; that with respect to the
//! weights sums outer products over runs of positions.

use crate::cpu::{Cpu, Shared};
use crate::gather::Gather;
use crate::gemm::{COLS, OuterProducts, Packed, ROWS, Run, Start};

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Images.
    pub n: usize,
    /// Input rows.
    pub h: usize,
    /// Input columns.
    pub w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Filter rows and columns.
    pub kernel: usize,
    /// Distance of two output positions in the input.
    pub stride: usize,
    /// Rows and columns of zeros around the input.
    pub padding: usize,
}

/// Positions whose rows stay in the cache while all taps of a weight gradient pass over them.
const CHUNK: usize = 512;

/// Input channels of one tile of a weight gradient.
const C_IN_TILE: usize = 4 * ROWS;

impl Conv2d {
    /// A linear layer over `n` rows.
    pub fn linear(n: usize, c_in: usize, c_out: usize) -> Self {
        Self {
            n,
            h: 1,
            w: 1,
            c_in,
            c_out,
            kernel: 1,
            stride: 1,
            padding: 0,
        }
    }

    /// Output rows.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Output columns.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Whether the sizes make sense and all lengths can be counted: what the pointers rely on.
    ///
    /// # Panics
    /// If not, as all kernels do.
    fn check(&self) {
        let Self {
            n,
            h,
            w,
            c_in,
            c_out,
            kernel,
            stride,
            padding,
        } = *self;
        let product = |sizes: &[usize]| {
            sizes
                .iter()
                .try_fold(size_of::<f32>(), |product, &size| product.checked_mul(size))
        };
        let side = |size: usize| padding.checked_mul(2)?.checked_add(size);
        let widest = c_in.max(c_out);
        let counts = side(h)
            .zip(side(w))
            .and_then(|(h, w)| product(&[n, h, w, widest]));
        assert!(kernel > 0 && stride > 0, "{self:?}");
        assert!(
            side(h)
                .zip(side(w))
                .is_some_and(|(h, w)| h.min(w) >= kernel),
            "{self:?}"
        );
        assert!(
            counts
                .and(product(&[kernel, kernel, c_in, c_out]))
                .is_some(),
            "{self:?}"
        );
    }

    /// Elements of the input, `[N, H, W, C_in]`.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Elements of the output, `[N, H_out, W_out, C_out]`.
    pub fn y_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c_out
    }

    /// Elements of the weights, `[kernel, kernel, C_in, C_out]`.
    pub fn weight_len(&self) -> usize {
        self.kernel * self.kernel * self.c_in * self.c_out
    }

    /// `y = conv(x, weight) + bias`.
    ///
    /// # Panics
    /// If a slice has another length than its size says; likewise all kernels below.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32], cpu: Cpu) {
        self.check();
        assert_eq!(bias.len(), self.c_out);
        assert_eq!(
            (x.len(), weight.len(), y.len()),
            (self.x_len(), self.weight_len(), self.y_len())
        );
        let k = self.kernel * self.kernel * self.c_in;
        let packed = Packed::from_rows(weight, k, self.c_out, self.c_out);
        let gather = Gather {
            n: self.n,
            image: [self.h, self.w],
            out: [self.out_h(), self.out_w()],
            channels: self.c_in,
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding as isize,
            dilation: 1,
        };
        gather.multiply(x, &packed, Start::Bias(bias), y, cpu);
    }

    /// `d_x`: the gradient with respect to the input, given that of the output.
    pub fn backward_input(&self, d_y: &[f32], weight: &[f32], d_x: &mut [f32], cpu: Cpu) {
        self.check();
        assert_eq!(
            (d_y.len(), weight.len(), d_x.len()),
            (self.y_len(), self.weight_len(), self.x_len())
        );
        // The input gradient is a convolution of the output's, spread by the stride, with the
        // filter turned by 180 degrees and its channels exchanged.
        let n_taps = self.kernel * self.kernel;
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
            padding: self.kernel as isize - 1 - self.padding as isize,
            dilation: self.stride,
        };
        gather.multiply(d_y, &packed, Start::Zero, d_x, cpu);
    }

    /// `d_weight`: the gradient with respect to the weights, given that of the output.
    ///
    /// The sum over the batch is cut into groups by the sizes alone, added in order.
    pub fn backward_weight(&self, x: &[f32], d_y: &[f32], d_weight: &mut [f32], cpu: Cpu) {
        self.check();
        assert_eq!(
            (x.len(), d_y.len(), d_weight.len()),
            (self.x_len(), self.y_len(), self.weight_len())
        );
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
                for tap in 0..self.kernel * self.kernel {
                    let runs = self.runs(&x[c..], d_y, d_y_stride, tap, chunk.clone());
                    let start =
                        ((group * self.kernel * self.kernel + tap) * self.c_in + c) * self.c_out;
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
        sum_groups(&partial, d_weight);
    }

    /// `d_bias`: the sum of `d_y` over all positions.
    pub fn backward_bias(&self, d_y: &[f32], d_bias: &mut [f32], cpu: Cpu) {
        self.check();
        assert_eq!((d_y.len(), d_bias.len()), (self.y_len(), self.c_out));
        if d_bias.is_empty() {
            return;
        }
        let n_positions = d_y.len() / self.c_out;
        let n_groups = n_positions.div_ceil(CHUNK).max(1);
        let mut partial = vec![0.0; n_groups * self.c_out];
        let shared = Shared::new(&mut partial);
        cpu.threads.for_each(n_groups, |group| {
            let rows = &d_y[group * CHUNK * self.c_out..];
            let rows = &rows[..rows.len().min(CHUNK * self.c_out)];
            // SAFETY: each group has its own sums.
            let sums = unsafe { shared.tile(group * self.c_out, self.c_out) };
            cpu.isa.vectorize(
                #[inline(always)]
                || {
                    for row in rows.chunks_exact(self.c_out) {
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *sum += value;
                        }
                    }
                },
            );
        });
        sum_groups(&partial, d_bias);
    }

    /// Partial sums of a weight gradient: enough for many threads, few if the weights are large.
    fn weight_groups(&self) -> usize {
        ((1 << 21) / self.weight_len()).clamp(1, 16)
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
        let (ky, kx) = (tap / self.kernel, tap % self.kernel);
        // Output columns whose input column ox * stride + kx - padding lies in the image.
        let first = self.padding.saturating_sub(kx).div_ceil(self.stride);
        let end = match (self.w + self.padding).checked_sub(kx + 1) {
            Some(last) => (last / self.stride + 1).min(out_w),
            None => 0,
        };
        let mut runs = Vec::with_capacity(rows.len());
        for row in rows {
            let (image, oy) = (row / out_h, row % out_h);
            let Some(iy) = (oy * self.stride + ky).checked_sub(self.padding) else {
                continue;
            };
            if iy >= self.h || first >= end {
                continue;
            }
            let ix = first * self.stride + kx - self.padding;
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

/// Adds equal parts of `partial` in order.
fn sum_groups(partial: &[f32], sum: &mut [f32]) {
    let mut groups = partial.chunks_exact(sum.len());
    if let Some(first) = groups.next() {
        sum.copy_from_slice(first);
    }
    for group in groups {
        for (sum, value) in sum.iter_mut().zip(group) {
            *sum += value;
        }
    }
}
