//! The two-dimensional transforms of tiles of images.

use std::cell::Cell;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::tile::{Layout, Planes, Tiles, load, store};
use super::transform::{self, IN, OUT, POSITIONS};
use crate::cpu::Shared;
use crate::gather::{prefetch_line, prefetch_to_write};
use crate::scratch::LINE;

/// Inputs of tiles, with zeros around the images, to their values at the points: `B^T d B`.
pub(super) struct TransformInput<'a> {
    pub(super) tiles: Tiles,
    /// `[N, H, W, channels]`.
    pub(super) x: &'a [f32],
    pub(super) channels: usize,
    /// The channels to transform: those of `into`.
    pub(super) part: Range<usize>,
    /// At least as many zeros.
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
        assert_eq!(self.into.n_channels, self.part.len());
        let mut next = self.sources(self.range.start);
        for (tile, slot) in self.range.clone().zip(self.slot..) {
            let sources = next;
            if tile + 1 < self.range.end {
                next = self.sources(tile + 1);
            }
            self.into.for_each_vector(
                slot,
                S::F32_LANES,
                #[inline(always)]
                |channels, out| {
                    for source in &next {
                        prefetch_line(source.wrapping_add(channels.start));
                    }
                    // SAFETY: each source has the channels of `part`; `into` has room for a vector
                    // at each position by the contract of `for_each_vector`.
                    unsafe {
                        transform_input(simd, &sources, &channels, out, &self.into.layout);
                    }
                },
            );
        }
    }
}

impl TransformInput<'_> {
    /// Where the positions of a tile are: in the images, or among the zeros around them.
    #[inline(always)]
    fn sources(&self, tile: usize) -> [*const f32; POSITIONS] {
        let mut sources = [self.zeros[..self.part.len()].as_ptr(); POSITIONS];
        self.tiles.for_each_position::<IN>(
            tile,
            1,
            #[inline(always)]
            |idx, position| {
                let channels = &self.x[position * self.channels..][..self.channels];
                sources[idx] = channels[self.part.clone()].as_ptr();
            },
        );
        sources
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
    /// The channels to transform: those of `into`.
    pub(super) part: Range<usize>,
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
        assert_eq!(self.into.n_channels, self.part.len());
        assert!(self.bias.len() >= self.part.len().next_multiple_of(LINE));
        let bias = self.bias.as_mut_ptr();
        let mut next = self.sources(self.range.start);
        for (tile, slot) in self.range.clone().zip(self.slot..) {
            let sources = next;
            if tile + 1 < self.range.end {
                next = self.sources(tile + 1);
            }
            self.into.for_each_vector(
                slot,
                S::F32_LANES,
                #[inline(always)]
                |channels, out| {
                    for source in &next {
                        prefetch_line(source.wrapping_add(channels.start));
                    }
                    // SAFETY: each source is null or has the channels of `part`; `bias` has whole vectors;
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

impl TransformGradient<'_> {
    /// Where the positions of a tile are; null outside of the images.
    #[inline(always)]
    fn sources(&self, tile: usize) -> [*const f32; OUT * OUT] {
        let mut sources = [std::ptr::null(); OUT * OUT];
        self.tiles.for_each_position::<OUT>(
            tile,
            0,
            #[inline(always)]
            |idx, position| {
                let channels = &self.d_y[position * self.channels..][..self.channels];
                sources[idx] = channels[self.part.clone()].as_ptr();
            },
        );
        sources
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
        let mut next = self.places(self.range.start);
        for (slot, tile) in self.range.clone().enumerate() {
            let places = next;
            if tile + 1 < self.range.end {
                next = self.places(tile + 1);
            }
            for first in (0..n).step_by(S::F32_LANES) {
                let channels = first..n.min(first + S::F32_LANES);
                let m = self.m.as_ptr().wrapping_add(slot * self.m_row + first);
                for place in &next {
                    prefetch_to_write(place.y.wrapping_add(first));
                }
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

impl TransformOutput<'_> {
    /// Where the outputs of a tile go.
    #[inline(always)]
    fn places(&self, tile: usize) -> [Place; OUT * OUT] {
        let n = self.part.len();
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
        places
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
