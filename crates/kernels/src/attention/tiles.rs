//! Attention on tile registers: see [`crate::amx`].
//!
//! Scores are computed with keys as rows and the queries of a block side by side. So the sums of a
//! softmax run down the columns, one query in each lane, and rows end with the last key, without a
//! mask. Queries behind the last one are rows of zeros, and nobody reads what comes of them.

mod packed;
mod softmax;

use std::ops::Range;

use super::{Attention, Head, Outputs};
use crate::amx::product::{BLOCK, Block, STEP, STEP_BYTES, Steps};
use crate::amx::{Amx, Registers};
use crate::element::Element;
use crate::gemm::Sum;
use crate::scratch::Scratch;
use packed::{Packed, Packing, STEP_LEN};
use softmax::{Gradients, Softmax};

/// Blocks of queries whose gradients are added at a time: fewer read and write sums more often.
const BLOCKS: usize = 2;

/// Floats of a block of sums.
const SUMS_LEN: usize = BLOCK * BLOCK;

/// Whether so few scores are of zeros that fill blocks up that the functions of this module are
/// faster than those for rows: measured for 16 to 1024 positions and 8 to 80 channels.
pub(super) fn applies(attention: &Attention) -> bool {
    let (t, filled) = (
        attention.n_positions,
        attention.n_positions.next_multiple_of(BLOCK),
    );
    attention.head_channels >= STEP / 2 && 3 * filled * filled <= 5 * t * t
}

/// One head, and what its products run on.
pub(super) struct HeadOnTiles<'a, X> {
    head: &'a Head<'a, X>,
    packing: Packing,
    softmax: Softmax,
    registers: Registers,
    /// Of a sum over channels.
    channel_steps: Steps,
    /// Of a sum over positions.
    position_steps: Steps,
}

impl<'a, X: Element> HeadOnTiles<'a, X> {
    pub(super) fn new(head: &'a Head<'a, X>, scale: f32, amx: Amx) -> Self {
        let packing = Packing {
            amx,
            n_positions: head.places.n_positions,
            d: head.places.d,
        };
        Self {
            head,
            packing,
            softmax: Softmax { packing, scale },
            registers: amx.registers(),
            channel_steps: Steps::new(packing.row_steps()),
            position_steps: Steps::new((0..packing.n_blocks()).map(|i| i * STEP_BYTES)),
        }
    }

    /// Computes the outputs, and calls `ahead` for all positions, some at a time.
    pub(super) fn forward<Y: Element>(&self, y: &Outputs<'_, Y>, ahead: impl Fn(Range<usize>)) {
        let packing = &self.packing;
        let keys = packing.rows(|i| self.head.row(1, i));
        let queries = packing.columns(|i| self.head.row(0, i));
        let values = packing.column_pairs(|i| self.head.row(2, i));
        let mut scores = Scratch::new(packing.n_blocks() * SUMS_LEN);
        let mut exponentials = packing.packed_row_pairs(1);
        let [mut sums, mut rows] = [(); 2].map(|()| Scratch::new(SUMS_LEN));
        for block in 0..packing.n_blocks() {
            self.scores(&keys, (&queries, block), &mut scores, &ahead);
            let reciprocals = self.softmax.exponentials(&scores, &mut exponentials.pairs);
            for strip in 0..packing.n_strips() {
                self.multiply_columns((&values, strip), &exponentials, &mut sums);
                packing.amx.transposed(&sums, &mut rows);
                for (row, reciprocal) in rows.chunks_exact_mut(BLOCK).zip(reciprocals) {
                    row.iter_mut().for_each(|x| *x *= reciprocal);
                }
                self.write(&rows, y, 0, (block, strip));
            }
        }
    }

