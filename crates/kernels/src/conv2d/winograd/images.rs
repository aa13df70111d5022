//! The two-dimensional transforms of tiles of images.

use std::cell::Cell;
use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::tile::{Planes, Tiles, load, store};
use super::transform::{self, IN, OUT, POSITIONS};
use crate::cache::{prefetch_line, prefetch_to_write};
use crate::cpu::Shared;
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
        let stride = self.into.layout.position_stride;
        let mut sources = [[std::ptr::null(); POSITIONS]; 2];
        self.locate(self.range.start, &mut sources[0]);
        for (idx, tile) in self.range.clone().enumerate() {
            if tile + 1 < self.range.end {
                self.locate(tile + 1, &mut sources[(idx + 1) % 2]);
            }
            let [now, next] = [&sources[idx % 2], &sources[(idx + 1) % 2]];
            self.into.for_each_vector(
                self.slot + idx,
                S::F32_LANES,
                #[inline(always)]
                |channels, out| {
                    prefetch_inner(next, channels.start);
                    // SAFETY: each source has the channels of `part`; `into` has room for a vector
                    // at each position by the contract of `for_each_vector`.
                    unsafe {
                        if channels.len() == S::F32_LANES {
                            transform_input::<S, true>(simd, now, &channels, (out, stride));
                        } else {
                            transform_input::<S, false>(simd, now, &channels, (out, stride));
                        }
                    }
                },
            );
        }
    }
}

impl TransformInput<'_> {
    /// Where the positions of a tile are: in the images, or among the zeros around them.
    ///
    /// A call, so that the addresses stay in one place: inlined, the compiler moves each of them
    /// along the channels, one by one, which took as long as the transform.
    #[inline(never)]
    fn locate(&self, tile: usize, sources: &mut [*const f32; POSITIONS]) {
        *sources = [self.zeros[..self.part.len()].as_ptr(); POSITIONS];
        self.tiles
            .for_each_position::<IN>(tile, 1, |idx, position| {
                let channels = &self.x[position * self.channels..][..self.channels];
                sources[idx] = channels[self.part.clone()].as_ptr();
            });
    }
}

/// Asks for the positions of a tile that those above it and to its left do not have.
#[inline(always)]
fn prefetch_inner(sources: &[*const f32; POSITIONS], channel: usize) {
    for i in IN - OUT..IN {
        for j in IN - OUT..IN {
            prefetch_line(sources[i * IN + j].wrapping_add(channel));
        }
    }
}

