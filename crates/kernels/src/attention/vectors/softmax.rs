//! What stands between the products: exponentials, their sums, and the gradient of scores.
//!
//! A row holds what belongs to one key, for [`BLOCK`] queries side by side.

use pulp::{Simd, WithSimd};

use super::super::EXP2;
use super::{BLOCK, Queries};
use crate::elementwise::ROUND;
use crate::lanes::{read, write};

/// The largest score of each query.
pub(super) struct Maxima<'a> {
    /// `[keys, BLOCK]`
    pub(super) scores: &'a [f32],
    /// Those of the keys before.
    pub(super) max: &'a mut Queries,
}

/// Replaces scores by `e^(scale (score - max))`, and adds them up.
pub(super) struct Exponentials<'a> {
    /// `[keys, BLOCK]`
    pub(super) scores: &'a mut [f32],
    pub(super) scale: f32,
    pub(super) max: &'a Queries,
    pub(super) sums: &'a mut Queries,
    /// What is multiplied by exponentials, like the scores, and the sums of these products.
    pub(super) dots: Option<(&'a [f32], &'a mut Queries)>,
}

/// Replaces exponentials by `e (d_p - dot)`.
pub(super) struct Gradients<'a> {
    /// `[keys, BLOCK]`
    pub(super) e: &'a mut [f32],
    pub(super) d_p: &'a [f32],
    pub(super) dots: &'a Queries,
}

/// What is done with the rows of some keys.
trait Columns {
    /// Does it for V vectors of columns from `col` on.
    fn columns<S: Simd, const V: usize>(&mut self, simd: S, col: usize);
}

/// Does it for all columns: two vectors at a time, or all numbers where a vector is one.
#[inline(always)]
fn for_all<S: Simd>(simd: S, mut work: impl Columns) {
    if S::F32_LANES == 1 {
        return work.columns::<S, BLOCK>(simd, 0);
    }
    for col in (0..BLOCK).step_by(2 * S::F32_LANES) {
        work.columns::<S, 2>(simd, col);
    }
}

impl WithSimd for Maxima<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_all(simd, self);
    }
}

impl Columns for Maxima<'_> {
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(&mut self, simd: S, col: usize) {
        let width = V * S::F32_LANES;
        let into = &mut self.max[col..][..width];
        // SAFETY: `into` has V vectors, and so has each row from `col` on.
        unsafe {
            // Two rows at a time: the next maximum waits for the one before.
            let mut max = [read::<S, V>(into.as_ptr()); 2];
            for rows in self.scores.chunks(2 * BLOCK) {
                for (max, row) in max.iter_mut().zip(rows.chunks_exact(BLOCK)) {
                    let row = read::<S, V>(row[col..][..width].as_ptr());
                    for v in 0..V {
                        max[v] = larger(simd, row[v], max[v]);
                    }
                }
            }
            let [mut max, other] = max;
            for v in 0..V {
                max[v] = larger(simd, max[v], other[v]);
            }
            write::<S, V>(max, into.as_mut_ptr());
        }
    }
}

impl WithSimd for Exponentials<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_all(simd, self);
    }
}

impl Columns for Exponentials<'_> {
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(&mut self, simd: S, col: usize) {
        let width = V * S::F32_LANES;
        let columns = col..col + width;
        let factor = simd.splat_f32s(self.scale * std::f32::consts::LOG2_E);
        let zero = simd.splat_f32s(0.0);
        // SAFETY: these columns of each row and of what belongs to all queries are V vectors.
        unsafe {
            let mut offset = read::<S, V>(self.max[columns.clone()].as_ptr());
            for offset in &mut offset {
                *offset = simd.sub_f32s(zero, simd.mul_f32s(*offset, factor));
            }
            let mut sums = [zero; V];
            let mut dots = [zero; V];
            let mut d_p = self.dots.as_ref().map(|(d_p, _)| d_p.chunks_exact(BLOCK));
            for row in self.scores.chunks_exact_mut(BLOCK) {
                let row = &mut row[columns.clone()];
                let mut e = read::<S, V>(row.as_ptr());
                for v in 0..V {
                    e[v] = exp2(simd, simd.mul_add_e_f32s(e[v], factor, offset[v]));
                    sums[v] = simd.add_f32s(sums[v], e[v]);
                }
                write::<S, V>(e, row.as_mut_ptr());
                if let Some(d_p) = d_p.as_mut().and_then(Iterator::next) {
                    let d_p = read::<S, V>(d_p[columns.clone()].as_ptr());
                    for v in 0..V {
                        dots[v] = simd.mul_add_e_f32s(e[v], d_p[v], dots[v]);
                    }
                }
            }
            add(simd, sums, &mut self.sums[columns.clone()]);
            if let Some((_, all)) = &mut self.dots {
                add(simd, dots, &mut all[columns]);
            }
        }
    }
}

impl WithSimd for Gradients<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for_all(simd, self);
    }
}

impl Columns for Gradients<'_> {
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(&mut self, simd: S, col: usize) {
        let columns = col..col + V * S::F32_LANES;
        // SAFETY: these columns of each row and of what belongs to all queries are V vectors.
        unsafe {
            let dots = read::<S, V>(self.dots[columns.clone()].as_ptr());
            let rows = self.e.chunks_exact_mut(BLOCK);
            for (row, d_p) in rows.zip(self.d_p.chunks_exact(BLOCK)) {
                let row = &mut row[columns.clone()];
                let mut e = read::<S, V>(row.as_ptr());
                let d_p = read::<S, V>(d_p[columns.clone()].as_ptr());
                for v in 0..V {
                    e[v] = simd.mul_f32s(e[v], simd.sub_f32s(d_p[v], dots[v]));
                }
                write::<S, V>(e, row.as_mut_ptr());
            }
        }
    }
}

/// Adds V vectors to as many numbers.
///
/// # Safety
/// There must be V vectors in `into`.
#[inline(always)]
unsafe fn add<S: Simd, const V: usize>(simd: S, values: [S::f32s; V], into: &mut [f32]) {
    // SAFETY: V vectors by contract.
    unsafe {
        let mut sums = read::<S, V>(into.as_ptr());
        crate::lanes::add(simd, &mut sums, values);
        write::<S, V>(sums, into.as_mut_ptr());
    }
}

/// The larger number; the second if either is none.
#[inline(always)]
fn larger<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
    if S::F32_LANES == 1 {
        // This one would choose the number.
        return simd.select_f32s(simd.greater_than_f32s(a, b), a, b);
    }
    simd.max_f32s(a, b)
}

/// `2^x` to 2e-7 of the result, for x up to 0; those under -125 count as that.
#[inline(always)]
fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let round = simd.splat_f32s(ROUND);
    let x = larger(simd, simd.splat_f32s(-125.0), x);
    let shifted = simd.add_f32s(x, round);
    let fraction = simd.sub_f32s(x, simd.sub_f32s(shifted, round));
    let mut sum = simd.splat_f32s(EXP2[5]);
    for coefficient in EXP2[..5].iter().rev() {
        sum = simd.mul_add_e_f32s(sum, fraction, simd.splat_f32s(*coefficient));
    }
    let power = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(sum), power))
}
