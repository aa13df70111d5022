//! The two matrix products under every layer: rows times a packed matrix, and sums of outer products.
//!
//! Every output element is one chain of multiply-adds in the order of k, whatever block it is
//! computed in. So how the rows are blocked, batched or threaded changes no bit of a result.

use pulp::{Simd, WithSimd};

use crate::Isa;
use crate::lanes::{copy, load, read, store};

/// Rows of one block. Blocks with fewer live rows point the others at any readable row.
pub(crate) const ROWS: usize = 12;

/// Columns of one panel of a packed matrix.
pub(crate) const COLS: usize = 32;

/// A matrix `[k, n]` in panels of [`COLS`] columns, `[n / COLS, k, COLS]`, padded with zeros.
pub(crate) struct Packed {
    pub(crate) k: usize,
    pub(crate) n: usize,
    panels: Vec<f32>,
}

impl Packed {
    /// An empty matrix whose rows are then filled by [`Packed::set_rows`].
    pub(crate) fn zeros(k: usize, n: usize) -> Self {
        Self {
            k,
            n,
            panels: vec![0.0; n.div_ceil(COLS) * k * COLS],
        }
    }

    /// Packs a row-major matrix whose rows start `row_stride` apart.
    pub(crate) fn from_rows(rows: &[f32], k: usize, n: usize, row_stride: usize) -> Self {
        let mut packed = Self::zeros(k, n);
        packed.set_rows(0, k, |row| &rows[row * row_stride..][..n]);
        packed
    }

    /// Sets the rows `first .. first + count` to `row(0) ..`, each of length n.
    pub(crate) fn set_rows<'a>(
        &mut self,
        first: usize,
        count: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) {
        for i in 0..count {
            for (panel, columns) in row(i).chunks(COLS).enumerate() {
                self.panels[(panel * self.k + first + i) * COLS..][..columns.len()]
                    .copy_from_slice(columns);
            }
        }
    }

    /// Sets the rows `first .. first + count` to the columns of a row-major `[n, count]` matrix
    /// whose rows start `row_stride` apart.
    pub(crate) fn set_columns(
        &mut self,
        first: usize,
        count: usize,
        transposed: &[f32],
        row_stride: usize,
    ) {
        for column in 0..self.n {
            let panel = &mut self.panels[(column / COLS) * self.k * COLS..];
            for (i, &value) in transposed[column * row_stride..][..count]
                .iter()
                .enumerate()
            {
                panel[(first + i) * COLS + column % COLS] = value;
            }
        }
    }
}

/// What a product's rows start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    Zero,
    /// The same row everywhere, `[n]`.
    Bias(&'a [f32]),
}

/// `out[r] = start[r] + sum over taps and k of a[tap][r][k] * b[tap * k + k] + residual[r]`, up to
/// [`ROWS`] rows. The residual is added last, to the rounded sum.
pub(crate) struct RowsTimesPacked<'a> {
    /// `[n_taps, ROWS]` pointers to rows of k elements, `b.k = n_taps * k`.
    pub(crate) a: &'a [*const f32],
    pub(crate) k: usize,
    pub(crate) b: &'a Packed,
    pub(crate) start: Start<'a>,
    /// Laid out like `out`.
    pub(crate) residual: Option<&'a [f32]>,
    /// Rows of n elements, `out_stride` apart; as many as are live.
    pub(crate) out: &'a mut [f32],
    pub(crate) out_stride: usize,
    pub(crate) n_rows: usize,
}

