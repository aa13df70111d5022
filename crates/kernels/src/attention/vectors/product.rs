//! Products of small matrices at hand, in register tiles.
//!
//! Matrices lie in strips of [`COLS`] columns. Every element of a product is one chain of
//! multiply-adds in the order of k.

use pulp::{Simd, WithSimd};

use super::rows::padded;
use crate::gemm::Sum;
use crate::lanes::{read, write};
use crate::panels::COLS;

/// `out[r] = sum over k of a[r][k] * b[k]`, or that added to `out`.
pub(super) type Along<'a> = Product<'a, false>;

/// `out[r] = sum over k of a[k][r] * b[k]`, or that added to `out`; r is within one strip.
pub(super) type Across<'a> = Product<'a, true>;

/// A product whose left side is read along its rows or across them.
///
/// Matrices are given with the distance of their strips. Rows are readable, and written, up to a
/// multiple of four, and columns to one of 16.
pub(super) struct Product<'a, const IS_ACROSS: bool> {
    pub(super) a: (&'a [f32], usize),
    /// `[depth, n_cols]`
    pub(super) b: (&'a [f32], usize),
    pub(super) depth: usize,
    /// `[n_rows, n_cols]`
    pub(super) out: (&'a mut [f32], usize),
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) sum: Sum,
}

/// A register tile: where it is.
struct Tile {
    a: *const f32,
    a_strip: usize,
    b: *const f32,
    depth: usize,
    out: *mut f32,
    sum: Sum,
}

impl<const IS_ACROSS: bool> Product<'_, IS_ACROSS> {
    /// All register tiles of R1 rows and V vectors; what is left in R2 or R3 rows, and in H vectors.
    #[inline(always)]
    fn tiles<
        S: Simd,
        const R1: usize,
        const R2: usize,
        const R3: usize,
        const V: usize,
        const H: usize,
    >(
        self,
        simd: S,
    ) {
        let (n_rows, n_cols) = (padded(self.n_rows), self.n_cols.next_multiple_of(16));
        let (a_rows, a_cols) = match IS_ACROSS {
            true => (self.depth, n_rows),
            false => (n_rows, self.depth),
        };
        let (out, out_strip) = self.out;
        assert!(contains((self.a.0.len(), self.a.1), a_rows, a_cols));
        assert!(contains((self.b.0.len(), self.b.1), self.depth, n_cols));
        assert!(contains((out.len(), out_strip), n_rows, n_cols));
        let width = V * S::F32_LANES;
        for col in (0..n_cols).step_by(width) {
            let (strip, within) = (col / COLS, col % COLS);
            let mut row = 0;
            while row < n_rows {
                let a = row * if IS_ACROSS { 1 } else { COLS };
                let tile = Tile {
                    a: self.a.0.as_ptr().wrapping_add(a),
                    a_strip: self.a.1,
                    b: self.b.0.as_ptr().wrapping_add(strip * self.b.1 + within),
                    depth: self.depth,
                    out: out
                        .as_mut_ptr()
                        .wrapping_add(strip * out_strip + row * COLS + within),
                    sum: self.sum,
                };
                // SAFETY: the matrices contain the tile, see above.
                row += unsafe {
                    match n_cols - col < width {
                        true => tile.rows::<S, R1, R2, R3, H, IS_ACROSS>(simd, n_rows - row),
                        false => tile.rows::<S, R1, R2, R3, V, IS_ACROSS>(simd, n_rows - row),
                    }
                };
            }
        }
    }
}

/// Whether strips of a length and distance have that many rows and columns.
fn contains((len, distance): (usize, usize), n_rows: usize, n_cols: usize) -> bool {
    let n_strips = n_cols.div_ceil(COLS);
    n_rows == 0 || n_strips == 0 || (n_strips - 1) * distance + n_rows * COLS <= len
}

impl Tile {
    /// Computes as many rows as fit; returns how many.
    ///
    /// # Safety
    /// All matrices must have them.
    #[inline(always)]
    unsafe fn rows<
        S: Simd,
        const R1: usize,
        const R2: usize,
        const R3: usize,
        const V: usize,
        const IS_ACROSS: bool,
    >(
        self,
        simd: S,
        left: usize,
    ) -> usize {
        // SAFETY: by contract.
        unsafe {
            if left >= R1 {
                self.run::<S, R1, V, IS_ACROSS>(simd);
                R1
            } else if left >= R2 {
                self.run::<S, R2, V, IS_ACROSS>(simd);
                R2
            } else {
                self.run::<S, R3, V, IS_ACROSS>(simd);
                R3
            }
        }
    }

    #[expect(
        clippy::needless_range_loop,
        reason = "constant bounds keep sums in registers"
    )]
    #[inline(always)]
    unsafe fn run<S: Simd, const R: usize, const V: usize, const IS_ACROSS: bool>(self, simd: S) {
        let (row_step, k_step) = match IS_ACROSS {
            true => (1, COLS),
            false => (COLS, 1),
        };
        let strip = if IS_ACROSS { self.depth } else { COLS };
        let mut next = self.a;
        // SAFETY: by contract.
        unsafe {
            let mut acc = [[simd.splat_f32s(0.0); V]; R];
            if self.sum == Sum::Add {
                for r in 0..R {
                    acc[r] = read::<S, V>(self.out.add(r * COLS));
                }
            }
            let mut b = self.b;
            let mut left = self.depth;
            while left > 0 {
                let mut a = next;
                for _ in 0..strip.min(left) {
                    let columns = read::<S, V>(b);
                    for r in 0..R {
                        let value = simd.splat_f32s(*a.add(r * row_step));
                        for v in 0..V {
                            acc[r][v] = simd.mul_add_e_f32s(value, columns[v], acc[r][v]);
                        }
                    }
                    // The steps from the last may leave the matrices.
                    a = a.wrapping_add(k_step);
                    b = b.wrapping_add(COLS);
                }
                next = next.wrapping_add(self.a_strip);
                left -= strip.min(left);
            }
            for r in 0..R {
                write::<S, V>(acc[r], self.out.add(r * COLS));
            }
        }
    }
}

impl<const IS_ACROSS: bool> WithSimd for Product<'_, IS_ACROSS> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.tiles::<S, 12, 8, 4, 2, 1>(simd),
            8 => self.tiles::<S, 6, 4, 2, 2, 2>(simd),
            4 => self.tiles::<S, 6, 4, 2, 4, 4>(simd),
            _ => self.tiles::<S, 1, 1, 1, 32, 16>(simd),
        }
    }
}
