//! Attention in f32 for every instruction set: the queries of a block side by side in vectors.
//!
//! Scores are computed with keys as rows, as on tile registers. So the sums of a softmax run down
//! the columns, one query in each lane. A block of queries sees all keys a chunk at a time: what
//! happens to the scores of a chunk happens while they are in the first-level cache. Queries behind
//! the last one are columns of zeros, and nobody reads what comes of them.

mod product;
mod rows;
mod softmax;

use std::ops::Range;

use super::{Head, Outputs};
use crate::cpu::Isa;
use crate::gemm::Sum;
use crate::panels::COLS;
use crate::scratch::Scratch;
use product::{Across, Along};
use rows::{Rows, copy_columns, padded};
use softmax::{Exponentials, Gradients, Maxima};

/// Queries of a block.
const BLOCK: usize = COLS;

/// Keys of a chunk: whole register tiles.
const KEYS: usize = 48;

/// A number for each query of a block.
type Queries = [f32; BLOCK];

/// One head, and what it is computed with.
pub(super) struct HeadInVectors<'a> {
    head: &'a Head<'a>,
    scale: f32,
    isa: Isa,
}

impl<'a> HeadInVectors<'a> {
    pub(super) fn new(head: &'a Head<'a>, scale: f32, isa: Isa) -> Self {
        Self { head, scale, isa }
    }

    /// Computes the outputs, and calls `ahead` for all positions, some at a time.
    pub(super) fn forward(&self, y: &Outputs<'_>, ahead: impl Fn(Range<usize>)) {
        let (t, d) = (self.head.places.n_positions, self.head.places.d);
        let [keys, values] = [1, 2].map(|kind| Rows::all(self.head, kind, self.isa));
        let mut scores = Scratch::new(padded(t) * BLOCK);
        let mut columns = Scratch::new(d * BLOCK);
        let mut out = Rows::new(BLOCK, d);
        for queries in steps(t, BLOCK) {
            let n = queries.len();
            let mut ahead = Ahead::new(&ahead, &queries, 2 * t.div_ceil(KEYS));
            let max = self.scores(&keys, &queries, (&mut columns, &mut scores), &mut ahead);
            let mut sums = [0.0; BLOCK];
            for chunk in steps(t, KEYS) {
                ahead.step();
                self.isa.dispatch(Exponentials {
                    scores: &mut scores[of(&chunk)],
                    scale: self.scale,
                    max: &max,
                    sums: &mut sums,
                    dots: None,
                });
                self.add_keys(&scores, &values, chunk, (n, &mut out));
            }
            let reciprocals = sums.map(|sum| 1.0 / sum);
            out.write(|i| reciprocals[i], (y, 0, queries), self.isa);
        }
    }

    /// Computes the gradients, and calls `ahead` for all positions, some at a time.
    pub(super) fn backward(
        &self,
        d_y: &Head<'_>,
        d_qkv: &Outputs<'_>,
        ahead: impl Fn(Range<usize>),
    ) {
        let (t, d) = (self.head.places.n_positions, self.head.places.d);
        let [keys, values] = [1, 2].map(|kind| Rows::all(self.head, kind, self.isa));
        let [mut d_k, mut d_v] = [(); 2].map(|()| Rows::new(t, d));
        let [mut scores, mut d_p] = [(); 2].map(|()| Scratch::new(padded(t) * BLOCK));
        let [mut q_columns, mut d_y_columns] = [(); 2].map(|()| Scratch::new(d * BLOCK));
        let [mut q_rows, mut d_y_rows, mut d_q] = [(); 3].map(|()| Rows::new(BLOCK, d));
        for queries in steps(t, BLOCK) {
            let n = queries.len();
            let mut ahead = Ahead::new(&ahead, &queries, 3 * t.div_ceil(KEYS));
            let into = (&mut *q_columns, &mut *scores);
            let max = self.scores(&keys, &queries, into, &mut ahead);
            copy_columns(d_y, 0, &queries, &mut d_y_columns);
            let [mut sums, mut dots] = [[0.0; BLOCK]; 2];
            for chunk in steps(t, KEYS) {
                ahead.step();
                self.multiply(&values, (n, &d_y_columns), &chunk, &mut d_p);
                self.isa.dispatch(Exponentials {
                    scores: &mut scores[of(&chunk)],
                    scale: self.scale,
                    max: &max,
                    sums: &mut sums,
                    dots: Some((&d_p[of(&chunk)], &mut dots)),
                });
            }
            // Exponentials stay as they are: what they are multiplied by is divided by their sum.
            let reciprocals = sums.map(|sum| 1.0 / sum);
            let scales = reciprocals.map(|reciprocal| self.scale * reciprocal);
            for (dot, reciprocal) in dots.iter_mut().zip(reciprocals) {
                *dot *= reciprocal;
            }
            q_rows.copy((self.head, 0, queries.clone()), |i| scales[i], self.isa);
            d_y_rows.copy((d_y, 0, queries.clone()), |i| reciprocals[i], self.isa);
            let sum = sum_from(queries.start);
            for chunk in steps(t, KEYS) {
                ahead.step();
                self.add_queries(&scores, (n, &d_y_rows), &chunk, (sum, &mut d_v));
                self.isa.dispatch(Gradients {
                    e: &mut scores[of(&chunk)],
                    d_p: &d_p[of(&chunk)],
                    dots: &dots,
                });
                self.add_queries(&scores, (n, &q_rows), &chunk, (sum, &mut d_k));
                self.add_keys(&scores, &keys, chunk, (n, &mut d_q));
            }
            d_q.write(|i| scales[i], (d_qkv, 0, queries), self.isa);
        }
        for (kind, gradient) in [(1, d_k), (2, d_v)] {
            gradient.write(|_| 1.0, (d_qkv, kind, 0..t), self.isa);
        }
    }

