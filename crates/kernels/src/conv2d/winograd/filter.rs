//! The filters of a convolution, their gradients, and the transforms of both.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::product::{COLS, ROW_STEP};
use super::tile::{load, store};
use super::transform::{self, IN, POSITIONS, TAPS};
use crate::cpu::Shared;
use crate::scratch::LINE;

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
const STAGE: usize = LINE;

/// `[tap, depth, column]`.
type Staged = [[[f32; STAGE]; STAGE]; TAPS * TAPS];

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

    /// Copies a block of weights, as the convolution sees them; zeros for columns beyond the last.
    #[inline(always)]
    fn stage(&self, depth: Range<usize>, first_col: usize, staged: &mut Staged) {
        let n_cols = self.cols().saturating_sub(first_col).min(STAGE);
        if n_cols < STAGE {
            *staged = [[[0.0; STAGE]; STAGE]; TAPS * TAPS];
        }
        for tap in 0..TAPS * TAPS {
            let row = |c_in| &self.weight[(tap * self.c_in + c_in) * self.c_out..][..self.c_out];
            match self.direction {
                Direction::Forward => {
                    for (into, k) in staged[tap].iter_mut().zip(depth.clone()) {
                        let row = &row(k)[first_col.min(self.c_out)..];
                        if let Some(whole) = row.first_chunk::<STAGE>() {
                            *into = *whole;
                        } else {
                            into[..n_cols].copy_from_slice(row);
                        }
                    }
                }
                Direction::Turned => {
                    let turned = &mut staged[TAPS * TAPS - 1 - tap];
                    for col in 0..n_cols {
                        let row = &row(first_col + col)[depth.clone()];
                        for (into, &value) in turned.iter_mut().zip(row) {
                            into[col] = value;
                        }
                    }
                }
            }
        }
    }
}

/// Weights to their values at the points, `G g G^T`: `[36, depth, COLS]`.
pub(super) struct TransformFilter<'a> {
    pub(super) filter: Filter<'a>,
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
        let rows_len = self.depth.len() * COLS;
        let rows: [*mut f32; POSITIONS] = std::array::from_fn(|position| {
            let start = self.start + position * self.position_stride;
            // SAFETY: tasks write different panels or depths.
            unsafe { self.into.tile(start, rows_len) }.as_mut_ptr()
        });
        let mut staged = [[[0.0; STAGE]; STAGE]; TAPS * TAPS];
        for first_k in self.depth.clone().step_by(STAGE) {
            let depth = first_k..self.depth.end.min(first_k + STAGE);
            // A panel of which half is live is used in that half only.
            for half in (0..COLS).step_by(STAGE) {
                let first_col = self.first_col + half;
                if half > 0 && first_col >= self.filter.cols() {
                    break;
                }
                self.filter.stage(depth.clone(), first_col, &mut staged);
                for (k, row) in depth.clone().enumerate() {
                    for first in (0..STAGE).step_by(S::F32_LANES) {
                        let offset = (row - self.depth.start) * COLS + half + first;
                        // SAFETY: there is a row for each depth at each position.
                        unsafe { transform_weights(simd, &staged, [k, first], &rows, offset) };
                    }
                }
            }
        }
    }
}

/// One vector of columns at one depth.
///
/// # Safety
/// The rows must be writable for a vector at `offset`.
#[inline(always)]
unsafe fn transform_weights<S: Simd>(
    simd: S,
    staged: &Staged,
    [k, first]: [usize; 2],
    rows: &[*mut f32; POSITIONS],
    offset: usize,
) {
    transform::both_ways(
        #[inline(always)]
        |taps| transform::weight(simd, taps),
        #[inline(always)]
        |y, x| {
            let columns = &staged[y * TAPS + x][k][first..first + S::F32_LANES];
            // SAFETY: the slice holds a vector; any bits are valid.
            unsafe { columns.as_ptr().cast::<S::f32s>().read_unaligned() }
        },
        #[inline(always)]
        |i, j, value| {
            // SAFETY: writable by contract.
            unsafe {
                let into = rows[i * IN + j].add(offset);
                into.cast::<S::f32s>().write_unaligned(value);
            }
        },
    );
}

/// Distance of two positions of transformed weights: no multiple of 4 KiB, see `Layout`.
pub(super) fn position_stride(depth: usize) -> usize {
    depth * COLS + LINE
}

/// Length of the transformed weights of a panel.
pub(super) fn panel_len(depth: usize) -> usize {
    POSITIONS * position_stride(depth)
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
        for row in rows {
            for (panel, col) in sums.cols.clone().step_by(COLS).enumerate() {
                let n_cols = COLS.min(sums.cols.end - col);
                let from = panel * sums.panel_stride + (row - sums.rows.start) * COLS;
                let mut out = [std::ptr::null_mut(); TAPS * TAPS];
                for (tap, out) in out.iter_mut().enumerate() {
                    let start = (tap * c_in + row) * c_out + col;
                    // SAFETY: rows and columns of different tasks are disjoint.
                    *out = unsafe { d_weight.tile(start, n_cols) }.as_mut_ptr();
                }
                for first in (0..n_cols).step_by(S::F32_LANES) {
                    let n = S::F32_LANES.min(n_cols - first);
                    // SAFETY: the sums hold whole panels at each position, checked above; the
                    // results hold `n_cols`.
                    unsafe {
                        let from = (groups, from + first, sums.position_stride);
                        transform_sums(simd, from, (&out, first, n));
                    }
                }
            }
        }
    }
}

/// The gradients of one vector of weights, to `out` of each tap.
///
/// # Safety
/// Each group must hold a vector at `from` and each multiple of `position_stride` after it; `out`
/// be writable for `n` floats at `first`.
#[inline(always)]
unsafe fn transform_sums<S: Simd>(
    simd: S,
    (groups, from, position_stride): (&[&[f32]], usize, usize),
    (out, first, n): (&[*mut f32; TAPS * TAPS], usize, usize),
) {
    transform::both_ways(
        #[inline(always)]
        |u| transform::weight_gradient(simd, u),
        #[inline(always)]
        |i, j| {
            let from = from + (i * IN + j) * position_stride;
            let mut sum = simd.splat_f32s(0.0);
            for group in groups {
                // SAFETY: in bounds by contract.
                let value =
                    unsafe { load::<S, true>(simd, group.as_ptr().add(from), S::F32_LANES) };
                sum = simd.add_f32s(sum, value);
            }
            sum
        },
        #[inline(always)]
        |y, x, value| {
            // SAFETY: writable by contract.
            unsafe { store::<S, false>(simd, value, out[y * TAPS + x].add(first), n) };
        },
    );
}
