//! What stands between the products: exponentials and their gradient, packed as they are computed.
//!
//! A row holds what belongs to one key, for [`BLOCK`] queries side by side.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::super::EXP2;
use super::packed::Packing;
use crate::amx::SIDE;
use crate::amx::pack::{self, pairs_along};
use crate::amx::product::BLOCK;
use crate::elementwise::ROUND;

/// The softmax of a block of queries.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// Whoever has one has the instructions.
    pub(super) packing: Packing,
    /// What scores are multiplied by.
    pub(super) scale: f32,
}

/// Where [`Softmax::gradients`] writes. All rows behind the last key are zeros.
pub(super) struct Gradients<'a> {
    /// Probabilities, as pairs of neighbors in rows.
    pub(super) p: &'a mut [f32],
    /// Gradients of the scores, likewise.
    pub(super) d_s: &'a mut [f32],
    /// The same, as pairs of rows.
    pub(super) d_s_pairs: &'a mut [f32],
}

/// A number for each query.
type Queries = [__m512; 2];

impl Softmax {
    /// Writes `e^(scale (score - max))` as pairs of rows, and returns the reciprocals of the sums.
    ///
    /// `scores` is `[keys, BLOCK]`.
    pub(super) fn exponentials(&self, scores: &[f32], pairs: &mut [f32]) -> [f32; BLOCK] {
        // SAFETY: the instructions are there.
        unsafe { self.exponentials_in(scores, pairs) }
    }

    /// Writes probabilities, and the gradients of the scores given those of the probabilities.
    ///
    /// `scores` and `d_p` are `[keys, BLOCK]`; exponentials replace the scores.
    pub(super) fn gradients(&self, scores: &mut [f32], d_p: &[f32], mut into: Gradients<'_>) {
        // SAFETY: the instructions are there.
        unsafe { self.gradients_in(scores, d_p, &mut into) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn exponentials_in(&self, scores: &[f32], pairs: &mut [f32]) -> [f32; BLOCK] {
        let exponent = self.exponent(scores);
        let mut sums = [_mm512_setzero_ps(); 2];
        let pairs = pairs.chunks_exact_mut(BLOCK);
        let mut rows = scores.chunks_exact(BLOCK).take(self.packing.n_positions);
        for pairs in pairs {
            let mut halves = [_mm512_setzero_si512(); 2];
            for half in &mut halves {
                let Some(row) = rows.next() else { continue };
                let e = exponent.of(load(row));
                for i in 0..2 {
                    sums[i] = _mm512_add_ps(sums[i], e[i]);
                }
                *half = pairs_along(e);
            }
            store_pairs(halves, pairs);
        }
        reciprocals(sums)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn gradients_in(&self, scores: &mut [f32], d_p: &[f32], into: &mut Gradients<'_>) {
        let exponent = self.exponent(scores);
        let [mut sums, mut dots] = [[_mm512_setzero_ps(); 2]; 2];
        let rows = scores.chunks_exact_mut(BLOCK).zip(d_p.chunks_exact(BLOCK));
        for (row, d_p) in rows.take(self.packing.n_positions) {
            let (e, d_p) = (exponent.of(load(row)), load(d_p));
            for i in 0..2 {
                sums[i] = _mm512_add_ps(sums[i], e[i]);
                dots[i] = _mm512_fmadd_ps(e[i], d_p[i], dots[i]);
            }
            store(e, row);
        }
        let reciprocals = load(&reciprocals(sums));
        for i in 0..2 {
            dots[i] = _mm512_mul_ps(dots[i], reciprocals[i]);
        }
        let scale = _mm512_set1_ps(self.scale);
        let mut rows = scores
            .chunks_exact(BLOCK)
            .zip(d_p.chunks_exact(BLOCK))
            .take(self.packing.n_positions);
        let into = into
            .p
            .chunks_exact_mut(2 * SIDE)
            .zip(into.d_s.chunks_exact_mut(2 * SIDE))
            .zip(into.d_s_pairs.chunks_exact_mut(BLOCK));
        for ((p_into, d_s_into), pairs) in into {
            let mut halves = [_mm512_setzero_si512(); 2];
            let into = p_into
                .chunks_exact_mut(SIDE)
                .zip(d_s_into.chunks_exact_mut(SIDE));
            for (half, (p_into, d_s_into)) in halves.iter_mut().zip(into) {
                let mut p_half = *half;
                if let Some((row, d_p)) = rows.next() {
                    let (mut p, mut d_s) = (load(row), load(d_p));
                    for i in 0..2 {
                        p[i] = _mm512_mul_ps(p[i], reciprocals[i]);
                        d_s[i] = _mm512_mul_ps(p[i], _mm512_sub_ps(d_s[i], dots[i]));
                        d_s[i] = _mm512_mul_ps(d_s[i], scale);
                    }
                    p_half = pairs_along(p);
                    *half = pairs_along(d_s);
                }
                pack::store(p_half, p_into);
                pack::store(*half, d_s_into);
            }
            store_pairs(halves, pairs);
        }
    }

    /// `e^(scale (score - max))` for the largest score of each query.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn exponent(&self, scores: &[f32]) -> Exponent {
        // Two rows at a time: the next maximum waits for the one before.
        let mut max = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
        for rows in scores[..self.packing.n_positions * BLOCK].chunks(2 * BLOCK) {
            for (max, scores) in max.iter_mut().zip(rows.chunks_exact(SIDE)) {
                *max = _mm512_max_ps(load_line(scores), *max);
            }
        }
        let factor = _mm512_set1_ps(self.scale * std::f32::consts::LOG2_E);
        Exponent {
            factor,
            offset: [
                _mm512_mul_ps(_mm512_max_ps(max[0], max[2]), factor),
                _mm512_mul_ps(_mm512_max_ps(max[1], max[3]), factor),
            ],
        }
    }
}

/// `2^(factor x - offset)`.
struct Exponent {
    factor: __m512,
    offset: Queries,
}

impl Exponent {
    /// To 2e-7 of the result, for exponents up to 0; those under -125 count as that.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of(&self, x: Queries) -> Queries {
        let round = _mm512_set1_ps(ROUND);
        let mut powers = x;
        for i in 0..2 {
            let x = _mm512_fmsub_ps(x[i], self.factor, self.offset[i]);
            // NaN stays: it is the second operand.
            let x = _mm512_max_ps(_mm512_set1_ps(-125.0), x);
            let shifted = _mm512_add_ps(x, round);
            let fraction = _mm512_sub_ps(x, _mm512_sub_ps(shifted, round));
            let mut sum = _mm512_set1_ps(EXP2[5]);
            for coefficient in EXP2[..5].iter().rev() {
                sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(*coefficient));
            }
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            powers[i] = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), power));
        }
        powers
    }
}

