//! The gradient of the weights: sums over pixels, two at a time.
//!
//! A register adds products of neighbors in memory. Neighboring pixels would have to be paired anew
//! for every tap; so the pixels of a pair come from two slabs of the picture that lie far apart, and
//! a tap shifts both. Sums are cut by the sizes alone and added in a fixed order.

use std::ops::Range;

use super::picture::Picture;
use super::{Conv2d, Pass};
use crate::amx::product::{BLOCK, Block, STEP_BYTES, Side, Steps};
use crate::amx::{Amx, Registers, SIDE};
use crate::cpu::{Cpu, Shared};
use crate::element::Element;
use crate::gemm::Sum;
use crate::scratch::Scratch;

/// Floats of packed pixels that a thread keeps in a second-level cache of 2 MiB.
const CHUNK_LEN: usize = 200 << 10;

/// Pixels of a slab that are packed for all threads together.
const SHARED_POSITIONS: usize = 2048;

/// Fewest pixels of a group with sums of its own.
const GROUP_POSITIONS: usize = 4096;

/// Most groups: more feed no more threads, but have to be added.
const MAX_GROUPS: usize = 16;

/// Floats of all groups' sums.
const GROUPS_LEN: usize = 3 << 20;

/// Weights of which a group's sums stay in a second-level cache.
const GROUP_LEN: usize = 9 * 160 * 160;

/// Floats of a block of sums.
const SUMS_LEN: usize = BLOCK * BLOCK;

/// What the gradient is of.
pub(super) struct WeightGradient<'a, X, Y> {
    picture: Picture,
    /// `[N, H, W, C_in]`.
    x: &'a [X],
    c_in: usize,
    /// `[N, H, W, C_out]`.
    d_y: &'a [Y],
    c_out: usize,
    amx: Amx,
    cpu: Cpu,
}

impl<'a, X: Element, Y: Element> WeightGradient<'a, X, Y> {
    pub(super) fn new(conv: &Conv2d, (x, d_y): (&'a [X], &'a [Y]), amx: Amx, cpu: Cpu) -> Self {
        Self {
            picture: Picture::of(conv),
            x,
            c_in: conv.c_in,
            d_y,
            c_out: conv.c_out,
            amx,
            cpu,
        }
    }

    /// By rows if a thread's sums of all weights fit its cache, and there are pixels for several
    /// threads.
    pub(super) fn pass(&self) -> Pass {
        let n_weights = self.picture.n_taps() * self.c_in * self.c_out;
        if n_weights <= GROUP_LEN && self.picture.n_positions() >= 2 * GROUP_POSITIONS {
            Pass::ByRows
        } else {
            Pass::ByChannels
        }
    }

    pub(super) fn run(&self, pass: Pass, d_weight: &mut [f32], d_bias: &mut [f32]) {
        match pass {
            Pass::ByRows => self.by_groups(d_weight, d_bias),
            Pass::ByChannels => self.by_blocks(d_weight, d_bias),
        }
    }

    /// Passes over groups of rows, each with sums of all weights of its own, and adds those.
    fn by_groups(&self, d_weight: &mut [f32], d_bias: &mut [f32]) {
        let n_rows = self.picture.n_rows();
        let (bias_len, sums_len) = (self.n_strips()[0] * BLOCK, self.n_sums() * SUMS_LEN);
        let n_groups = (self.picture.n_positions() / GROUP_POSITIONS)
            .min(GROUPS_LEN / sums_len)
            .clamp(1, MAX_GROUPS);
        let group_rows = n_rows.div_ceil(n_groups);
        let positions = CHUNK_LEN / (BLOCK * self.n_strips().iter().sum::<usize>());
        let most_rows = self.chunk_rows(positions).min(group_rows);
        let group_len = bias_len + sums_len;
        let mut groups = Scratch::new(n_rows.div_ceil(group_rows) * group_len);
        let shared = Shared::new(&mut groups);
        self.cpu
            .threads
            .for_each(n_rows.div_ceil(group_rows), |group| {
                // SAFETY: each group has its own sums.
                let own = unsafe { shared.tile(group * group_len, group_len) };
                let (bias, sums) = own.split_at_mut(bias_len);
                bias.fill(0.0);
                let rows = group * group_rows..n_rows.min((group + 1) * group_rows);
                let mut packed = Scratch::new(self.chunk(0..most_rows).len());
                let registers = self.amx.registers();
                let mut sum = Sum::Set;
                for chunk in self.chunks(rows, most_rows) {
                    for (strip, bias) in bias.chunks_exact_mut(BLOCK).enumerate() {
                        chunk.pack_gradient(strip, &mut packed[chunk.d_y_strip(strip)], bias);
                    }
                    for strip in 0..self.n_strips()[1] {
                        chunk.pack_input(strip, &mut packed[chunk.x_strip(strip)]);
                    }
                    for (idx, sums) in sums.chunks_exact_mut(SUMS_LEN).enumerate() {
                        chunk.add(&registers, &packed, idx, (sums, sum));
                    }
                    sum = Sum::Add;
                }
            });
        let groups: Vec<_> = groups
            .chunks_exact(group_len)
            .map(|group| group.split_at(bias_len))
            .collect();
        for (i, d_bias) in d_bias.iter_mut().enumerate() {
            *d_bias = groups.iter().map(|(bias, _)| bias[i]).sum();
        }
        let sums: Vec<_> = groups.into_iter().map(|(_, sums)| sums).collect();
        self.write(&sums, d_weight);
    }

