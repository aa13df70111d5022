//! Products whose rows are found in an image: a convolution without a copy of its input.

use std::ops::Range;

use crate::cpu::{Cpu, Shared};
use crate::gemm::{Distance, ROWS, RowsTimesPanels, Start};
use crate::panels::{COLS, Panels, Tiles};
use crate::scratch::Scratch;

/// Output positions of one tile: a whole number of register blocks.
const TILE: usize = 8 * ROWS;

/// What a product is made of, beside the matrix.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// `[N, image, channels]`.
    pub(crate) x: &'a [f32],
    pub(crate) start: Start<'a>,
    /// Like the output.
    pub(crate) residual: Option<&'a [f32]>,
}

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
    /// `y = start + rows * b + residual`: one row of `channels` per tap and output position of `x`.
    pub(crate) fn multiply(&self, from: Sources<'_>, b: &Panels<'_>, y: &mut [f32], cpu: Cpu) {
        let zeros = Scratch::zeros(self.channels);
        let n_positions = self.n * self.out[0] * self.out[1];
        let rows = Rows {
            n: n_positions,
            k: &vec![self.channels; self.kernel[0] * self.kernel[1]],
            find: |positions: Range<usize>, a: &mut [*const f32]| {
                self.pointers(from.x, &zeros, positions.clone(), a);
                let next = match self.is_identity() {
                    true => positions.end..n_positions.min(positions.end + ROWS),
                    false => 0..0,
                };
                [
                    &from.x[next.start * self.channels..next.end * self.channels],
                    &[],
                ]
            },
        };
        let into = Product {
            b,
            start: from.start,
            residual: from.residual,
            y: &Shared::new(y),
        };
        // SAFETY: each pointer is a position's channels, or as many zeros.
        unsafe { rows.multiply(&[into], cpu) };
    }

    /// Fills `a` (`[n_taps, ROWS]`) with the inputs of output positions.
    fn pointers(&self, x: &[f32], zeros: &[f32], positions: Range<usize>, a: &mut [*const f32]) {
        if self.is_identity() {
            return point_to_rows(x, self.channels, positions, a);
        }
        let [image_h, image_w] = self.image;
        let [out_h, out_w] = self.out;
        a.fill(zeros.as_ptr());
        for (r, position) in positions.enumerate() {
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

    /// Whether every output position sees the same one of the image and no other.
    fn is_identity(&self) -> bool {
        self.kernel == [1, 1] && self.padding == [0, 0] && self.image == self.out
    }

    /// The image coordinate at `i` of the dilated image, if there is one.
    fn undilate(&self, i: isize, size: usize) -> Option<usize> {
        let i = usize::try_from(i).ok()?;
        (i.is_multiple_of(self.dilation) && i / self.dilation < size).then_some(i / self.dilation)
    }
}

/// Points to the rows of n elements at some positions, all pointers that are left to the first.
pub(crate) fn point_to_rows(x: &[f32], n: usize, positions: Range<usize>, a: &mut [*const f32]) {
    let rows = &x[positions.start * n..positions.end * n];
    a.fill(rows.as_ptr());
    for (r, a) in a[..positions.len()].iter_mut().enumerate() {
        *a = rows.as_ptr().wrapping_add(r * n);
    }
}

/// The left side of a product, found block by block.
pub(crate) struct Rows<'a, F> {
    /// How many.
    pub(crate) n: usize,
    /// Elements of a row's taps.
    pub(crate) k: &'a [usize],
    /// Fills `[n_taps, ROWS]` pointers for the rows of a block, at most [`ROWS`]; the others point to
    /// anything that is as long. Returns what the next block reads, or nothing.
    pub(crate) find: F,
}

/// What rows are multiplied by, and where the products go.
pub(crate) struct Product<'a> {
    pub(crate) b: &'a Panels<'a>,
    pub(crate) start: Start<'a>,
    /// Like `y`.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) y: &'a Shared<'a>,
}

impl<'x, F: Fn(Range<usize>, &mut [*const f32]) -> [&'x [f32]; 2] + Sync> Rows<'_, F> {
    /// `y = start + rows * b + residual` for each product. A block of rows passes through all of
    /// them while it is in the cache.
    ///
    /// # Safety
    /// The pointers must be readable for as many elements as their tap has, and nobody else may read
    /// or write the products' `y` meanwhile.
    pub(crate) unsafe fn multiply(&self, products: &[Product<'_>], cpu: Cpu) {
        let k = self.k.iter().sum::<usize>();
        let n_panels = |product: &Product<'_>| product.b.n.div_ceil(COLS);
        let n = COLS * products.iter().map(n_panels).sum::<usize>();
        let tiles = Tiles::new([self.n, k, n], TILE, cpu.threads);
        cpu.threads.for_each(tiles.count(), |tile| {
            let (rows, panels) = (tiles.rows(tile), tiles.panels(tile));
            let mut a = vec![std::ptr::null(); self.k.len() * ROWS];
            for first in rows.clone().step_by(ROWS) {
                let n_rows = ROWS.min(rows.end - first);
                let next_rows = (self.find)(first..first + n_rows, &mut a);
                let mut before = 0;
                for product in products {
                    let end = before + n_panels(product);
                    let own = panels.start.max(before)..panels.end.min(end);
                    let is_last = panels.end <= end;
                    if !own.is_empty() {
                        let product = RowsTimesPanels {
                            a: &a,
                            k: self.k,
                            b: product.b,
                            start: product.start,
                            residual: product.residual,
                            panels: own.start - before..own.end - before,
                            out: product.y,
                            first_row: first,
                            n_rows,
                            distance: Distance::Far {
                                next_rows: if is_last { next_rows } else { [&[]; 2] },
                            },
                        };
                        // SAFETY: by contract; positions and panels of tiles are disjoint.
                        unsafe { product.run(cpu.isa) };
                    }
                    before = end;
                }
            }
        });
    }
}
