//! The two matrix products under every layer: rows times a matrix in panels, and sums of outer products.
//!
//! Every output element is one chain of multiply-adds in the order of k, whatever block it is
//! computed in. So how the rows are blocked, batched or threaded changes no bit of a result.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::cpu::{Isa, Shared};
use crate::lanes::{add, copy, load, read, store, write};
use crate::panels::{COLS, Panels, Strips};

/// Rows of one block. Blocks with fewer live rows point the others at any readable row.
pub(crate) const ROWS: usize = 12;

/// What a product's rows start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same row everywhere, `[n]`.
    Bias(&'a [f32]),
}

/// `out[r] = start[r] + sum over taps and k of a[tap][r][k] * b[tap * k + k] + residual[r]`, up to
/// [`ROWS`] rows. The residual is added last, to the rounded sum.
pub(crate) struct RowsTimesPanels<'a> {
    /// `[n_taps, ROWS]` pointers to rows of k elements, `b.k = n_taps * k`.
    pub(crate) a: &'a [*const f32],
    pub(crate) k: usize,
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
}

impl RowsTimesPanels<'_> {
    /// Computes the block.
    ///
    /// # Safety
    /// Each pointer of `a` must be readable for k elements, and while the block runs nobody else
    /// may read or write its rows of `out` in the columns of its panels.
    pub(crate) unsafe fn run(self, isa: Isa) {
        assert!(self.a.len().is_multiple_of(ROWS) && self.n_rows <= ROWS);
        assert_eq!(self.a.len() / ROWS * self.k, self.b.k);
        isa.dispatch(self);
    }

    /// All panels, in register tiles of R rows and V vectors (H where so many columns are left).
    #[inline(always)]
    fn panels<S: Simd, const R: usize, const V: usize, const H: usize>(&mut self, simd: S) {
        let width = V * S::F32_LANES;
        for panel in self.panels.clone() {
            let end = ((panel + 1) * COLS).min(self.b.n);
            for col in (panel * COLS..end).step_by(width) {
                let n_cols = (end - col).min(width);
                for row in (0..self.n_rows).step_by(R) {
                    if n_cols <= H * S::F32_LANES {
                        self.tile::<S, R, H>(simd, row, col, n_cols);
                    } else {
                        self.tile::<S, R, V>(simd, row, col, n_cols);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(
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
        for tap in self.a.chunks_exact(ROWS) {
            let mut a = [tap[0]; R];
            a.copy_from_slice(&tap[first_row..first_row + R]);
            for k in 0..self.k {
                // SAFETY: the panel has b.k = n_taps * k rows of COLS elements, `b_stride` apart; the
                // rows of `a` have k elements by the contract of `run`.
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
        for (r, row) in done.iter_mut().take(self.n_rows - first_row).enumerate() {
            let start = (self.first_row + first_row + r) * self.b.n + col;
            if let Some(residual) = self.residual {
                add(simd, row, load::<S, V>(&residual[start..][..n_cols]));
            }
            // SAFETY: nobody else has these columns of the row by the contract of `run`.
            store::<S, V>(*row, unsafe { self.out.tile(start, n_cols) });
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

/// `out[r][c] = sum over positions of a[position][r] * b[position][c]`, or that added to `out`.
pub(crate) struct OuterProducts<'a> {
    pub(crate) a: &'a Strips<'a, ROWS>,
    pub(crate) b: &'a Strips<'a, COLS>,
    pub(crate) sum: Sum,
    /// Rows of `n_cols` elements, one after the other.
    pub(crate) out: &'a mut [f32],
    pub(crate) n_cols: usize,
}

impl OuterProducts<'_> {
    /// Computes the sums.
    pub(crate) fn run(self, isa: Isa) {
        assert_eq!(self.a.n_positions, self.b.n_positions);
        isa.dispatch(self);
    }

    /// All sums, in register tiles of R rows (Q where no more are left) and V vectors (H for a
    /// strip that is half empty).
    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const Q: usize, const V: usize, const H: usize>(
        &mut self,
        simd: S,
    ) {
        let n_rows = self.out.len() / self.n_cols;
        for col in (0..self.n_cols).step_by(V * S::F32_LANES) {
            let half_empty = self.n_cols - col <= H * S::F32_LANES;
            for row in (0..n_rows).step_by(R) {
                match (half_empty, n_rows - row <= Q) {
                    (true, _) => self.tile::<S, R, H>(simd, row, col),
                    (false, true) => self.tile::<S, Q, V>(simd, row, col),
                    (false, false) => self.tile::<S, R, V>(simd, row, col),
                }
            }
        }
    }

    #[expect(
        clippy::needless_range_loop,
        reason = "constant bounds keep sums in registers"
    )]
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize, col: usize) {
        let n_cols = (V * S::F32_LANES).min(self.n_cols - col);
        let first = row * self.n_cols + col;
        // Straight from and to the registers where the tile is whole: a chunk is short.
        let whole = (n_cols == V * S::F32_LANES)
            .then(|| {
                self.out
                    .get_mut(first..first + (R - 1) * self.n_cols + n_cols)
            })
            .flatten()
            .map(<[f32]>::as_mut_ptr);
        let mut start = [[simd.splat_f32s(0.0); V]; R];
        if self.sum == Sum::Add {
            for (r, start) in start.iter_mut().enumerate() {
                *start = match whole {
                    // SAFETY: within `out`.
                    Some(out) => unsafe { read::<S, V>(out.add(r * self.n_cols)) },
                    None => load::<S, V>(self.out_of(row + r, col, n_cols)),
                };
            }
        }
        // A copy of its own, touched by short loops alone: it stays in registers.
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        copy(&start, &mut acc);
        let (a_stride, b_stride) = (self.a.position_stride(), self.b.position_stride());
        let mut a = self.a.strip(row / ROWS).as_ptr().wrapping_add(row % ROWS);
        let mut b = self.b.strip(col / COLS).as_ptr().wrapping_add(col % COLS);
        for _ in 0..self.a.n_positions {
            // SAFETY: each position of a strip has ROWS or COLS elements, and R rows from a
            // multiple of R on are in one strip, since ROWS is one.
            unsafe {
                let columns = read::<S, V>(b);
                for r in 0..R {
                    let value = simd.splat_f32s(*a.add(r));
                    for v in 0..V {
                        acc[r][v] = simd.mul_add_e_f32s(value, columns[v], acc[r][v]);
                    }
                }
            }
            // The step from the last position may leave the strip.
            a = a.wrapping_add(a_stride);
            b = b.wrapping_add(b_stride);
        }
        if let Some(out) = whole {
            for (r, sum) in acc.into_iter().enumerate() {
                // SAFETY: within `out`.
                unsafe { write::<S, V>(sum, out.add(r * self.n_cols)) };
            }
            return;
        }
        let mut done = start;
        copy(&acc, &mut done);
        for (r, sum) in done.iter().enumerate() {
            store::<S, V>(*sum, self.out_of(row + r, col, n_cols));
        }
    }

    /// Where some columns of a row go; nowhere for rows behind the last.
    #[inline(never)]
    fn out_of(&mut self, row: usize, col: usize, n_cols: usize) -> &mut [f32] {
        let start = row * self.n_cols + col;
        self.out.get_mut(start..start + n_cols).unwrap_or_default()
    }
}

impl WithSimd for OuterProducts<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
            16 => self.tiles::<S, 12, 4, 2, 1>(simd),
            8 => self.tiles::<S, 6, 2, 2, 1>(simd),
            4 => self.tiles::<S, 6, 2, 4, 2>(simd),
            _ => self.tiles::<S, 1, 1, 32, 16>(simd),
        }
    }
}
