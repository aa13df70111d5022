//! The filters of a convolution, their gradients, and the transforms of both.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::product::{Ahead, COLS, ROW_STEP};
use super::tile::{load, store};
use super::transform::{self, IN, POSITIONS, TAPS};
use crate::cache::{can_stream, finish_streams, prefetch_to_l2, prefetch_to_write, stream};
use crate::cpu::{Isa, Shared};
use crate::scratch::LINE;
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

/// Sums of products of some input and output channels, `[36, panel, row, COLS]`.
pub(super) struct SumsLayout {
    pub(super) rows: Range<usize>,
    /// Starts at a panel.
    pub(super) cols: Range<usize>,
    pub(super) panel_stride: usize,
    pub(super) position_stride: usize,
}

impl SumsLayout {
    pub(super) fn new([rows, cols]: [Range<usize>; 2]) -> Self {
        let panel_stride = rows.len().next_multiple_of(ROW_STEP) * COLS;
        Self {
            panel_stride,
            position_stride: cols.len().div_ceil(COLS) * panel_stride + LINE,
            rows,
            cols,
        }
    }

    pub(super) fn len(&self) -> usize {
        POSITIONS * self.position_stride
    }
}

/// Adds the sums of all groups and transforms them to gradients of weights: `G^T u G`.
pub(super) struct TransformSums<'a> {
    pub(super) sums: &'a SumsLayout,
    pub(super) groups: &'a [&'a [f32]],
    /// Part of the rows of `sums`.
    pub(super) rows: Range<usize>,
    /// `[3, 3, C_in, C_out]`, of which the rows and the columns of `sums` are written.
    pub(super) d_weight: &'a Shared<'a>,
    pub(super) channels: [usize; 2],
}

impl WithSimd for TransformSums<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            sums,
            groups,
            rows,
            d_weight,
            channels: [c_in, c_out],
        } = self;
        assert!(groups.iter().all(|group| group.len() >= sums.len()));
        assert!(sums.rows.start <= rows.start && rows.end <= sums.rows.end);
        let mut added = [0.0; POSITIONS * COLS];
        for row in rows {
            for (panel, col) in sums.cols.clone().step_by(COLS).enumerate() {
                let n_cols = COLS.min(sums.cols.end - col);
                let from = panel * sums.panel_stride + (row - sums.rows.start) * COLS;
                let from = match groups {
                    [group] => (group[from..].as_ptr(), sums.position_stride),
                    groups => {
                        add_groups(simd, groups, (from, sums.position_stride), &mut added);
                        (added.as_ptr(), COLS)
                    }
                };
                let tap_stride = c_in * c_out;
                let last = (TAPS * TAPS - 1) * tap_stride;
                // SAFETY: rows and columns of different tasks are disjoint.
                let into = d_weight.pointer(row * c_out + col, last + n_cols);
                let streams = can_stream::<S>(into, c_out);
                for first in (0..n_cols).step_by(S::F32_LANES) {
                    let n = S::F32_LANES.min(n_cols - first);
                    // SAFETY: the sums hold whole panels at each position, checked above; the
                    // results hold `n_cols`; lines are streamed where they can be.
                    unsafe {
                        let from = (from.0.add(first), from.1);
                        let into = into.add(first);
                        if n < S::F32_LANES {
                            transform_sums(
                                simd,
                                from,
                                #[inline(always)]
                                |tap, values| {
                                    store::<S, false>(simd, values, into.add(tap * tap_stride), n);
                                },
                            );
                        } else if streams {
                            transform_sums(
                                simd,
                                from,
                                #[inline(always)]
                                |tap, values| stream::<S>(values, into.add(tap * tap_stride)),
                            );
                        } else {
                            transform_sums(
                                simd,
                                from,
                                #[inline(always)]
                                |tap, values| {
                                    let into = into.add(tap * tap_stride);
                                    prefetch_to_write(into.wrapping_add(c_out));
                                    store::<S, true>(simd, values, into, n);
                                },
                            );
                        }
                    }
                }
            }
        }
        finish_streams();
    }
}

/// Adds the sums of a row of a panel of all groups, in order.
#[inline(always)]
fn add_groups<S: Simd>(
    simd: S,
    groups: &[&[f32]],
    (from, position_stride): (usize, usize),
    added: &mut [f32; POSITIONS * COLS],
) {
    for (position, added) in added.chunks_exact_mut(COLS).enumerate() {
        let (added, _) = S::as_mut_simd_f32s(added);
        added.fill(simd.splat_f32s(0.0));
        for group in groups {
            let (group, _) = S::as_simd_f32s(&group[from + position * position_stride..][..COLS]);
            for (added, &value) in added.iter_mut().zip(group) {
                *added = simd.add_f32s(*added, value);
            }
        }
    }
}

/// The gradients of one vector of weights, each given to `store` with its tap.
///
/// # Safety
/// `from` must be readable for a vector at each position.
#[inline(always)]
unsafe fn transform_sums<S: Simd>(
    simd: S,
    (from, position_stride): (*const f32, usize),
    mut store: impl FnMut(usize, S::f32s),
) {
    transform::both_ways(
        #[inline(always)]
        |u| transform::weight_gradient(simd, u),
        #[inline(always)]
        |i, j| {
            // SAFETY: readable by contract.
            unsafe {
                let from = from.add((i * IN + j) * position_stride);
                load::<S, true>(simd, from, S::F32_LANES)
            }
        },
        #[inline(always)]
        |y, x, value| store(y * TAPS + x, value),
    );
}
