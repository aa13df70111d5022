//! Sums of outer products: the gradients of weights.

use pulp::{Simd, WithSimd};

use super::{PREFETCHED, ROWS, Sum};
use crate::cache::{prefetch_line, prefetch_to_l2, prefetch_vectors};
use crate::cpu::Isa;
use crate::lanes::{copy, load, read, store, write};
use crate::panels::{COLS, Strips};
use crate::scratch::LINE;

/// Where rows are a multiple of this, the register tiles read nothing behind the last.
pub(crate) const ROW_STEP: usize = 4;

/// `out[r][c] = sum over positions of a[position][r] * b[position][c]`, or that added to `out`.
pub(crate) struct OuterProducts<'a> {
    pub(crate) a: &'a Strips<'a, ROWS>,
    pub(crate) b: &'a Strips<'a, COLS>,
    pub(crate) sum: Sum,
    /// Rows of `n_cols` elements, one after the other.
    pub(crate) out: &'a mut [f32],
    pub(crate) n_cols: usize,
    /// What the next sums read, asked for meanwhile; none if all operands are at hand.
    pub(crate) next: Option<[&'a [f32]; 2]>,
}

impl OuterProducts<'_> {
    /// Computes the sums.
    pub(crate) fn run(self, isa: Isa) {
        assert_eq!(self.a.n_positions, self.b.n_positions);
        isa.dispatch(self);
    }

    /// All sums, in register tiles of R1 rows and V vectors; what is left in R2 or R3 rows, and in H
    /// vectors for a strip that is half empty.
    #[inline(always)]
    fn tiles<
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
        let n_rows = self.out.len() / self.n_cols;
        for col in (0..self.n_cols).step_by(V * S::F32_LANES) {
            let mut row = 0;
            while row < n_rows {
                let left = n_rows - row;
                if left > R2 {
                    self.rows::<S, R1, V, H>(simd, row, col);
                    row += R1;
                } else if left > R3 {
                    self.rows::<S, R2, V, H>(simd, row, col);
                    row += R2;
                } else {
                    self.rows::<S, R3, V, H>(simd, row, col);
                    row += R3;
                }
            }
        }
    }

    /// R rows of a strip.
    #[inline(always)]
    fn rows<S: Simd, const R: usize, const V: usize, const H: usize>(
        &mut self,
        simd: S,
        row: usize,
        col: usize,
    ) {
        match (self.n_cols - col <= H * S::F32_LANES, self.next) {
            (true, _) => self.tile::<S, R, H, false>(simd, row, col),
            (false, None) => self.tile::<S, R, V, false>(simd, row, col),
            (false, Some(_)) => self.tile::<S, R, V, true>(simd, row, col),
        }
    }

    /// Lines of what is read next that a tile asks for, one at each position, and their distance.
    fn take_next(&mut self) -> Option<(*const f32, usize)> {
        let slices = self.next.iter_mut().flatten();
        let slice = slices.into_iter().find(|slice| !slice.is_empty())?;
        let (now, later) = slice.split_at(slice.len().min(self.a.n_positions * LINE));
        *slice = later;
        Some((now.as_ptr(), LINE))
    }

    #[expect(
        clippy::needless_range_loop,
        reason = "constant bounds keep sums in registers"
    )]
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize, const IS_FAR: bool>(
        &mut self,
        simd: S,
        row: usize,
        col: usize,
    ) {
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
        let start = self.start::<S, R, V>(simd, whole, (row, col));
        // A copy of its own, touched by short loops alone: it stays in registers.
        let mut acc = [[simd.splat_f32s(0.0); V]; R];
        copy(&start, &mut acc);
        let (a_stride, b_stride) = (self.a.position_stride(), self.b.position_stride());
        let mut a = self.a.channels(row, R);
        let mut b = self.b.channels(col, V * S::F32_LANES);
        let next = IS_FAR.then(|| self.take_next()).flatten();
        let (mut next, next_step) = next.unwrap_or((b, 0));
        for _ in 0..self.a.n_positions {
            if IS_FAR {
                prefetch_line(a.wrapping_add(PREFETCHED * a_stride));
                prefetch_line(a.wrapping_add(PREFETCHED * a_stride + R - 1));
                prefetch_vectors::<S, V>(b.wrapping_add(PREFETCHED * b_stride));
                prefetch_to_l2(next);
                next = next.wrapping_add(next_step);
            }
            // SAFETY: each position of a strip has R and V * F32_LANES channels from here on.
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

    /// What a tile begins with; `whole` is where it is, unless it is cut.
    #[inline(always)]
    fn start<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        whole: Option<*mut f32>,
        (row, col): (usize, usize),
    ) -> [[S::f32s; V]; R] {
        let n_cols = (V * S::F32_LANES).min(self.n_cols - col);
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
        start
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
            16 => self.tiles::<S, 12, 8, 4, 2, 1>(simd),
            8 => self.tiles::<S, 6, 4, 2, 2, 1>(simd),
            4 => self.tiles::<S, 6, 4, 2, 4, 2>(simd),
            _ => self.tiles::<S, 1, 1, 1, 32, 16>(simd),
        }
    }
}
