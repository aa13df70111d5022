//! The products at the 36 positions: small matrices in registers, a few columns at a time.

use pulp::{Simd, WithSimd};

use super::transform::{POSITIONS, TAPS};
use crate::Isa;
use crate::cache::{prefetch_line, prefetch_to_l2, prefetch_vectors};
use crate::lanes::{copy, read, write};
use crate::scratch::LINE;

/// Columns of a panel. The last one of a matrix may be live in its first half only.
pub(super) const COLS: usize = 32;

/// Channels side by side in a left operand whose rows are tiles.
pub(super) const DEPTH_CHUNK: usize = 16;

/// Computed rows are a multiple of this; operands and results have as many.
pub(super) const ROW_STEP: usize = 4;

/// How far ahead the operand is asked for that comes from the third-level cache: weights, or the
/// rows of a transposed operand. The hardware foresees no more than a page; without this, a
/// convolution of 128 channels took a fifth longer.
const PREFETCHED_DEPTHS: usize = 16;

/// Where the left operand has row r and depth k.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    /// At `k / 16 * chunk_stride + r * 16 + k % 16`. Rows at constant distances need one address.
    Chunked {
        chunk_stride: usize,
        /// In a cache of all threads, so that a chunk is asked for before its turn.
        is_far: bool,
    },
    /// At `k * stride + r`: the transpose of a matrix of `stride` columns.
    Transposed { stride: usize },
}

/// What becomes of the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// They replace what was there.
    Set,
    /// Each chain of multiply-adds starts from what was there, as if it had never stopped.
    Continue,
    /// They start from zero and are added to what was there: shorter chains are more exact.
    Add,
}

/// `c[r][col] (+)= sum over k of a[r][k] * b[k][col]` at each position, panel by panel.
///
/// Each sum is one chain of multiply-adds in the order of k, whatever register block it is in.
pub(super) struct Products<'a> {
    pub(super) a: &'a [f32],
    pub(super) a_position: usize,
    pub(super) rows: Rows,
    /// Panels of rows of [`COLS`] elements.
    pub(super) b: &'a [f32],
    pub(super) b_position: usize,
    pub(super) b_panel: usize,
    pub(super) c: &'a mut [f32],
    pub(super) c_position: usize,
    pub(super) c_panel: usize,
    pub(super) c_row: usize,
    /// Computed are `n_rows` rounded up to [`ROW_STEP`].
    pub(super) n_rows: usize,
    pub(super) depth: usize,
    /// A multiple of half of [`COLS`].
    pub(super) n_cols: usize,
    pub(super) sums: Sums,
    /// What comes after the products; it makes no difference to them.
    pub(super) ahead: Option<Ahead>,
}

/// Rows of floats of several matrices that are asked for while the multiplications wait for nothing.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub(super) first: *const f32,
    pub(super) matrix_stride: usize,
    pub(super) row_stride: usize,
    pub(super) n_rows: usize,
    pub(super) row_len: usize,
}

/// Positions during which a matrix is asked for.
const POSITIONS_AHEAD: usize = POSITIONS / (TAPS * TAPS);

impl Ahead {
    /// Asks for the part of the `idx`th of `n` blocks of a position.
    #[inline(always)]
    fn prefetch(&self, position: usize, idx: usize, n: usize) {
        let (matrix, part) = (position / POSITIONS_AHEAD, position % POSITIONS_AHEAD);
        let first = |idx: usize| (part * n + idx) * self.n_rows / (POSITIONS_AHEAD * n);
        let matrix = self.first.wrapping_add(matrix * self.matrix_stride);
        for row in first(idx)..first(idx + 1) {
            let row = matrix.wrapping_add(row * self.row_stride);
            for col in (0..self.row_len).step_by(LINE) {
                prefetch_to_l2(row.wrapping_add(col));
            }
        }
    }
}