    /// For many weights: packs chunks of rows for all threads, then passes over blocks of channels.
    fn by_blocks(&self, d_weight: &mut [f32], d_bias: &mut [f32]) {
        let [n_d_y, n_x] = self.n_strips();
        let most_rows = self.chunk_rows(SHARED_POSITIONS).min(self.picture.n_rows());
        let mut packed = Scratch::new(self.chunk(0..most_rows).len());
        let mut bias = Scratch::zeros(n_d_y * BLOCK);
        let mut sums = Scratch::new(self.n_sums() * SUMS_LEN);
        let mut sum = Sum::Set;
        for chunk in self.chunks(0..self.picture.n_rows(), most_rows) {
            let (into, into_bias) = (Shared::new(&mut packed), Shared::new(&mut bias));
            self.cpu.threads.for_each(n_d_y + n_x, |strip| {
                // SAFETY: strips and their sums are disjoint.
                let into = |range: Range<usize>| unsafe { into.tile(range.start, range.len()) };
                if strip < n_d_y {
                    // SAFETY: as above.
                    let bias = unsafe { into_bias.tile(strip * BLOCK, BLOCK) };
                    chunk.pack_gradient(strip, into(chunk.d_y_strip(strip)), bias);
                } else {
                    chunk.pack_input(strip - n_d_y, into(chunk.x_strip(strip - n_d_y)));
                }
            });
            let (packed, into_sums) = (&packed[..], Shared::new(&mut sums));
            self.cpu.threads.for_each(self.n_sums(), |idx| {
                // SAFETY: sums are disjoint.
                let sums = unsafe { into_sums.tile(idx * SUMS_LEN, SUMS_LEN) };
                chunk.add(&self.amx.registers(), packed, idx, (sums, sum));
            });
            sum = Sum::Add;
        }
        d_bias.copy_from_slice(&bias[..self.c_out]);
        self.write(&[&sums], d_weight);
    }

    /// Strips of channels of the output's gradient and the input.
    fn n_strips(&self) -> [usize; 2] {
        [self.c_out, self.c_in].map(|channels| channels.div_ceil(BLOCK))
    }

    /// Blocks of sums: each strip of outputs with each of inputs, tap by tap.
    fn n_sums(&self) -> usize {
        let [n_d_y, n_x] = self.n_strips();
        n_d_y * n_x * self.picture.n_taps()
    }

    /// Rows of a chunk whose slabs have about so many positions, but not so few that margins cost
    /// more than the rest.
    fn chunk_rows(&self, positions: usize) -> usize {
        let rows = positions / self.picture.row_len();
        2 * rows.max(4 * self.picture.margin_rows()).max(1)
    }

    fn chunk(&self, rows: Range<usize>) -> Chunk<'_, X, Y> {
        let slab_rows = rows.len().div_ceil(2);
        let n_outputs = slab_rows * self.picture.row_len();
        let n_steps = n_outputs.div_ceil(SIDE);
        Chunk {
            of: self,
            rows,
            slab_rows,
            n_positions: n_steps * SIDE,
            steps: Steps::new((0..n_steps).map(|i| i * STEP_BYTES)),
        }
    }

    fn chunks(&self, rows: Range<usize>, most: usize) -> impl Iterator<Item = Chunk<'_, X, Y>> {
        let end = rows.end;
        rows.step_by(most)
            .map(move |first| self.chunk(first..end.min(first + most)))
    }

    /// Adds the sums of groups in order and writes them as `[taps, C_in, C_out]`.
    fn write(&self, groups: &[&[f32]], d_weight: &mut [f32]) {
        let (n_taps, n_x) = (self.picture.n_taps(), self.n_strips()[1]);
        let d_weight = Shared::new(d_weight);
        self.cpu.threads.for_each(self.n_sums(), |idx| {
            let (block, tap) = (idx / n_taps, idx % n_taps);
            let [c_out, c_in] = [block / n_x * BLOCK, block % n_x * BLOCK];
            let mut sum = Scratch::new(SUMS_LEN);
            sum.copy_from_slice(&groups[0][idx * SUMS_LEN..][..SUMS_LEN]);
            self.cpu.isa.vectorize(
                #[inline(always)]
                |_| {
                    for group in &groups[1..] {
                        for (sum, value) in sum.iter_mut().zip(&group[idx * SUMS_LEN..]) {
                            *sum += value;
                        }
                    }
                },
            );
            let n_cols = BLOCK.min(self.c_out - c_out);
            for i in 0..BLOCK.min(self.c_in - c_in) {
                let start = (tap * self.c_in + c_in + i) * self.c_out + c_out;
                // SAFETY: blocks are disjoint.
                let row = unsafe { d_weight.tile(start, n_cols) };
                for (j, value) in row.iter_mut().enumerate() {
                    *value = sum[j * BLOCK + i];
                }
            }
        });
    }
}