/// Writes two rows as pairs of their numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn store_pairs([first, second]: [__m512i; 2], into: &mut [f32]) {
    const fn alternating(first: u32) -> [u32; SIDE] {
        let mut pairs = [0; SIDE];
        let mut i = 0;
        while i < SIDE {
            let number = first + i as u32;
            pairs[i] = number | (number + 32) << 16;
            i += 1;
        }
        pairs
    }
    const ORDERS: [[u32; SIDE]; 2] = [alternating(0), alternating(16)];
    for (order, into) in ORDERS.iter().zip(into.chunks_exact_mut(SIDE)) {
        // SAFETY: both types are 512 bits.
        let order = unsafe { transmute::<[u32; SIDE], __m512i>(*order) };
        pack::store(_mm512_permutex2var_epi16(first, order, second), into);
    }
}

/// `1 / sum` for each query.
#[inline]
#[target_feature(enable = "avx512f")]
fn reciprocals(sums: Queries) -> [f32; BLOCK] {
    let mut reciprocals = [0.0; BLOCK];
    let one = _mm512_set1_ps(1.0);
    store(
        [_mm512_div_ps(one, sums[0]), _mm512_div_ps(one, sums[1])],
        &mut reciprocals,
    );
    reciprocals
}

/// Reads a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &[f32]) -> Queries {
    [load_line(row), load_line(&row[SIDE..])]
}

/// Reads one vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_line(line: &[f32]) -> __m512 {
    let line = &line[..SIDE];
    // SAFETY: there are 16 numbers.
    unsafe { _mm512_loadu_ps(line.as_ptr()) }
}

/// Writes a row.
#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: Queries, into: &mut [f32]) {
    for (half, into) in row.into_iter().zip(into.chunks_exact_mut(SIDE)) {
        pack::store(_mm512_castps_si512(half), into);
    }
}
