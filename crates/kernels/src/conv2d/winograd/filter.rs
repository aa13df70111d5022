//! The filters of a convolution and their transforms.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::product::{Ahead, COLS};
use super::tile::load;
use super::transform::{self, IN, POSITIONS, TAPS};
use crate::cache::prefetch_to_l2;
use crate::cpu::{Isa, Shared};
use crate::transpose;

/// The weights of a convolution, `[3, 3, C_in, C_out]`, as it multiplies by them.
#[derive(Clone, Copy)]
pub(super) struct Filter<'a> {
    pub(super) weight: &'a [f32],
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    pub(super) direction: Direction,
}

/// Which convolution the weights are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// That of the forward pass.
    Forward,
    /// That of the input's gradient: turned by 180 degrees, channels exchanged.
    Turned,
}

/// Channels of a staged block in each direction.
const STAGE: usize = transpose::SIDE;

/// `[tap, depth, column]`.
type Staged = [[[f32; STAGE]; STAGE]; TAPS * TAPS];

/// Where the weights of a block are: those of a depth are `row_stride` apart, in each tap.
struct Taps {
    first: *const f32,
    stride: usize,
    row_stride: usize,
}

impl Filter<'_> {
    /// Channels that are summed over.
    pub(super) fn depth(&self) -> usize {
        match self.direction {
            Direction::Forward => self.c_in,
            Direction::Turned => self.c_out,
        }
    }

    /// Channels of the result.
    pub(super) fn cols(&self) -> usize {
        match self.direction {
            Direction::Forward => self.c_out,
            Direction::Turned => self.c_in,
        }
    }

    /// Weights of a tap from an input channel to all output channels.
    #[inline(always)]
    fn row(&self, tap: usize, c_in: usize) -> &[f32] {
        &self.weight[(tap * self.c_in + c_in) * self.c_out..][..self.c_out]
    }

    /// A block of weights as the convolution sees them: where they are, or as a copy in `staged` with
    /// zeros for columns beyond the last.
    #[inline(always)]
    fn taps(&self, isa: Isa, depth: Range<usize>, first_col: usize, staged: &mut Staged) -> Taps {
        let n_cols = self.cols().saturating_sub(first_col).min(STAGE);
        let is_whole = n_cols == STAGE;
        if self.direction == Direction::Forward && is_whole {
            return Taps {
                first: self.row(0, depth.start)[first_col..].as_ptr(),
                stride: self.c_in * self.c_out,
                row_stride: self.c_out,
            };
        }
        if !is_whole {
            *staged = [[[0.0; STAGE]; STAGE]; TAPS * TAPS];
        }
        for tap in 0..TAPS * TAPS {
            match self.direction {
                Direction::Forward => {
                    for (into, k) in staged[tap].iter_mut().zip(depth.clone()) {
                        let row = &self.row(tap, k)[first_col.min(self.c_out)..];
                        into[..n_cols].copy_from_slice(row);
                    }
                }
                Direction::Turned => {
                    let turned = &mut staged[TAPS * TAPS - 1 - tap];
                    self.turn(
                        isa,
                        tap,
                        depth.clone(),
                        first_col..first_col + n_cols,
                        turned,
                    );
                }
            }
        }
        Taps {
            first: staged.as_ptr().cast(),
            stride: STAGE * STAGE,
            row_stride: STAGE,
        }
    }

    /// Copies weights of a tap from some input channels, `cols`, to some output channels, the other
    /// way round.
    #[inline(always)]
    fn turn(
        &self,
        isa: Isa,
        tap: usize,
        depth: Range<usize>,
        cols: Range<usize>,
        turned: &mut [[f32; STAGE]; STAGE],
    ) {
        if cols.len() == STAGE && depth.len() == STAGE {
            let from = &self.weight[(tap * self.c_in + cols.start) * self.c_out + depth.start..];
            return transpose::square(isa, from, self.c_out, turned);
        }
        for (i, col) in cols.enumerate() {
            let row = &self.row(tap, col)[depth.clone()];
            for (into, &value) in turned.iter_mut().zip(row) {
                into[i] = value;
            }
        }
    }

    /// The weights from some depths to a panel of columns, for products to ask for.
    pub(super) fn ahead(&self, depth: Range<usize>, cols: Range<usize>) -> Ahead {
        let [c_in, c_out] = match self.direction {
            Direction::Forward => [depth, cols],
            Direction::Turned => [cols, depth],
        };
        let first = c_in.start * self.c_out + c_out.start;
        Ahead {
            first: self.weight.as_ptr().wrapping_add(first),
            matrix_stride: self.c_in * self.c_out,
            row_stride: self.c_out,
            n_rows: c_in.len(),
            row_len: c_out.len(),
        }
    }

    /// Asks for what the `k`th row of a block brings to the next one: rows of weights are too far
    /// apart for the hardware to foresee them.
    #[inline(always)]
    fn prefetch(&self, first_k: usize, k: usize, first_col: usize) {
        let next_k = first_k + STAGE;
        let [c_in, c_out] = match self.direction {
            Direction::Forward => [next_k + k, first_col],
            Direction::Turned => [first_col + k, next_k],
        };
        let next = self.weight.as_ptr().wrapping_add(c_in * self.c_out + c_out);
        for tap in 0..TAPS * TAPS {
            prefetch_to_l2(next.wrapping_add(tap * self.c_in * self.c_out));
        }
    }
}

