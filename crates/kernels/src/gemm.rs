//! The two matrix products under every layer: rows times a matrix in panels, and sums of outer products.
//!
//! Every output element is one chain of multiply-adds in the order of k, whatever block it is
//! computed in. So how the rows are blocked, batched or threaded changes no bit of a result.

mod outer;

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::cache::{prefetch_line, prefetch_to_write, prefetch_vectors};
use crate::cpu::{Isa, Shared};
use crate::lanes::{add, copy, load, read, store, write};
use crate::panels::{COLS, Panels};
use crate::scratch::LINE;
pub(crate) use outer::{OuterProducts, ROW_STEP};

/// Rows of one block. Blocks with fewer live rows point the others at any readable row.
pub(crate) const ROWS: usize = 12;

/// How far ahead of the sums rows are asked for. The hardware foresees them within a page alone;
/// from much farther ahead, rows at distances of powers of two would push each other out.
const PREFETCHED: usize = 8;

/// What a product's rows start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same row everywhere, `[n]`.
    Bias(&'a [f32]),
}

/// Where operands and results of a product are.
#[derive(Clone, Copy)]
pub(crate) enum Distance<'a> {
    /// In the first-level cache, or almost.
    Near,
    /// Elsewhere: they are asked for in time.
    Far {
        /// What the next block reads, or nothing; the second when the first has been asked for.
        next_rows: [&'a [f32]; 2],
    },
}

/// `out[r] = start[r] + sum over taps and k of a[tap][r][k] * b[k of all taps] + residual[r]`, up to
/// [`ROWS`] rows. The residual is added last, to the rounded sum.
pub(crate) struct RowsTimesPanels<'a> {
    /// `[n_taps, ROWS]` pointers to rows.
    pub(crate) a: &'a [*const f32],
    /// Elements of each tap's rows, `b.k` in all.
    pub(crate) k: &'a [usize],
    pub(crate) b: &'a Panels<'a>,
    pub(crate) start: Start<'a>,
    /// Like `out`.
    pub(crate) residual: Option<&'a [f32]>,
    /// The panels to compute.
    pub(crate) panels: Range<usize>,
    /// Rows of `b.n` elements, of which the block writes those from `first_row` on.
    pub(crate) out: &'a Shared<'a>,
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
    pub(crate) distance: Distance<'a>,
}