impl Products<'_> {
    /// Computes them.
    pub(super) fn run(self, isa: Isa) {
        let last_position = POSITIONS - 1;
        let n_rows = self.n_rows.next_multiple_of(ROW_STEP);
        let last_k = self.depth.saturating_sub(1);
        let a_end = match self.rows {
            Rows::Chunked { chunk_stride, .. } => {
                last_k / DEPTH_CHUNK * chunk_stride + n_rows * DEPTH_CHUNK
            }
            Rows::Transposed { stride } => last_k * stride + n_rows,
        };
        assert!(self.n_rows > 0 && self.n_cols > 0 && self.n_cols.is_multiple_of(COLS / 2));
        assert!(self.depth == 0 || last_position * self.a_position + a_end <= self.a.len());
        let last_panel = (self.n_cols - 1) / COLS;
        let last_cols = self.n_cols - last_panel * COLS;
        // So that no panel ends behind the last one.
        assert!(last_panel == 0 || self.b_panel.min(self.c_panel) >= COLS);
        let b_end = last_panel * self.b_panel + last_k * COLS + last_cols;
        assert!(self.depth == 0 || last_position * self.b_position + b_end <= self.b.len());
        let c_end = last_panel * self.c_panel + (n_rows - 1) * self.c_row + last_cols;
        assert!(last_position * self.c_position + c_end <= self.c.len());
        isa.dispatch(self);
    }

    /// All positions in register blocks of R1 rows and V vectors; what is left in R2 or R3 rows,
    /// and in H vectors if half of the panel is live.
    #[inline(always)]
    fn positions<
        S: Simd,
        const R1: usize,
        const R2: usize,
        const R3: usize,
        const V: usize,
        const H: usize,
    >(
        &mut self,
        simd: S,
    ) {
        match self.rows {
            Rows::Chunked {
                chunk_stride,
                is_far,
            } => {
                let walk = Walk {
                    chunk: DEPTH_CHUNK,
                    chunk_stride,
                    step: 1,
                    is_far,
                };
                self.walk::<S, R1, R2, R3, V, H, DEPTH_CHUNK>(simd, walk);
            }
            Rows::Transposed { stride } => {
                let walk = Walk {
                    chunk: self.depth,
                    chunk_stride: 0,
                    step: stride,
                    is_far: false,
                };
                self.walk::<S, R1, R2, R3, V, H, 1>(simd, walk);
            }
        }
    }

    #[inline(always)]
    fn walk<
        S: Simd,
        const R1: usize,
        const R2: usize,
        const R3: usize,
        const V: usize,
        const H: usize,
        const ROW: usize,
    >(
        &mut self,
        simd: S,
        walk: Walk,
    ) {
        for position in 0..POSITIONS {
            let mut col = 0;
            while col < self.n_cols {
                if self.n_cols - col >= V * S::F32_LANES {
                    self.rows::<S, R1, R2, R3, V, ROW>(simd, walk, position, col);
                    col += V * S::F32_LANES;
                } else {
                    self.rows::<S, R1, R2, R3, H, ROW>(simd, walk, position, col);
                    col += H * S::F32_LANES;
                }
            }
        }
    }

    /// All rows of some columns, which stay in the first-level cache.
    #[inline(always)]
    fn rows<
        S: Simd,
        const R1: usize,
        const R2: usize,
        const R3: usize,
        const V: usize,
        const ROW: usize,
    >(
        &mut self,
        simd: S,
        walk: Walk,
        position: usize,
        col: usize,
    ) {
        let n_blocks = self.n_rows.div_ceil(R1);
        let mut row = 0;
        while row < self.n_rows {
            if let Some(ahead) = self.ahead.filter(|_| col == 0) {
                ahead.prefetch(position, row / R1, n_blocks);
            }
            let left = self.n_rows - row;
            // Rows beyond a multiple of R3 are computed and never read.
            if left > R1 - R3 {
                self.block::<S, R1, V, ROW>(simd, walk, position, [row, col]);
                row += R1;
            } else if left > R2 - R3 {
                self.block::<S, R2, V, ROW>(simd, walk, position, [row, col]);
                row += R2;
            } else {
                self.block::<S, R3, V, ROW>(simd, walk, position, [row, col]);
                row += R3;
            }
        }
    }

    /// R rows and V vectors.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const V: usize, const ROW: usize>(
        &mut self,
        simd: S,
        walk: Walk,
        position: usize,
        [row, col]: [usize; 2],
    ) {
        let (panel, col) = (col / COLS, col % COLS);
        let a = position * self.a_position + row * ROW;
        let b = position * self.b_position + panel * self.b_panel + col;
        let c = position * self.c_position + panel * self.c_panel + row * self.c_row + col;
        let out = Out {
            c: self.c.as_mut_ptr().wrapping_add(c),
            row: self.c_row,
            sums: self.sums,
        };
        let operands = [
            self.a.as_ptr().wrapping_add(a),
            self.b.as_ptr().wrapping_add(b),
        ];
        // SAFETY: `run` has checked the last element that any block reads or writes.
        unsafe { registers::<S, R, V, ROW>(simd, operands, walk, self.depth, out) };
    }
}