    /// Computes the gradients, and calls `ahead` for all positions, some at a time.
    pub(super) fn backward<Y: Element>(
        &self,
        d_y: &Head<'_, Y>,
        d_qkv: &Outputs<'_, X>,
        ahead: impl Fn(Range<usize>),
    ) {
        let packing = &self.packing;
        let [queries, keys, values] = [0, 1, 2].map(|kind| move |i| self.head.row(kind, i));
        let d_y = |i| d_y.row(0, i);
        let (key_rows, value_rows) = (packing.rows(keys), packing.rows(values));
        let (query_columns, d_y_columns) = (packing.columns(queries), packing.columns(d_y));
        let key_pairs = packing.column_pairs(keys);
        let (query_pairs, d_y_pairs) = (packing.row_pairs(queries), packing.row_pairs(d_y));
        let matrix = || Scratch::new(packing.n_blocks() * SUMS_LEN);
        let (mut scores, mut d_p) = (matrix(), matrix());
        let [mut p, mut d_s] = [(); 2].map(|()| packing.packed_keys(BLOCKS));
        let mut d_s_pairs = packing.packed_row_pairs(1);
        let len = packing.n_strips() * packing.n_blocks() * SUMS_LEN;
        let [mut d_k, mut d_v] = [(); 2].map(|()| Scratch::new(len));
        let [mut sums, mut rows] = [(); 2].map(|()| Scratch::new(SUMS_LEN));
        for first in (0..packing.n_blocks()).step_by(BLOCKS) {
            let blocks = first..packing.n_blocks().min(first + BLOCKS);
            for block in blocks.clone() {
                self.scores(&key_rows, (&query_columns, block), &mut scores, &ahead);
                self.multiply_rows(&value_rows, (&d_y_columns, block), &mut d_p);
                let step = self.key_step(block - first);
                let into = Gradients {
                    p: &mut p.pairs[step.clone()],
                    d_s: &mut d_s.pairs[step],
                    d_s_pairs: &mut d_s_pairs.pairs,
                };
                self.softmax.gradients(&mut scores, &d_p, into);
                for strip in 0..packing.n_strips() {
                    self.multiply_columns((&key_pairs, strip), &d_s_pairs, &mut sums);
                    packing.amx.transposed(&sums, &mut rows);
                    self.write(&rows, d_qkv, 0, (block, strip));
                }
            }
            self.add_keys(&d_s, (&query_pairs, blocks.clone()), &mut d_k);
            self.add_keys(&p, (&d_y_pairs, blocks), &mut d_v);
        }
        for (kind, sums) in [(1, d_k), (2, d_v)] {
            for (idx, sums) in sums.chunks_exact(SUMS_LEN).enumerate() {
                let at = (idx / packing.n_strips(), idx % packing.n_strips());
                self.write(sums, d_qkv, kind, at);
            }
        }
    }

    /// Writes rows of a block of positions in the channels of a strip.
    fn write<Y: Element>(
        &self,
        rows: &[f32],
        into: &Outputs<'_, Y>,
        kind: usize,
        (block, strip): (usize, usize),
    ) {
        let n_channels = STEP.min(self.head.places.d - strip * STEP);
        let positions = block * BLOCK..self.head.places.n_positions.min((block + 1) * BLOCK);
        for (row, position) in rows.chunks_exact(BLOCK).zip(positions) {
            into.write(kind, position, strip * STEP, &row[..n_channels]);
        }
    }

    /// [`Self::multiply_rows`], with calls of `ahead` for the same share of positions as of all such
    /// products.
    fn scores(
        &self,
        a: &Packed,
        (b, block): (&Packed, usize),
        out: &mut [f32],
        ahead: impl Fn(Range<usize>),
    ) {
        let (n_blocks, n) = (self.packing.n_blocks(), self.packing.n_positions);
        for (i, out) in out.chunks_exact_mut(SUMS_LEN).enumerate() {
            let share = |i: usize| (block * n_blocks + i) * n / (n_blocks * n_blocks);
            ahead(share(i)..share(i + 1));
            self.multiply_block((a, i), (b, block), out);
        }
    }

    /// `out = a b^T` for a block of rows of b: sums over channels, `[T, BLOCK]`.
    fn multiply_rows(&self, a: &Packed, (b, block): (&Packed, usize), out: &mut [f32]) {
        for (i, out) in out.chunks_exact_mut(SUMS_LEN).enumerate() {
            self.multiply_block((a, i), (b, block), out);
        }
    }

    /// A block of that.
    fn multiply_block(&self, (a, i): (&Packed, usize), (b, j): (&Packed, usize), out: &mut [f32]) {
        let product = Block {
            a: a.side(i),
            a_steps: &self.channel_steps,
            b: b.side(j),
            sum: Sum::Set,
        };
        self.registers.multiply(&product, out);
    }

    /// `out = a^T b` for a strip of channels of a: sums over keys, `[BLOCK, BLOCK]`.
    fn multiply_columns(&self, (a, strip): (&Packed, usize), b: &Packed, out: &mut [f32]) {
        let product = Block {
            a: a.side(strip),
            a_steps: &self.position_steps,
            b: b.side(0),
            sum: Sum::Set,
        };
        self.registers.multiply(&product, out);
    }

    /// Adds `a b` to the sums of all keys, in blocks of keys and strips of channels: sums over the
    /// queries of some blocks.
    fn add_keys(&self, a: &Packed, (b, blocks): (&Packed, Range<usize>), sums: &mut [f32]) {
        let packing = &self.packing;
        let skipped = blocks.start * STEP_BYTES;
        let steps = blocks.clone().map(|block| {
            let step = self.key_step(block - blocks.start);
            step.start * size_of::<f32>()
        });
        let steps = Steps::new(steps);
        for (idx, sums) in sums.chunks_exact_mut(SUMS_LEN).enumerate() {
            let (block, strip) = (idx / packing.n_strips(), idx % packing.n_strips());
            let product = Block {
                a: a.side(block),
                a_steps: &steps,
                b: b.side_from(strip, skipped),
                sum: if blocks.start == 0 {
                    Sum::Set
                } else {
                    Sum::Add
                },
            };
            self.registers.multiply(&product, sums);
        }
    }