impl RowsTimesPanels<'_> {
    /// Computes the block.
    ///
    /// # Safety
    /// Each pointer of `a` must be readable for its tap's elements, and while the block runs nobody else
    /// may read or write its rows of `out` in the columns of its panels.
    pub(crate) unsafe fn run(self, isa: Isa) {
        assert!(self.a.len() == self.k.len() * ROWS && self.n_rows <= ROWS);
        assert_eq!(self.k.iter().sum::<usize>(), self.b.k);
        isa.dispatch(self);
    }

    /// All panels, in register tiles of R rows and V vectors (H where so many columns are left).
    #[inline(always)]
    fn panels<S: Simd, const R: usize, const V: usize, const H: usize>(&mut self, simd: S) {
        match self.distance {
            Distance::Near => self.panels_at::<S, R, V, H, false>(simd),
            Distance::Far { .. } => self.panels_at::<S, R, V, H, true>(simd),
        }
    }

    #[inline(always)]
    fn panels_at<S: Simd, const R: usize, const V: usize, const H: usize, const IS_FAR: bool>(
        &mut self,
        simd: S,
    ) {
        let width = V * S::F32_LANES;
        for panel in self.panels.clone() {
            let end = ((panel + 1) * COLS).min(self.b.n);
            for col in (panel * COLS..end).step_by(width) {
                let n_cols = (end - col).min(width);
                for row in (0..self.n_rows).step_by(R) {
                    if n_cols <= H * S::F32_LANES {
                        self.tile::<S, R, H, IS_FAR>(simd, row, col, n_cols);
                    } else {
                        self.tile::<S, R, V, IS_FAR>(simd, row, col, n_cols);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize, const IS_FAR: bool>(
        &mut self,
        simd: S,
        first_row: usize,
        col: usize,
        n_cols: usize,
    ) {
        let start = [load::<S, V>(self.start_of(col, n_cols)); R];
        // A copy of its own, touched by short loops alone: it stays in registers.
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        copy(&start, &mut acc);
        let mut b = self.b.panel(col / COLS).as_ptr().wrapping_add(col % COLS);
        let b_stride = self.b.row_stride();
        if IS_FAR {
            self.prefetch_ends::<S, R, V>(first_row, col);
        }
        let next = IS_FAR.then(|| self.next_lines(first_row, col)).flatten();
        let next_step = next.map_or(0, |_| LINE);
        let [mut next, second] = next.unwrap_or([&[], &[]]).map(<[f32]>::as_ptr_range);
        for (tap, &k) in self.a.chunks_exact(ROWS).zip(self.k) {
            let mut a = [tap[0]; R];
            a.copy_from_slice(&tap[first_row..first_row + R]);
            if IS_FAR && next.start >= next.end {
                next = second.clone();
            }
            for k in 0..k {
                if IS_FAR {
                    prefetch_vectors::<S, V>(b.wrapping_add(PREFETCHED * b_stride));
                    prefetch_line(next.start);
                    next.start = next.start.wrapping_add(next_step);
                }
                // SAFETY: the panel has b.k rows of COLS elements, `b_stride` apart, as many as all
                // taps; the rows of `a` have their tap's elements by the contract of `run`.
                unsafe {
                    let columns = read::<S, V>(b);
                    for r in 0..R {
                        let value = simd.splat_f32s(*a[r].add(k));
                        for v in 0..V {
                            acc[r][v] = simd.mul_add_e_f32s(value, columns[v], acc[r][v]);
                        }
                    }
                }
                // The step from the last row may leave the panel.
                b = b.wrapping_add(b_stride);
            }
        }
        if first_row + R <= self.n_rows && n_cols == V * S::F32_LANES {
            // Straight from the registers: with short k the detour below is felt.
            return self.write_whole(simd, first_row, col, acc);
        }
        let mut done = start;
        copy(&acc, &mut done);
        self.write_part(simd, [first_row, col, n_cols], done);
    }

    /// What the first tile of the last panel asks for.
    fn next_lines(&self, first_row: usize, col: usize) -> Option<[&[f32]; 2]> {
        match self.distance {
            Distance::Far { next_rows }
                if first_row == 0
                    && col / COLS + 1 == self.panels.end
                    && !next_rows[0].is_empty() =>
            {
                Some(next_rows)
            }
            _ => None,
        }
    }

    /// Asks for what a tile writes and adds: there is time while its sums are computed.
    #[inline(always)]
    fn prefetch_ends<S: Simd, const R: usize, const V: usize>(&self, first_row: usize, col: usize) {
        let start = (self.first_row + first_row) * self.b.n + col;
        let out = self.out.pointer(start, 1);
        for r in 0..R {
            for v in 0..V {
                let i = r * self.b.n + v * S::F32_LANES;
                prefetch_to_write(out.wrapping_add(i));
                if let Some(residual) = self.residual {
                    prefetch_line(residual.as_ptr().wrapping_add(start + i));
                }
            }
        }
    }

    /// Writes R live rows of V vectors.
    #[inline(always)]
    fn write_whole<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        first_row: usize,
        col: usize,
        sums: [[S::f32s; V]; R],
    ) {
        let start = (self.first_row + first_row) * self.b.n + col;
        let out_len = (R - 1) * self.b.n + V * S::F32_LANES;
        let out = self.out.pointer(start, out_len);
        let residual = self.residual.map(|residual| &residual[start..][..out_len]);
        for (r, mut row) in sums.into_iter().enumerate() {
            // SAFETY: within `out` and `residual`, and nobody else has these columns of the rows
            // by the contract of `run`.
            unsafe {
                if let Some(residual) = residual {
                    let residual = read::<S, V>(residual.as_ptr().add(r * self.b.n));
                    add(simd, &mut row, residual);
                }
                write::<S, V>(row, out.add(r * self.b.n));
            }
        }
    }

    /// Writes the live ones of R rows, as many columns as there are.
    #[inline(always)]
    fn write_part<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        [first_row, col, n_cols]: [usize; 3],
        mut sums: [[S::f32s; V]; R],
    ) {
        let n_rows = self.n_rows - first_row;
        for (r, row) in sums.iter_mut().take(n_rows).enumerate() {
            let start = (self.first_row + first_row + r) * self.b.n + col;
            if let Some(residual) = self.residual {
                add(simd, row, load::<S, V>(&residual[start..][..n_cols]));
            }
            // SAFETY: nobody else has these columns of the row by the contract of `run`.
            store::<S, V>(*row, unsafe { self.out.tile(start, n_cols) });
        }
    }

    /// What rows start from in some columns; nothing for zeros.
    #[inline(never)]
    fn start_of(&self, col: usize, n_cols: usize) -> &[f32] {
        match self.start {
            Start::Bias(bias) => &bias[col..][..n_cols],
            Start::Zero => &[],
        }
    }
}

impl WithSimd for RowsTimesPanels<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // R * V accumulators, V columns and one broadcast fit the registers.
        match S::F32_LANES {
            16 => self.panels::<S, 12, 2, 1>(simd),
            8 => self.panels::<S, 6, 2, 1>(simd),
            4 => self.panels::<S, 6, 4, 2>(simd),
            _ => self.panels::<S, 1, 32, 16>(simd),
        }
    }
}

/// What a sum does with the numbers that its output holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// Replaces them.
    Set,
    /// Adds to them.
    Add,
}