impl WithSimd for Products<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        // R * V sums, V columns and one broadcast fit the registers: 32 of them, 16 for AVX2.
        match S::F32_LANES {
            16 => self.positions::<S, 12, 8, 4, 2, 1>(simd),
            8 => self.positions::<S, 6, 4, 2, 2, 2>(simd),
            4 => self.positions::<S, 6, 4, 2, 4, 4>(simd),
            _ => self.positions::<S, 1, 1, 1, 16, 16>(simd),
        }
    }
}

/// How the left operand's pointer moves with the depth.
#[derive(Clone, Copy)]
struct Walk {
    chunk: usize,
    chunk_stride: usize,
    step: usize,
    is_far: bool,
}

/// Where a register block goes.
#[derive(Clone, Copy)]
struct Out {
    c: *mut f32,
    row: usize,
    sums: Sums,
}

impl Out {
    /// Asks for the sums of R rows and V vectors.
    #[inline(always)]
    fn prefetch<S: Simd, const R: usize, const V: usize>(&self) {
        for r in 0..R {
            prefetch_vectors::<S, V>(self.c.wrapping_add(r * self.row));
        }
    }

    /// Writes a row of sums, or adds it.
    ///
    /// # Safety
    /// The row must be writable for V vectors.
    #[inline(always)]
    unsafe fn write<S: Simd, const V: usize>(&self, simd: S, r: usize, mut row: [S::f32s; V]) {
        // SAFETY: writable by contract.
        unsafe {
            let c = self.c.add(r * self.row);
            if self.sums == Sums::Add {
                for (row, before) in row.iter_mut().zip(read::<S, V>(c)) {
                    *row = simd.add_f32s(before, *row);
                }
            }
            write::<S, V>(row, c);
        }
    }
}

/// A block of R rows and V vectors of sums.
///
/// # Safety
/// `a` must be readable for R rows and `b` for V vectors at every depth; `out` writable for R rows
/// of V vectors.
#[expect(
    clippy::needless_range_loop,
    reason = "constant bounds keep sums in registers"
)]
#[inline(always)]
unsafe fn registers<S: Simd, const R: usize, const V: usize, const ROW: usize>(
    simd: S,
    [a, b]: [*const f32; 2],
    walk: Walk,
    depth: usize,
    out: Out,
) {
    let (mut a_chunk, mut b) = (a, b);
    let mut start = [[simd.splat_f32s(0.0); V]; R];
    if out.sums == Sums::Continue {
        for r in 0..R {
            // SAFETY: readable by contract.
            start[r] = unsafe { read::<S, V>(out.c.add(r * out.row)) };
        }
    }
    if out.sums == Sums::Add {
        out.prefetch::<S, R, V>();
    }
    // A copy of its own, touched by short loops alone: it stays in registers.
    let mut acc = [[simd.splat_f32s(0.0); V]; R];
    copy(&start, &mut acc);
    let mut left = depth;
    while left > 0 {
        let n = left.min(walk.chunk);
        let mut a = a_chunk;
        if walk.is_far {
            let next = a.wrapping_add(walk.chunk_stride);
            (0..R).for_each(|r| prefetch_line(next.wrapping_add(r * ROW)));
        }
        for _ in 0..n {
            // SAFETY: readable by contract.
            unsafe {
                let columns = read::<S, V>(b);
                if ROW == 1 {
                    prefetch_line(a.wrapping_add(PREFETCHED_DEPTHS * walk.step));
                } else {
                    prefetch_vectors::<S, V>(b.wrapping_add(PREFETCHED_DEPTHS * COLS));
                }
                for r in 0..R {
                    let value = simd.splat_f32s(*a.add(r * ROW));
                    for v in 0..V {
                        acc[r][v] = simd.mul_add_e_f32s(value, columns[v], acc[r][v]);
                    }
                }
            }
            b = b.wrapping_add(COLS);
            a = a.wrapping_add(walk.step);
        }
        a_chunk = a_chunk.wrapping_add(walk.chunk_stride);
        left -= n;
    }
    let mut done = start;
    copy(&acc, &mut done);
    for r in 0..R {
        // SAFETY: writable by contract.
        unsafe { out.write::<S, V>(simd, r, done[r]) };
    }
}
