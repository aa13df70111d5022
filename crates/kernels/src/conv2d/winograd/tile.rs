//! Tiles of 4×4 positions of images, and where their transformed values lie.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::Simd;

use super::product::{COLS, DEPTH_CHUNK, ROW_STEP};
use super::transform::{OUT, POSITIONS};
use crate::scratch::LINE;

/// The tiles that cover some images, row by row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiles {
    n: usize,
    h: usize,
    w: usize,
    rows: usize,
    cols: usize,
}

impl Tiles {
    pub(super) fn new([n, h, w]: [usize; 3]) -> Self {
        let (rows, cols) = (h.div_ceil(OUT), w.div_ceil(OUT));
        Self {
            n,
            h,
            w,
            rows,
            cols,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.n * self.rows * self.cols
    }

    /// Calls `f(i * SIDE + j, position)` for the positions of the images that lie in the square of
    /// SIDE×SIDE whose first corner is `border` before the tile's.
    #[inline(always)]
    pub(super) fn for_each_position<const SIDE: usize>(
        &self,
        tile: usize,
        border: usize,
        mut f: impl FnMut(usize, usize),
    ) {
        let image = tile / (self.rows * self.cols);
        let (row, col) = (tile / self.cols % self.rows, tile % self.cols);
        for i in 0..SIDE {
            // Positions before the image wrap around to large numbers.
            let y = (row * OUT + i).wrapping_sub(border);
            if y >= self.h {
                continue;
            }
            for j in 0..SIDE {
                let x = (col * OUT + j).wrapping_sub(border);
                if x < self.w {
                    f(i * SIDE + j, (image * self.h + y) * self.w + x);
                }
            }
        }
    }
}

/// How the 36 transformed values of tiles and channels lie in memory: `[36, C / chunk, tile, chunk]`;
/// of filters, depths take the place of tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Channels side by side; a multiple of [`LINE`].
    pub(super) chunk: usize,
    pub(super) chunk_stride: usize,
    pub(super) position_stride: usize,
}

impl Layout {
    fn new(n_tiles: usize, channels: usize, chunk: usize) -> Self {
        let chunk_stride = n_tiles.next_multiple_of(ROW_STEP) * chunk;
        Self {
            chunk,
            chunk_stride,
            // Odd numbers of lines: otherwise positions may be whole 4 KiB apart, and the 36
            // values of a tile compete for the same few places of the first cache.
            position_stride: (channels.div_ceil(chunk) * chunk_stride).next_multiple_of(2 * LINE)
                + LINE,
        }
    }

    /// Left operand of a product over channels: rows are tiles.
    pub(super) fn tiles_by_channels(n_tiles: usize, channels: usize) -> Self {
        Self::new(n_tiles, channels, DEPTH_CHUNK)
    }

    /// Left operand of a product over tiles: rows are channels.
    pub(super) fn channels_by_tiles(n_tiles: usize, channels: usize) -> Self {
        Self::new(
            n_tiles,
            channels,
            channels.next_multiple_of(2 * LINE) + LINE,
        )
    }

    /// Right operand of a product over tiles, or depths: columns are channels.
    pub(super) fn panels(n_tiles: usize, channels: usize) -> Self {
        Self::new(n_tiles, channels, COLS)
    }

    pub(super) fn len(&self) -> usize {
        POSITIONS * self.position_stride
    }
}

/// Transformed values that several threads write, each those of its own tiles.
///
/// Like [`crate::cpu::Shared`], for places that lie apart: tasks must take different tiles.
pub(super) struct Planes<'a> {
    data: *mut f32,
    pub(super) layout: Layout,
    n_tiles: usize,
    pub(super) n_channels: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: nothing is read through it, and tasks write different tiles.
unsafe impl Sync for Planes<'_> {}

impl<'a> Planes<'a> {
    /// Room for `n_tiles` of `n_channels`.
    pub(super) fn new(
        data: &'a mut [f32],
        layout: Layout,
        [n_tiles, n_channels]: [usize; 2],
    ) -> Self {
        assert!(data.len() >= layout.len() && layout.chunk.is_multiple_of(LINE));
        let n_chunks = n_channels.div_ceil(layout.chunk);
        assert!(layout.chunk_stride >= n_tiles * layout.chunk);
        assert!(layout.position_stride >= n_chunks * layout.chunk_stride);
        Self {
            data: data.as_mut_ptr(),
            layout,
            n_tiles,
            n_channels,
            lifetime: PhantomData,
        }
    }

    /// Calls `f(channels, pointer)` for each vector of the tile's channels; the pointer is that of
    /// position 0, and all positions have room for a whole vector.
    #[inline(always)]
    pub(super) fn for_each_vector(
        &self,
        tile: usize,
        lanes: usize,
        mut f: impl FnMut(Range<usize>, *mut f32),
    ) {
        assert!(tile < self.n_tiles && LINE.is_multiple_of(lanes));
        let mut chunk = self.data.wrapping_add(tile * self.layout.chunk);
        for first in (0..self.n_channels).step_by(self.layout.chunk) {
            let end = self.n_channels.min(first + self.layout.chunk);
            for channel in (first..end).step_by(lanes) {
                let vector = channel..self.n_channels.min(channel + lanes);
                f(vector, chunk.wrapping_add(channel - first));
            }
            chunk = chunk.wrapping_add(self.layout.chunk_stride);
        }
    }
}

/// A vector from as many channels as there are, the rest 0.
///
/// # Safety
/// `from` must be readable for `n` floats, at most a vector; a vector if `WHOLE`.
#[inline(always)]
pub(super) unsafe fn load<S: Simd, const WHOLE: bool>(
    simd: S,
    from: *const f32,
    n: usize,
) -> S::f32s {
    // SAFETY: readable by contract; vectors of f32 have no invalid bit patterns.
    unsafe {
        if WHOLE {
            from.cast::<S::f32s>().read_unaligned()
        } else {
            simd.partial_load_f32s(std::slice::from_raw_parts(from, n))
        }
    }
}

/// As many channels of a vector as there are.
///
/// # Safety
/// `into` must be writable for `n` floats, at most a vector; a vector if `WHOLE`.
#[inline(always)]
pub(super) unsafe fn store<S: Simd, const WHOLE: bool>(
    simd: S,
    values: S::f32s,
    into: *mut f32,
    n: usize,
) {
    // SAFETY: writable by contract.
    unsafe {
        if WHOLE {
            into.cast::<S::f32s>().write_unaligned(values);
        } else {
            simd.partial_store_f32s(std::slice::from_raw_parts_mut(into, n), values);
        }
    }
}
