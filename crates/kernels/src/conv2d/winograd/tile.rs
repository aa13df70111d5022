//! Tiles of 4×4 positions of an image, and their two-dimensional transforms.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::product::{COLS, DEPTH_CHUNK, ROW_STEP};
use super::scratch::LINE;
use super::transform::{self, IN, OUT, POSITIONS};
use crate::cpu::Shared;

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
    fn for_each_position<const SIDE: usize>(
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

/// How the 36 transformed values of tiles and channels lie in memory: `[36, C / chunk, tile, chunk]`.
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

    /// Right operand of a product over tiles: columns are channels.
    pub(super) fn panels(n_tiles: usize, channels: usize) -> Self {
        Self::new(n_tiles, channels, COLS)
    }

    pub(super) fn len(&self) -> usize {
        POSITIONS * self.position_stride
    }
}

/// Transformed values that several threads write, each those of its own tiles.
pub(super) struct Planes<'a> {
    data: *mut f32,
    layout: Layout,
    n_tiles: usize,
    n_channels: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: writers promise to touch different tiles.
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
    fn for_each_vector(
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
/// `from` must be readable for `n` floats, at most a vector.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(simd: S, from: *const f32, n: usize) -> S::f32s {
    // SAFETY: readable by contract; vectors of f32 have no invalid bit patterns.
    unsafe {
        if n == S::F32_LANES {
            from.cast::<S::f32s>().read_unaligned()
        } else {
            simd.partial_load_f32s(std::slice::from_raw_parts(from, n))
        }
    }
}

/// As many channels of a vector as there are.
///
/// # Safety
/// `into` must be writable for `n` floats, at most a vector.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(simd: S, values: S::f32s, into: *mut f32, n: usize) {
    // SAFETY: writable by contract.
    unsafe {
        if n == S::F32_LANES {
            into.cast::<S::f32s>().write_unaligned(values);
        } else {
            simd.partial_store_f32s(std::slice::from_raw_parts_mut(into, n), values);
        }
    }
}

/// Inputs of tiles, with zeros around the images, to their values at the points: `B^T d B`.
pub(super) struct TransformInput<'a> {
    pub(super) tiles: Tiles,
    /// `[N, H, W, channels]`.
    pub(super) x: &'a [f32],
    pub(super) channels: usize,
    /// As many zeros as there are channels.
    pub(super) zeros: &'a [f32],
    pub(super) range: Range<usize>,
    pub(super) into: &'a Planes<'a>,
    /// Where the first tile goes.
    pub(super) slot: usize,
}

impl WithSimd for TransformInput<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        assert_eq!(self.into.n_channels, self.channels);
        for (tile, slot) in self.range.clone().zip(self.slot..) {
            let mut sources = [self.zeros[..self.channels].as_ptr(); POSITIONS];
            self.tiles.for_each_position::<IN>(
                tile,
                1,
                #[inline(always)]
                |idx, position| {
                    let channels = &self.x[position * self.channels..][..self.channels];
                    sources[idx] = channels.as_ptr();
                },
            );
            self.into.for_each_vector(
                slot,
                S::F32_LANES,
                #[inline(always)]
                |channels, out| {
                    // SAFETY: each source has all channels; `into` has room for a vector
                    // at each position by the contract of `for_each_vector`.
                    unsafe {
                        transform_input(simd, &sources, &channels, out, &self.into.layout);
                    }
                },
            );
        }
    }
}

/// One vector of channels of one tile.
///
/// # Safety
/// Each source must be readable for `channels`, `out` writable for a vector at each position.
#[inline(always)]
unsafe fn transform_input<S: Simd>(
    simd: S,
    sources: &[*const f32; POSITIONS],
    channels: &Range<usize>,
    out: *mut f32,
    layout: &Layout,
) {
    transform::both_ways(
        #[inline(always)]
        |d| transform::input(simd, d),
        #[inline(always)]
        |i, j| {
            // SAFETY: readable by contract.
            unsafe {
                let source = sources[i * IN + j].add(channels.start);
                load(simd, source, channels.len())
            }
        },
        #[inline(always)]
        |i, j, value| {
            // SAFETY: writable by contract.
            unsafe {
                let out = out.add((i * IN + j) * layout.position_stride);
                out.cast::<S::f32s>().write_unaligned(value);
            }
        },
    );
}

/// Output gradients of tiles, zero outside of the images, to their values at the points: `A g A^T`.
pub(super) struct TransformGradient<'a> {
    pub(super) tiles: Tiles,
    /// `[N, H, W, channels]`.
    pub(super) d_y: &'a [f32],
    pub(super) channels: usize,
    pub(super) range: Range<usize>,
    pub(super) into: &'a Planes<'a>,
    /// Where the first tile goes.
    pub(super) slot: usize,
    /// The sum over all positions is added to this; whole vectors of channels.
    pub(super) bias: &'a mut [f32],
}

impl WithSimd for TransformGradient<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        assert_eq!(self.into.n_channels, self.channels);
        assert!(self.bias.len() >= self.channels.next_multiple_of(LINE));
        let bias = self.bias.as_mut_ptr();
        for (tile, slot) in self.range.clone().zip(self.slot..) {
            let mut sources = [std::ptr::null(); OUT * OUT];
            self.tiles.for_each_position::<OUT>(
                tile,
                0,
                #[inline(always)]
                |idx, position| {
                    let channels = &self.d_y[position * self.channels..][..self.channels];
                    sources[idx] = channels.as_ptr();
                },
            );
            self.into.for_each_vector(
                slot,
                S::F32_LANES,
                #[inline(always)]
                |channels, out| {
                    // SAFETY: each source is null or has all channels; `bias` has whole vectors;
                    // `into` has room for a vector at each position by the contract of
                    // `for_each_vector`.
                    unsafe {
                        let bias = bias.add(channels.start);
                        transform_gradient(simd, &sources, &channels, out, bias, &self.into.layout);
                    }
                },
            );
        }
    }
}