    /// Where a step of a sum over queries stands, for all keys.
    fn key_step(&self, step: usize) -> Range<usize> {
        let len = self.packing.n_blocks() * STEP_LEN;
        step * len..(step + 1) * len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Order;
    use crate::cpu::Shared;
    use crate::element::bf16;
    use crate::reference;

    /// Numbers in [-2, 2].
    fn fill(len: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed) * 104_729 % 1009) as f32 / 252.0 - 2.0;
        (0..len).map(number).collect()
    }

    /// Outputs and gradients of all heads.
    fn run<X: Element>(attention: &Attention, [qkv, d_y]: [&[X]; 2], amx: Amx) -> [Vec<X>; 2] {
        let [mut y, mut d_qkv] = [d_y.len(), qkv.len()].map(|len| vec![X::round(f32::NAN); len]);
        let shared = [Shared::new(&mut y), Shared::new(&mut d_qkv)];
        for task in 0..attention.n * attention.n_heads {
            let (head, places) = (attention.head(qkv, task), attention.output_places(task));
            let outputs = |idx: usize, places| Outputs {
                data: &shared[idx],
                places,
            };
            let tiles = HeadOnTiles::new(&head, attention.scale(), amx);
            let seen = std::cell::RefCell::new(vec![]);
            let ahead = |positions| seen.borrow_mut().extend(positions);
            tiles.forward(&outputs(0, places), ahead);
            let d_y = Head { data: d_y, places };
            tiles.backward(&d_y, &outputs(1, head.places), ahead);
            let all = 0..attention.n_positions;
            assert_eq!(*seen.borrow(), all.clone().chain(all).collect::<Vec<_>>());
        }
        [y, d_qkv]
    }

    #[test]
    fn heads_on_tiles_agree_with_the_reference() {
        let amxs: Vec<_> = Amx::detect().into_iter().chain(Amx::for_tests()).collect();
        for (t, d) in [
            (1, 1),
            (3, 7),
            (7, 33),
            (15, 16),
            (16, 31),
            (17, 32),
            (31, 64),
            (33, 32),
            (70, 5), // a block of queries after those that are added together
            (100, 33),
        ] {
            let attention = Attention {
                n: 2,
                n_positions: t,
                n_heads: 2,
                head_channels: d,
                order: Order::HeadMajor,
            };
            let d_y = fill(attention.n * t * attention.channels(), 1);
            let qkv = fill(3 * d_y.len(), 2);
            let expected = [
                reference::attention(&attention, &qkv),
                reference::attention_backward(&attention, &qkv, &d_y),
            ];
            for &amx in &amxs {
                let results = run(&attention, [&qkv[..], &d_y], amx);
                for (result, expected) in results.iter().zip(&expected) {
                    let scale = expected.iter().fold(1.0f64, |max, x| max.max(x.abs()));
                    for (result, expected) in result.iter().zip(expected) {
                        let error = (f64::from(*result) - expected).abs() / scale;
                        assert!(error < 1e-2, "T {t}, D {d}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_has_the_bits_of_the_same_numbers_in_f32() {
        for amx in Amx::detect().into_iter().chain(Amx::for_tests()) {
            for (n_positions, head_channels) in [(3, 7), (17, 32), (70, 5), (100, 33)] {
                let attention = Attention {
                    n: 2,
                    n_positions,
                    n_heads: 2,
                    head_channels,
                    order: Order::KindMajor,
                };
                let as_halves =
                    |x: &[f32]| -> Vec<_> { x.iter().copied().map(bf16::from_f32).collect() };
                let len = 2 * n_positions * attention.channels();
                let halves = [3 * len, len].map(|len| as_halves(&fill(len, 1)));
                let found = run(&attention, halves.each_ref().map(Vec::as_slice), amx);
                let wide = halves.map(|x| x.iter().map(|x| x.to_f32()).collect::<Vec<_>>());
                let expected = run(&attention, wide.each_ref().map(Vec::as_slice), amx);
                assert_eq!(found, expected.map(|x| as_halves(&x)), "{attention:?}");
            }
        }
    }

    #[test]
    fn few_positions_and_channels_are_left_to_rows() {
        let sizes = Attention {
            n: 1,
            n_positions: 64,
            n_heads: 1,
            head_channels: 32,
            order: Order::HeadMajor,
        };
        assert!(applies(&sizes));
        assert!(!applies(&Attention {
            n_positions: 33,
            ..sizes
        }));
        assert!(!applies(&Attention {
            head_channels: 8,
            ..sizes
        }));
    }
}
