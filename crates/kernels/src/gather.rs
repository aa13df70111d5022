//! Products whose rows are found in an image: a convolution without a copy of its input.

use crate::cpu::{Cpu, Shared};
use crate::gemm::{Packed, ROWS, RowsTimesPacked, Start};

/// Output positions of one tile: a whole number of register blocks.
const TILE: usize = 8 * ROWS;

/// How the rows of a product are found in an image.
pub(crate) struct Gather {
    pub(crate) n: usize,
    pub(crate) image: [usize; 2],
    pub(crate) out: [usize; 2],
    pub(crate) channels: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Negative where the turned filter of an input gradient is smaller than its padding.
    pub(crate) padding: [isize; 2],
    /// Distance of two input positions, with zeros between.
    pub(crate) dilation: usize,
}

impl Gather {
    /// `y = start + rows * packed + residual`: one row of `channels` per tap and output position
    /// of `x`.
    pub(crate) fn multiply(
        &self,
        x: &[f32],
        packed: &Packed,
        start: Start<'_>,
        residual: Option<&[f32]>,
        y: &mut [f32],
        cpu: Cpu,
    ) {
        let zeros = vec![0.0; self.channels];
        let n_positions = self.n * self.out[0] * self.out[1];
        let shared = Shared::new(y);
        cpu.threads.for_each(n_positions.div_ceil(TILE), |tile| {
            let mut a = vec![zeros.as_ptr(); self.kernel[0] * self.kernel[1] * ROWS];
            let end = ((tile + 1) * TILE).min(n_positions);
            for first in (tile * TILE..end).step_by(ROWS) {
                let n_rows = ROWS.min(end - first);
                self.pointers(x, &zeros, first, n_rows, &mut a);
                // SAFETY: blocks of positions are disjoint.
                let out = unsafe { shared.tile(first * packed.n, n_rows * packed.n) };
                let product = RowsTimesPacked {
                    a: &a,
                    k: self.channels,
                    b: packed,
                    start,
                    residual: residual.map(|residual| &residual[first * packed.n..]),
                    out,
                    out_stride: packed.n,
                    n_rows,
                };
                // SAFETY: each pointer is a position's channels, or as many zeros.
                unsafe { product.run(cpu.isa) };
            }
        });
    }

    /// Fills `a` (`[n_taps, ROWS]`) with the inputs of the output positions from `first` on.
    fn pointers(
        &self,
        x: &[f32],
        zeros: &[f32],
        first: usize,
        n_rows: usize,
        a: &mut [*const f32],
    ) {
        let [image_h, image_w] = self.image;
        let [out_h, out_w] = self.out;
        for r in 0..n_rows {
            let position = first + r;
            let (image, oy, ox) = (
                position / (out_h * out_w),
                position / out_w % out_h,
                position % out_w,
            );
            let y0 = (oy * self.stride) as isize - self.padding[0];
            let x0 = (ox * self.stride) as isize - self.padding[1];
            for ky in 0..self.kernel[0] {
                let iy = self.undilate(y0 + ky as isize, image_h);
                for kx in 0..self.kernel[1] {
                    let ix = self.undilate(x0 + kx as isize, image_w);
                    a[(ky * self.kernel[1] + kx) * ROWS + r] = match (iy, ix) {
                        (Some(iy), Some(ix)) => {
                            let start = ((image * image_h + iy) * image_w + ix) * self.channels;
                            x[start..start + self.channels].as_ptr()
                        }
                        _ => zeros.as_ptr(),
                    };
                }
            }
        }
    }

    /// The image coordinate at `i` of the dilated image, if there is one.
    fn undilate(&self, i: isize, size: usize) -> Option<usize> {
        let i = usize::try_from(i).ok()?;
        (i.is_multiple_of(self.dilation) && i / self.dilation < size).then_some(i / self.dilation)
    }
}