/// One vector of channels of one tile.
///
/// # Safety
/// Each source must be null or readable for `channels`, `bias` readable and writable for a vector,
/// `out` writable for one at each position.
#[inline(always)]
unsafe fn transform_gradient<S: Simd>(
    simd: S,
    sources: &[*const f32; OUT * OUT],
    channels: &Range<usize>,
    out: *mut f32,
    bias: *mut f32,
    layout: &Layout,
) {
    let sum = Cell::new(simd.splat_f32s(0.0));
    transform::both_ways(
        #[inline(always)]
        |g| transform::output_gradient(simd, g),
        #[inline(always)]
        |i, j| {
            let source = sources[i * OUT + j];
            if source.is_null() {
                return simd.splat_f32s(0.0);
            }
            // SAFETY: readable by contract.
            let value = unsafe { load(simd, source.add(channels.start), channels.len()) };
            sum.set(simd.add_f32s(sum.get(), value));
            value
        },
        #[inline(always)]
        |i, j, value| {
            // SAFETY: writable by contract.
            unsafe {
                let out = out.add((i * IN + j) * layout.position_stride);
                out.cast::<S::f32s>().write_unaligned(value);
            }
        },
    );
    // SAFETY: readable and writable by contract.
    unsafe {
        let before = bias.cast::<S::f32s>().read_unaligned();
        let after = simd.add_f32s(before, sum.get());
        bias.cast::<S::f32s>().write_unaligned(after);
    }
}

/// Products of tiles to outputs: `A^T m A`, plus bias and residual.
pub(super) struct TransformOutput<'a> {
    pub(super) tiles: Tiles,
    /// `[36, tile, m_row]`, positions `m_position` apart; the first tile is that of `range`.
    pub(super) m: &'a [f32],
    pub(super) m_position: usize,
    pub(super) m_row: usize,
    pub(super) range: Range<usize>,
    /// `[N, H, W, channels]`, like `residual`.
    pub(super) y: &'a Shared<'a>,
    pub(super) channels: usize,
    /// The channels to write: the columns of `m`.
    pub(super) part: Range<usize>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) residual: Option<&'a [f32]>,
}

impl WithSimd for TransformOutput<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let n = self.part.len();
        assert!(n.next_multiple_of(LINE) <= self.m_row && LINE.is_multiple_of(S::F32_LANES));
        let m_end = (POSITIONS - 1) * self.m_position + self.range.len() * self.m_row;
        assert!(m_end <= self.m.len());
        let bias = self.bias.map(|bias| &bias[self.part.clone()]);
        for (slot, tile) in self.range.clone().enumerate() {
            let mut places = [Place::default(); OUT * OUT];
            self.tiles.for_each_position::<OUT>(
                tile,
                0,
                #[inline(always)]
                |idx, position| {
                    let start = position * self.channels + self.part.start;
                    places[idx] = Place {
                        // SAFETY: tiles and parts of channels are disjoint.
                        y: unsafe { self.y.tile(start, n) }.as_mut_ptr(),
                        residual: self
                            .residual
                            .map_or(std::ptr::null(), |r| r[start..start + n].as_ptr()),
                    };
                },
            );
            for first in (0..n).step_by(S::F32_LANES) {
                let channels = first..n.min(first + S::F32_LANES);
                let m = self.m.as_ptr().wrapping_add(slot * self.m_row + first);
                // SAFETY: `m` has rows of whole vectors, checked above; places are null or hold
                // the channels of `part`, and so does the bias.
                unsafe {
                    let bias = bias.map_or(simd.splat_f32s(0.0), |bias| {
                        load(simd, bias.as_ptr().add(first), channels.len())
                    });
                    transform_output(simd, (m, self.m_position), bias, &places, &channels);
                }
            }
        }
    }
}

/// Where an output goes and what is added to it; null outside of the image, or for no residual.
#[derive(Clone, Copy)]
struct Place {
    y: *mut f32,
    residual: *const f32,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            y: std::ptr::null_mut(),
            residual: std::ptr::null(),
        }
    }
}

/// One vector of channels of one tile.
///
/// # Safety
/// `m` must be readable for a vector at each position, places be null or valid for `channels`.
#[inline(always)]
unsafe fn transform_output<S: Simd>(
    simd: S,
    (m, m_position): (*const f32, usize),
    bias: S::f32s,
    places: &[Place; OUT * OUT],
    channels: &Range<usize>,
) {
    transform::both_ways(
        #[inline(always)]
        |m| transform::output(simd, m),
        #[inline(always)]
        |i, j| {
            // SAFETY: readable by contract.
            unsafe {
                let from = m.add((i * IN + j) * m_position);
                from.cast::<S::f32s>().read_unaligned()
            }
        },
        #[inline(always)]
        |i, j, value| {
            let place = places[i * OUT + j];
            if place.y.is_null() {
                return;
            }
            // SAFETY: valid by contract.
            unsafe {
                let mut value = simd.add_f32s(value, bias);
                if !place.residual.is_null() {
                    let residual = place.residual.add(channels.start);
                    value = simd.add_f32s(value, load(simd, residual, channels.len()));
                }
                store(simd, value, place.y.add(channels.start), channels.len());
            }
        },
    );
}