impl RowsTimesPacked<'_> {
    /// Computes the block.
    ///
    /// # Safety
    /// Each pointer of `a` must be readable for k elements.
    pub(crate) unsafe fn run(self, isa: Isa) {
        assert!(self.a.len().is_multiple_of(ROWS) && self.n_rows <= ROWS);
        assert_eq!(self.a.len() / ROWS * self.k, self.b.k);
        assert!(
            self.n_rows == 0 || self.out.len() >= (self.n_rows - 1) * self.out_stride + self.b.n
        );
        isa.dispatch(self);
    }

    /// All panels, in register tiles of R rows and V vectors (H for a panel that is half empty).
    #[inline(always)]
    fn panels<S: Simd, const R: usize, const V: usize, const H: usize>(&mut self, simd: S) {
        for panel in 0..self.b.n.div_ceil(COLS) {
            let n_cols = (self.b.n - panel * COLS).min(COLS);
            for row in (0..self.n_rows).step_by(R) {
                if n_cols <= H * S::F32_LANES {
                    self.tile::<S, R, H>(simd, panel, row, n_cols);
                } else {
                    self.tile::<S, R, V>(simd, panel, row, n_cols);
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        panel: usize,
        first_row: usize,
        n_cols: usize,
    ) {
        let start = [load::<S, V>(self.start_of(panel * COLS, n_cols)); R];
        // A copy of its own, touched by short loops alone: it stays in registers.
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        copy(&start, &mut acc);
        let mut b = self.b.panels[panel * self.b.k * COLS..][..self.b.k * COLS].as_ptr();
        for tap in self.a.chunks_exact(ROWS) {
            let mut a = [tap[0]; R];
            a.copy_from_slice(&tap[first_row..first_row + R]);
            for k in 0..self.k {
                // SAFETY: the panel has b.k = n_taps * k rows of COLS elements; the rows of `a`
                // have k elements by the contract of `run`.
                unsafe {
                    let columns = read::<S, V>(b);
                    for r in 0..R {
                        let value = simd.splat_f32s(*a[r].add(k));
                        for v in 0..V {
                            acc[r][v] = simd.mul_add_e_f32s(value, columns[v], acc[r][v]);
                        }
                    }
                    b = b.add(COLS);
                }
            }
        }
        let mut done = start;
        copy(&acc, &mut done);
        for (r, row) in done.iter_mut().enumerate() {
            let residual = self.residual_of(first_row + r, panel * COLS, n_cols);
            if !residual.is_empty() {
                let residual = load::<S, V>(residual);
                for v in 0..V {
                    row[v] = simd.add_f32s(row[v], residual[v]);
                }
            }
            store::<S, V>(*row, self.out_of(first_row + r, panel * COLS, n_cols));
        }
    }

    /// What is added to some columns of the row in the end, if anything.
    #[inline(never)]
    fn residual_of(&self, row: usize, col: usize, n_cols: usize) -> &[f32] {
        match self.residual {
            Some(residual) if row < self.n_rows => {
                &residual[row * self.out_stride + col..][..n_cols]
            }
            _ => &[],
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

    /// Where some columns of the row go; nowhere for rows that are not live.
    #[inline(never)]
    fn out_of(&mut self, row: usize, col: usize, n_cols: usize) -> &mut [f32] {
        if row < self.n_rows {
            &mut self.out[row * self.out_stride + col..][..n_cols]
        } else {
            &mut []
        }
    }
}

impl WithSimd for RowsTimesPacked<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // R * V accumulators, V columns and one broadcast fit the registers.
        match S::F32_LANES {
            16 => self.panels::<S, 12, 2, 1>(simd),
            8 => self.panels::<S, 3, 4, 2>(simd),
            4 => self.panels::<S, 2, 8, 4>(simd),
            _ => self.panels::<S, 1, 32, 16>(simd),
        }
    }
}

/// A run of consecutive positions of two images: rows `a_stride` and `b_stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) a: *const f32,
    pub(crate) b: *const f32,
    pub(crate) len: usize,
}

/// `out[r][c] += sum over the positions of all runs of a[r] * b[c]`.
pub(crate) struct OuterProducts<'a> {
    pub(crate) runs: &'a [Run],
    pub(crate) a_stride: usize,
    pub(crate) b_stride: usize,
    /// Rows of `n_cols` elements, `out_stride` apart.
    pub(crate) out: &'a mut [f32],
    pub(crate) out_stride: usize,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
}

impl OuterProducts<'_> {
    /// Computes the sums.
    ///
    /// # Safety
    /// At each of its `len` positions a run's `a` must be readable for `n_rows` elements and its
    /// `b` for `n_cols` rounded up to a multiple of [`COLS`].
    pub(crate) unsafe fn run(self, isa: Isa) {
        assert!(
            self.n_rows == 0 || self.out.len() >= (self.n_rows - 1) * self.out_stride + self.n_cols
        );
        isa.dispatch(self);
    }

    #[inline(always)]
    fn tiles<S: Simd, const R: usize, const V: usize>(&mut self, simd: S) {
        let n_whole = self.n_rows / R * R;
        for col in (0..self.n_cols).step_by(COLS) {
            for row in (0..n_whole).step_by(R) {
                self.tile::<S, R, V>(simd, row, col);
            }
            for row in n_whole..self.n_rows {
                self.tile::<S, 1, V>(simd, row, col);
            }
        }
    }

    #[expect(
        clippy::needless_range_loop,
        reason = "constant bounds keep sums in registers"
    )]
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize, col: usize) {
        let n_cols = COLS.min(self.n_cols - col);
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            *acc = load::<S, V>(&self.out[(row + r) * self.out_stride + col..][..n_cols]);
        }
        for run in self.runs {
            let (mut a, mut b) = (run.a.wrapping_add(row), run.b.wrapping_add(col));
            for _ in 0..run.len {
                // SAFETY: both rows are readable by the contract of `run`.
                unsafe {
                    let columns = read::<S, V>(b);
                    for r in 0..R {
                        let value = simd.splat_f32s(*a.add(r));
                        for v in 0..V {
                            acc[r][v] = simd.mul_add_e_f32s(value, columns[v], acc[r][v]);
                        }
                    }
                }
                a = a.wrapping_add(self.a_stride);
                b = b.wrapping_add(self.b_stride);
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            store::<S, V>(
                *acc,
                &mut self.out[(row + r) * self.out_stride + col..][..n_cols],
            );
        }
    }
}

impl WithSimd for OuterProducts<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
            16 => self.tiles::<S, 12, 2>(simd),
            8 => self.tiles::<S, 3, 4>(simd),
            4 => self.tiles::<S, 2, 8>(simd),
            _ => self.tiles::<S, 1, 32>(simd),
        }
    }
}