/// Rows whose products are added at a time, in two slabs: the pixels of a pair.
struct Chunk<'a, X, Y> {
    of: &'a WeightGradient<'a, X, Y>,
    rows: Range<usize>,
    slab_rows: usize,
    /// Positions of a slab that have outputs, and some to fill a step.
    n_positions: usize,
    /// Where their products are, from the first on.
    steps: Steps,
}

impl<X: Element, Y: Element> Chunk<'_, X, Y> {
    /// Positions of a slab that taps see.
    fn n_seen(&self) -> usize {
        self.n_positions + self.of.picture.surplus()
    }

    /// Where a strip of the output's gradient is packed.
    fn d_y_strip(&self, strip: usize) -> Range<usize> {
        let len = self.n_positions * BLOCK;
        strip * len..(strip + 1) * len
    }

    /// Where a strip of the input is packed.
    fn x_strip(&self, strip: usize) -> Range<usize> {
        let start = self.d_y_strip(self.of.n_strips()[0]).start;
        let len = self.n_seen() * BLOCK;
        start + strip * len..start + (strip + 1) * len
    }

    /// Floats of all strips.
    fn len(&self) -> usize {
        self.x_strip(self.of.n_strips()[1]).start
    }

    /// The rows of both slabs.
    fn slabs(&self) -> [Range<isize>; 2] {
        let [first, end] = [self.rows.start, self.rows.end].map(|row| row as isize);
        let middle = first + self.slab_rows as isize;
        [first..middle, middle..end]
    }

    /// Packs a strip of the output's gradient, with pairs along rows, and adds it to `bias`.
    fn pack_gradient(&self, strip: usize, into: &mut [f32], bias: &mut [f32]) {
        let WeightGradient {
            picture,
            d_y,
            c_out,
            ..
        } = *self.of;
        let [first, second] = self.slabs().map(|rows| picture.positions(rows));
        let pairs = first.zip(second).map(pixels(d_y, c_out, strip));
        let mut sum = [0.0; BLOCK];
        self.of.amx.strip_of_columns(pairs, into, &mut sum);
        for (bias, sum) in bias.iter_mut().zip(sum) {
            *bias += sum;
        }
    }

    /// Packs a strip of the input, with pairs along columns.
    fn pack_input(&self, strip: usize, into: &mut [f32]) {
        let WeightGradient {
            picture, x, c_in, ..
        } = *self.of;
        let margin = picture.margin_rows() as isize;
        let [first, second] = self.slabs().map(|rows| {
            let rows = rows.start - margin..rows.start + self.slab_rows as isize + margin;
            let before = std::iter::repeat_n(None, picture.margin_columns());
            before.chain(picture.positions(rows))
        });
        let pairs = first.zip(second).map(pixels(x, c_in, strip));
        self.of.amx.strip_of_rows(pairs, into);
    }

    /// Adds the products of a chunk to a block of sums.
    fn add(
        &self,
        registers: &Registers,
        packed: &[f32],
        idx: usize,
        (sums, sum): (&mut [f32], Sum),
    ) {
        let picture = self.of.picture;
        let (n_taps, n_x) = (picture.n_taps(), self.of.n_strips()[1]);
        let (block, tap) = (idx / n_taps, idx % n_taps);
        let x = &packed[self.x_strip(block % n_x)];
        let block = Block {
            a: Side {
                pairs: &packed[self.d_y_strip(block / n_x)],
                row: 64,
                next: 1024,
            },
            a_steps: &self.steps,
            b: Side {
                pairs: &x[picture.shift(tap) * BLOCK..],
                row: BLOCK * size_of::<f32>(),
                next: 64,
            },
            sum,
        };
        registers.multiply(&block, sums);
    }
}

/// The channels of a strip at two positions; none between images.
fn pixels<'a, T>(
    images: &'a [T],
    channels: usize,
    strip: usize,
) -> impl Fn((Option<usize>, Option<usize>)) -> [&'a [T]; 2] {
    let strip = strip * BLOCK..channels.min((strip + 1) * BLOCK);
    move |(first, second)| {
        [first, second].map(|position| match position {
            Some(position) => &images[position * channels..][strip.clone()],
            None => &[],
        })
    }
}