/// One vector of channels of one tile.
///
/// # Safety
/// Each source must be readable for `channels`, which are a vector if `WHOLE`; `out` writable for a
/// vector at each position.
#[inline(always)]
unsafe fn transform_input<S: Simd, const WHOLE: bool>(
    simd: S,
    sources: &[*const f32; POSITIONS],
    channels: &Range<usize>,
    (out, position_stride): (*mut f32, usize),
) {
    transform::both_ways(
        #[inline(always)]
        |d| transform::input(simd, d),
        #[inline(always)]
        |i, j| {
            // SAFETY: readable by contract.
            unsafe {
                let source = sources[i * IN + j].add(channels.start);
                load::<S, WHOLE>(simd, source, channels.len())
            }
        },
        #[inline(always)]
        |i, j, value| {
            // SAFETY: writable by contract.
            unsafe {
                let out = out.add((i * IN + j) * position_stride);
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
    /// At least as many zeros.
    pub(super) zeros: &'a [f32],
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
        let stride = self.into.layout.position_stride;
        let mut sources = [[std::ptr::null(); OUT * OUT]; 2];
        self.locate(self.range.start, &mut sources[0]);
        for (idx, tile) in self.range.clone().enumerate() {
            if tile + 1 < self.range.end {
                self.locate(tile + 1, &mut sources[(idx + 1) % 2]);
            }
            let [now, next] = [&sources[idx % 2], &sources[(idx + 1) % 2]];
            self.into.for_each_vector(
                self.slot + idx,
                S::F32_LANES,
                #[inline(always)]
                |channels, out| {
                    for source in next {
                        prefetch_line(source.wrapping_add(channels.start));
                    }
                    // SAFETY: each source has the channels of `part`; `bias` has whole vectors;
                    // `into` has room for a vector at each position by the contract of
                    // `for_each_vector`.
                    unsafe {
                        let bias = bias.add(channels.start);
                        let into = (out, stride, bias);
                        if channels.len() == S::F32_LANES {
                            transform_gradient::<S, true>(simd, now, &channels, into);
                        } else {
                            transform_gradient::<S, false>(simd, now, &channels, into);
                        }
                    }
                },
            );
        }
    }
}

impl TransformGradient<'_> {
    /// Where the positions of a tile are: in the images, or zeros. A call: see that of the inputs.
    #[inline(never)]
    fn locate(&self, tile: usize, sources: &mut [*const f32; OUT * OUT]) {
        *sources = [self.zeros[..self.part.len()].as_ptr(); OUT * OUT];
        self.tiles
            .for_each_position::<OUT>(tile, 0, |idx, position| {
                let channels = &self.d_y[position * self.channels..][..self.channels];
                sources[idx] = channels[self.part.clone()].as_ptr();
            });
    }
}

/// One vector of channels of one tile.
///
/// # Safety
/// Each source must be readable for `channels`, which are a vector if `WHOLE`; `bias` readable and
/// writable for a vector, `out` writable for one at each position.
#[inline(always)]
unsafe fn transform_gradient<S: Simd, const WHOLE: bool>(
    simd: S,
    sources: &[*const f32; OUT * OUT],
    channels: &Range<usize>,
    (out, position_stride, bias): (*mut f32, usize, *mut f32),
) {
    let sum = Cell::new(simd.splat_f32s(0.0));
    transform::both_ways(
        #[inline(always)]
        |g| transform::output_gradient(simd, g),
        #[inline(always)]
        |i, j| {
            // SAFETY: readable by contract.
            let value = unsafe {
                let source = sources[i * OUT + j].add(channels.start);
                load::<S, WHOLE>(simd, source, channels.len())
            };
            sum.set(simd.add_f32s(sum.get(), value));
            value
        },
        #[inline(always)]
        |i, j, value| {
            // SAFETY: writable by contract.
            unsafe {
                let out = out.add((i * IN + j) * position_stride);
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
        let mut places = [[Place::default(); OUT * OUT]; 2];
        self.locate(self.range.start, &mut places[0]);
        for (slot, tile) in self.range.clone().enumerate() {
            if tile + 1 < self.range.end {
                self.locate(tile + 1, &mut places[(slot + 1) % 2]);
            }
            let [now, next] = [&places[slot % 2], &places[(slot + 1) % 2]];
            for first in (0..n).step_by(S::F32_LANES) {
                let channels = first..n.min(first + S::F32_LANES);
                let m = self.m.as_ptr().wrapping_add(slot * self.m_row + first);
                for place in next {
                    prefetch_to_write(place.y.wrapping_add(first));
                }
                // SAFETY: `m` has rows of whole vectors, checked above; places are null or hold
                // the channels of `part`, and so does the bias.
                unsafe {
                    let m = (m, self.m_position);
                    if channels.len() == S::F32_LANES {
                        transform_output::<S, true>(simd, m, bias, now, &channels);
                    } else {
                        transform_output::<S, false>(simd, m, bias, now, &channels);
                    }
                }
            }
        }
    }
}

impl TransformOutput<'_> {
    /// Where the outputs of a tile go. A call: see that of the inputs.
    #[inline(never)]
    fn locate(&self, tile: usize, places: &mut [Place; OUT * OUT]) {
        let n = self.part.len();
        *places = [Place::default(); OUT * OUT];
        self.tiles
            .for_each_position::<OUT>(tile, 0, |idx, position| {
                let start = position * self.channels + self.part.start;
                places[idx] = Place {
                    y: self.y.pointer(start, n),
                    residual: self
                        .residual
                        .map_or(std::ptr::null(), |r| r[start..start + n].as_ptr()),
                };
            });
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
/// `m` must be readable for a vector at each position, places be null or valid for `channels`, which
/// are a vector if `WHOLE`; the bias must have them.
#[inline(always)]
unsafe fn transform_output<S: Simd, const WHOLE: bool>(
    simd: S,
    (m, m_position): (*const f32, usize),
    bias: Option<&[f32]>,
    places: &[Place; OUT * OUT],
    channels: &Range<usize>,
) {
    let (first, n) = (channels.start, channels.len());
    let bias = bias.map_or(simd.splat_f32s(0.0), |bias| {
        // SAFETY: readable by contract.
        unsafe { load::<S, WHOLE>(simd, bias.as_ptr().add(first), n) }
    });
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
            let place = &places[i * OUT + j];
            if place.y.is_null() {
                return;
            }
            // SAFETY: valid by contract.
            unsafe {
                let mut value = simd.add_f32s(value, bias);
                if !place.residual.is_null() {
                    let residual = load::<S, WHOLE>(simd, place.residual.add(first), n);
                    value = simd.add_f32s(value, residual);
                }
                store::<S, WHOLE>(simd, value, place.y.add(first), n);
            }
        },
    );
}