/// Weights to their values at the points, `G g G^T`: `[36, depth, COLS]`.
pub(super) struct TransformFilter<'a> {
    pub(super) filter: Filter<'a>,
    pub(super) isa: Isa,
    pub(super) depth: Range<usize>,
    /// The first column of the panel.
    pub(super) first_col: usize,
    /// Different tasks write different panels or depths.
    pub(super) into: &'a Shared<'a>,
    /// Where the first depth goes; rows of [`COLS`] elements.
    pub(super) start: usize,
    pub(super) position_stride: usize,
}

impl WithSimd for TransformFilter<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            filter,
            isa,
            depth,
            first_col,
            into,
            start,
            position_stride,
        } = self;
        let end = (POSITIONS - 1) * position_stride + depth.len() * COLS;
        let into = into.pointer(start, end);
        let mut staged = [[[0.0; STAGE]; STAGE]; TAPS * TAPS];
        for first_k in depth.clone().step_by(STAGE) {
            let block = first_k..depth.end.min(first_k + STAGE);
            // A panel of which half is live is used in that half only.
            for half in (0..COLS).step_by(STAGE) {
                let first_col = first_col + half;
                if half > 0 && first_col >= filter.cols() {
                    break;
                }
                let taps = filter.taps(isa, block.clone(), first_col, &mut staged);
                for (k, row) in block.clone().enumerate() {
                    filter.prefetch(first_k, k, first_col);
                    for first in (0..STAGE).step_by(S::F32_LANES) {
                        let offset = (row - depth.start) * COLS + half + first;
                        // SAFETY: the taps are those of the block; there is a row for each depth at
                        // each position, and tasks write different ones.
                        unsafe {
                            let from = (taps.first.add(k * taps.row_stride + first), taps.stride);
                            let into = (into.add(offset), position_stride);
                            transform_weights(simd, from, into);
                        }
                    }
                }
            }
        }
    }
}

/// One vector of columns at one depth.
///
/// # Safety
/// `from` must be readable for a vector at each tap, `into` writable for one at each position.
#[inline(always)]
unsafe fn transform_weights<S: Simd>(
    simd: S,
    (from, tap_stride): (*const f32, usize),
    (into, position_stride): (*mut f32, usize),
) {
    transform::both_ways(
        #[inline(always)]
        |taps| transform::weight(simd, taps),
        #[inline(always)]
        |y, x| {
            // SAFETY: readable by contract.
            unsafe { load::<S, true>(simd, from.add((y * TAPS + x) * tap_stride), S::F32_LANES) }
        },
        #[inline(always)]
        |i, j, value| {
            // SAFETY: writable by contract.
            unsafe {
                let into = into.add((i * IN + j) * position_stride);
                into.cast::<S::f32s>().write_unaligned(value);
            }
        },
    );
}
