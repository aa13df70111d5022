//! Attention whose products round their inputs to bf16, where tile registers are missing or would
//! stay half empty.

mod products;

use std::ops::Range;

use super::{Head, Outputs};
use crate::cpu::Cpu;
use crate::elementwise::exp;
use crate::gemm::{ROWS, Sum};
use crate::scratch::Scratch;
use products::{Input, Left, Products, Right};

/// Queries whose scores are in memory at a time.
const QUERIES: usize = 8 * ROWS;

/// One head, and what its products run on.
pub(super) struct HeadInRows {
    head: Input,
    scale: f32,
    products: Products,
}

impl HeadInRows {
    pub(super) fn new(head: &Head<'_>, scale: f32, cpu: Cpu) -> Self {
        let products = Products::new(cpu);
        Self {
            head: products.input(head, 3),
            scale,
            products,
        }
    }

    /// Computes the outputs, and calls `ahead` for all positions, some at a time.
    pub(super) fn forward(&self, y: &Outputs<'_>, ahead: impl Fn(Range<usize>)) {
        let (head, products) = (self.head.head(), &self.products);
        let (t, d) = (head.places.n_positions, head.places.d);
        let (keys, values) = (products.columns(&head, 1), products.rows(&head, 2));
        let mut scores = Scratch::new(QUERIES.min(t) * t);
        let mut out = Scratch::new(QUERIES.min(t) * d);
        for first in (0..t).step_by(QUERIES) {
            let n_queries = QUERIES.min(t - first);
            let scores = &mut scores[..n_queries * t];
            self.scores(Left::rows(&head, 0, first), &keys, scores, |rows| {
                ahead(first + rows.start..first + rows.end);
            });
            let reciprocals = self.exponentials(scores, t);
            products.round(scores);
            let out = &mut out[..n_queries * d];
            products.multiply(Left::matrix(scores, t), &values, out);
            for (i, (row, reciprocal)) in out.chunks_exact_mut(d).zip(&*reciprocals).enumerate() {
                row.iter_mut().for_each(|x| *x *= reciprocal);
                y.write(0, first + i, 0, row);
            }
        }
    }

    /// Computes the gradients, and calls `ahead` for all positions, some at a time.
    pub(super) fn backward(
        &self,
        d_y: &Head<'_>,
        d_qkv: &Outputs<'_>,
        ahead: impl Fn(Range<usize>),
    ) {
        let (head, products) = (self.head.head(), &self.products);
        let d_y = products.input(d_y, 1);
        let d_y = d_y.head();
        let (t, d) = (head.places.n_positions, head.places.d);
        let (keys, key_rows) = (products.columns(&head, 1), products.rows(&head, 1));
        let values = products.columns(&head, 2);
        let [mut d_k, mut d_v] = [(); 2].map(|()| Scratch::new(t * d));
        let mut d_q = Scratch::new(QUERIES.min(t) * d);
        // The last strip reads past the last row.
        let matrix = || Scratch::new(QUERIES.min(t) * t + ROWS);
        let (mut p, mut d_s) = (matrix(), matrix());
        for first in (0..t).step_by(QUERIES) {
            let n_queries = QUERIES.min(t - first);
            let (live_p, live_d_s) = (&mut p[..n_queries * t], &mut d_s[..n_queries * t]);
            self.scores(Left::rows(&head, 0, first), &keys, live_p, |rows| {
                ahead(first + rows.start..first + rows.end);
            });
            let reciprocals = self.exponentials(live_p, t);
            products.multiply(Left::rows(&d_y, 0, first), &values, live_d_s);
            self.softmax_backward(live_p, &reciprocals, live_d_s);
            products.round(live_p);
            products.round(live_d_s);
            let d_q = &mut d_q[..n_queries * d];
            products.multiply(Left::matrix(live_d_s, t), &key_rows, d_q);
            for (i, row) in d_q.chunks_exact(d).enumerate() {
                d_qkv.write(0, first + i, 0, row);
            }
            let sum = if first == 0 { Sum::Set } else { Sum::Add };
            let sizes = [n_queries, t, d];
            for (a, b, out) in [
                (&d_s, Left::rows(&head, 0, first), &mut d_k),
                (&p, Left::rows(&d_y, 0, first), &mut d_v),
            ] {
                products.add_outer((Left::matrix(a, t), b), sizes, sum, out);
            }
        }
        for (kind, gradient) in [(1, d_k), (2, d_v)] {
            for (position, row) in gradient.chunks_exact(d).enumerate() {
                d_qkv.write(kind, position, 0, row);
            }
        }
    }

    /// Replaces each row of scores by `e^(scale (score - max))`, and returns the reciprocals of the
    /// sums.
    fn exponentials(&self, scores: &mut [f32], t: usize) -> Scratch {
        let mut reciprocals = Scratch::new(scores.len() / t);
        let scale = self.scale;
        self.products.isa().vectorize(
            #[inline(always)]
            |mul_add| {
                for (row, reciprocal) in scores.chunks_exact_mut(t).zip(&mut *reciprocals) {
                    let max = reduce(
                        row,
                        row,
                        f32::NEG_INFINITY,
                        |max, s, _| if s > max { s } else { max },
                    );
                    for s in row.iter_mut() {
                        *s = exp((*s - max) * scale, mul_add);
                    }
                    *reciprocal = 1.0 / reduce(row, row, 0.0, |sum, s, _| sum + s);
                }
            },
        );
        reciprocals
    }

    /// Turns exponentials into probabilities p, and their gradient `d_p` into that of the unscaled
    /// scores: `p (d_p - sum(p d_p)) / sqrt(D)`.
    fn softmax_backward(&self, e: &mut [f32], reciprocals: &[f32], d_p: &mut [f32]) {
        let (t, scale) = (e.len() / reciprocals.len(), self.scale);
        self.products.isa().vectorize(
            #[inline(always)]
            |_| {
                let rows = e.chunks_exact_mut(t).zip(d_p.chunks_exact_mut(t));
                for ((e, d_p), reciprocal) in rows.zip(reciprocals) {
                    let dot = reciprocal * reduce(e, d_p, 0.0, |dot, e, d_p| dot + e * d_p);
                    for (e, d_p) in e.iter_mut().zip(d_p.iter_mut()) {
                        *e *= reciprocal;
                        *d_p = *e * (*d_p - dot) * scale;
                    }
                }
            },
        );
    }

    /// Products of queries with all keys; calls `ahead` for some queries at a time.
    fn scores(&self, a: Left<'_>, b: &Right, out: &mut [f32], ahead: impl Fn(Range<usize>)) {
        let n = b.n();
        for (i, out) in out.chunks_mut(ROWS * n).enumerate() {
            let first = i * ROWS;
            ahead(first..first + out.len() / n);
            self.products.multiply(a.from(first), b, out);
        }
    }
}

/// Folds two rows into one number in 16 interleaved lanes, so that it vectorizes in a fixed order.
///
/// `start` must be neutral, and `f(a, lane, 1)` must join a lane to the result.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], start: f32, f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [start; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = f(lanes[i], a, b);
    }
    lanes.into_iter().fold(start, |sum, lane| f(sum, lane, 1.0))
}
