//! The images of a batch below each other, with zeros between.

use std::ops::Range;

use super::Conv2d;
use crate::amx::Amx;
use crate::amx::product::{BLOCK, STEP};
use crate::cpu::Shared;
use crate::element::Element;
use crate::scratch::LINE;

/// Rows of all images, each image followed by a margin of zero rows and each row by zero columns.
///
/// The margin of one image is also that of the next one, and that of a row that of the next row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    n: usize,
    h: usize,
    w: usize,
    kernel: [usize; 2],
    margin: [usize; 2],
}

impl Picture {
    pub(super) fn of(conv: &Conv2d) -> Self {
        Self {
            n: conv.n,
            h: conv.h,
            w: conv.w,
            kernel: conv.kernel,
            margin: conv.padding,
        }
    }

    pub(super) fn n_taps(self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows of images and margins.
    pub(super) fn n_rows(self) -> usize {
        self.n * (self.h + self.margin[0])
    }

    /// Positions of a row, its margin included.
    pub(super) fn row_len(self) -> usize {
        self.w + self.margin[1]
    }

    /// Pixels of images.
    pub(super) fn n_positions(self) -> usize {
        self.n * self.h * self.w
    }

    /// Rows that a filter sees above and below.
    pub(super) fn margin_rows(self) -> usize {
        self.margin[0]
    }

    /// Positions that a filter sees before the first of some rows and behind the last, together.
    pub(super) fn surplus(self) -> usize {
        2 * (self.margin[0] * self.row_len() + self.margin[1])
    }

    /// From the first position that the filter sees to that of a tap.
    pub(super) fn shift(self, tap: usize) -> usize {
        tap / self.kernel[1] * self.row_len() + tap % self.kernel[1]
    }

    /// The columns before the first of a row that a filter sees.
    pub(super) fn margin_columns(self) -> usize {
        self.margin[1]
    }

    /// The first pixel of a row, unless it is of zeros; rows outside of the picture are, too.
    pub(super) fn pixels(self, row: isize) -> Option<usize> {
        let row = usize::try_from(row).ok()?;
        let (image, y) = (
            row / (self.h + self.margin[0]),
            row % (self.h + self.margin[0]),
        );
        (image < self.n && y < self.h).then_some((image * self.h + y) * self.w)
    }

    /// The pixels at the positions of rows, and then none.
    pub(super) fn positions(self, rows: Range<isize>) -> impl Iterator<Item = Option<usize>> {
        let (mut row, mut column) = (rows.start, 0);
        let pixels_of = move |row| self.pixels(row).filter(|_| row < rows.end);
        let mut pixels = pixels_of(row);
        std::iter::from_fn(move || {
            if column == self.row_len() {
                (row, column) = (row + 1, 0);
                pixels = pixels_of(row);
            }
            let position = pixels
                .filter(|_| column < self.w)
                .map(|pixels| pixels + column);
            column += 1;
            Some(position)
        })
    }
}

/// Rows of a picture with all that a filter sees from them, each pixel as pairs of bf16.
pub(super) struct Sheet {
    picture: Picture,
    rows: Range<usize>,
    channels: usize,
}

impl Sheet {
    pub(super) fn new(picture: Picture, rows: Range<usize>, channels: usize) -> Self {
        Self {
            picture,
            rows,
            channels,
        }
    }

    /// Floats of a pixel: an odd number of cache lines, so that neighbors fall into other sets of
    /// the cache.
    pub(super) fn pixel_len(&self) -> usize {
        (self.channels.div_ceil(STEP) | 1) * LINE
    }

    /// Bytes of a pixel.
    pub(super) fn pixel_bytes(&self) -> usize {
        self.pixel_len() * size_of::<f32>()
    }

    /// Floats of a row.
    pub(super) fn row_len(&self) -> usize {
        self.picture.row_len() * self.pixel_len()
    }

    /// Rows, those included that only a filter sees.
    pub(super) fn n_rows(&self) -> usize {
        self.rows.len() + 2 * self.picture.margin_rows()
    }

    /// Positions of outputs.
    pub(super) fn n_outputs(&self) -> usize {
        self.rows.len() * self.picture.row_len()
    }

    /// Floats of all.
    pub(super) fn len(&self) -> usize {
        let n_outputs = self.n_outputs().next_multiple_of(BLOCK);
        (n_outputs + self.picture.surplus()) * self.pixel_len()
    }

    /// The pixels of outputs, and then none.
    pub(super) fn outputs(&self) -> impl Iterator<Item = Option<usize>> {
        let rows = self.rows.start as isize..self.rows.end as isize;
        self.picture.positions(rows)
    }

    /// Writes some rows, counted from the first that a filter sees.
    pub(super) fn fill<X: Element>(
        &self,
        x: &[X],
        into: &Shared<'_>,
        rows: Range<usize>,
        amx: Amx,
    ) {
        let (picture, pixel_len) = (self.picture, self.pixel_len());
        let margin = picture.margin_columns();
        if rows.start == 0 {
            // SAFETY: whoever writes the first row writes what is before it.
            unsafe { into.tile(0, margin * pixel_len) }.fill(0.0);
        }
        for row in rows {
            let start = (row * picture.row_len() + margin) * pixel_len;
            // SAFETY: rows are disjoint.
            let into = unsafe { into.tile(start, self.row_len()) };
            let row = (self.rows.start + row) as isize - picture.margin_rows() as isize;
            let Some(first) = picture.pixels(row) else {
                into.fill(0.0);
                continue;
            };
            let n_pixels = picture.row_len() - margin;
            let (pixels, zeros) = into.split_at_mut(n_pixels * pixel_len);
            zeros.fill(0.0);
            let x = &x[first * self.channels..][..n_pixels * self.channels];
            for (i, pixel) in pixels.chunks_exact_mut(pixel_len).enumerate() {
                amx.neighbors(&x[i * self.channels..][..self.channels], pixel);
            }
        }
    }
}
