//! Sums of products over tiles, and how they become the gradients of weights.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::super::product::{COLS, ROW_STEP};
use super::super::tile::{load, store};
use super::super::transform::{self, IN, POSITIONS, TAPS};
use crate::cache::{can_stream, finish_streams, prefetch_to_write, stream};
use crate::cpu::Shared;
use crate::scratch::LINE;

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
                    let how = match n_cols - first {
                        n if n < S::F32_LANES => Store::Part(n),
                        _ if streams => Store::Stream,
                        _ => Store::Whole,
                    };
                    // SAFETY: the sums hold whole panels at each position, checked above; the
                    // results hold `n_cols`; lines are streamed where they can be.
                    unsafe {
                        let (from, into) = ((from.0.add(first), from.1), into.add(first));
                        if !streams {
                            for tap in 0..TAPS * TAPS {
                                prefetch_to_write(into.wrapping_add(tap * tap_stride + c_out));
                            }
                        }
                        transform_sums(simd, from, (into, tap_stride), how);
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

/// How a vector of gradients is stored.
#[derive(Clone, Copy)]
enum Store {
    /// As many as there are.
    Part(usize),
    Whole,
    /// Past the caches: nobody reads the gradients before those of all other weights are there.
    Stream,
}

/// The gradients of one vector of weights.
///
/// # Safety
/// `from` must be readable for a vector at each position, `into` writable at each tap for what is
/// stored.
#[inline(always)]
unsafe fn transform_sums<S: Simd>(
    simd: S,
    (from, position_stride): (*const f32, usize),
    (into, tap_stride): (*mut f32, usize),
    how: Store,
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
        |y, x, values| {
            // SAFETY: writable by contract.
            unsafe {
                let into = into.add((y * TAPS + x) * tap_stride);
                match how {
                    Store::Part(n) => store::<S, false>(simd, values, into, n),
                    Store::Whole => store::<S, true>(simd, values, into, S::F32_LANES),
                    Store::Stream => stream::<S>(values, into),
                }
            }
        },
    );
}