    /// Writes the products of all keys with some queries, and returns the largest for each query.
    fn scores(
        &self,
        keys: &Rows,
        queries: &Range<usize>,
        (columns, scores): (&mut [f32], &mut [f32]),
        ahead: &mut Ahead<impl Fn(Range<usize>)>,
    ) -> Queries {
        copy_columns(self.head, 0, queries, columns);
        let mut max = [f32::NEG_INFINITY; BLOCK];
        for chunk in steps(self.head.places.n_positions, KEYS) {
            ahead.step();
            self.multiply(keys, (queries.len(), columns), &chunk, scores);
            self.isa.dispatch(Maxima {
                scores: &scores[of(&chunk)],
                max: &mut max,
            });
        }
        max
    }

    /// `out[key] = sum over channels of rows[key][channel] * columns[channel]` for the keys of a
    /// chunk and n queries.
    fn multiply(
        &self,
        rows: &Rows,
        (n, columns): (usize, &[f32]),
        chunk: &Range<usize>,
        out: &mut [f32],
    ) {
        self.isa.dispatch(Along {
            a: rows.at(chunk.start),
            b: (columns, 0),
            depth: self.head.places.d,
            out: (&mut out[chunk.start * BLOCK..], 0),
            n_rows: chunk.len(),
            n_cols: n,
            sum: Sum::Set,
        });
    }

    /// `out[key] = sum over n queries of a[key][query] * rows[query]` for the keys of a chunk, or
    /// that added to it.
    fn add_queries(
        &self,
        a: &[f32],
        (n, rows): (usize, &Rows),
        chunk: &Range<usize>,
        (sum, out): (Sum, &mut Rows),
    ) {
        self.isa.dispatch(Along {
            a: (&a[chunk.start * BLOCK..], 0),
            b: rows.at(0),
            depth: n,
            out: out.at_mut(chunk.start),
            n_rows: chunk.len(),
            n_cols: self.head.places.d,
            sum,
        });
    }

    /// `out[query] = sum over keys of a[key][query] * rows[key]` for n queries, the keys of a chunk
    /// added to those before.
    fn add_keys(&self, a: &[f32], rows: &Rows, chunk: Range<usize>, (n, out): (usize, &mut Rows)) {
        self.isa.dispatch(Across {
            a: (&a[chunk.start * BLOCK..], 0),
            b: rows.at(chunk.start),
            depth: chunk.len(),
            out: out.at_mut(0),
            n_rows: n,
            n_cols: self.head.places.d,
            sum: sum_from(chunk.start),
        });
    }
}

/// Calls a function for the positions of a block in equal steps: all at once would be more lines
/// than the processor can wait for.
struct Ahead<'a, F> {
    f: &'a F,
    positions: &'a Range<usize>,
    n_steps: usize,
    n_done: usize,
}

impl<'a, F: Fn(Range<usize>)> Ahead<'a, F> {
    fn new(f: &'a F, positions: &'a Range<usize>, n_steps: usize) -> Self {
        Self {
            f,
            positions,
            n_steps,
            n_done: 0,
        }
    }

    fn step(&mut self) {
        let until = |n| self.positions.start + self.positions.len() * n / self.n_steps;
        (self.f)(until(self.n_done)..until(self.n_done + 1));
        self.n_done += 1;
    }
}

/// `0..n` in ranges of `step`.
fn steps(n: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n)
        .step_by(step)
        .map(move |first| first..n.min(first + step))
}

/// Where the numbers of some keys are, with one for each query of a block.
fn of(keys: &Range<usize>) -> Range<usize> {
    keys.start * BLOCK..keys.end * BLOCK
}

/// What is done with a sum whose first part begins at 0.
fn sum_from(first: usize) -> Sum {
    match first {
        0 => Sum::Set,
        _ => Sum::Add,
    }
}
