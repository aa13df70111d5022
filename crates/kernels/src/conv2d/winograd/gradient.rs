//! The gradient of the weights: a product over tiles of transformed inputs and output gradients.
//!
//! Sums over tiles are cut by the sizes alone and added in a fixed order.

use std::ops::Range;

use super::convolve::panel_cols;
use super::filter::{SumsLayout, TransformSums};
use super::images::{TransformGradient, TransformInput};
use super::product::{COLS, Products, Rows, Sums};
use super::tile::{Layout, Planes, Tiles};
use super::transform::POSITIONS;
use crate::cpu::{Cpu, Shared};
use crate::scratch::{LINE, Scratch};

/// What the gradient is of.
pub(super) struct WeightGradient<'a> {
    pub(super) tiles: Tiles,
    /// `[N, H, W, C_in]`.
    pub(super) x: &'a [f32],
    pub(super) c_in: usize,
    /// `[N, H, W, C_out]`.
    pub(super) d_y: &'a [f32],
    pub(super) c_out: usize,
}

/// Floats that the transforms of some tiles may take of a second-level cache of 1 MiB.
const BLOCK_LEN: usize = 224 << 10;

/// Floats of all groups' sums, 12 MiB: a third-level cache holds them.
const GROUPS_LEN: usize = 3 << 20;

/// Fewest tiles of a group: with 32 tiles of 64 channels adding the groups cost a quarter.
const GROUP_TILES: usize = 128;

/// Most groups: more feed no more threads, but have to be added.
const MAX_GROUPS: usize = 16;

/// Floats of the transforms that are multiplied at a time by blocks of channels: 4 MiB, which stay
/// in a third-level cache; more if the sums, which wait between chunks, are larger anyway.
const MIN_CHUNK_LEN: usize = 1 << 20;

/// At most 48 MiB.
const MAX_CHUNK_LEN: usize = 12 << 20;

/// Tiles of a chunk that one task transforms.
const TASK_TILES: usize = 8;

/// Input channels whose sums one task adds and transforms back.
const TASK_ROWS: usize = 16;

/// Input and output channels of a block of sums.
const BLOCK_SIZE: [usize; 2] = [128, 64];

impl WeightGradient<'_> {
    /// Passes over groups of tiles, each with sums of all weights of its own, and adds those.
    pub(super) fn by_tiles(&self, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_tiles = self.tiles.count();
        let sums = SumsLayout::new([0..self.c_in, 0..self.c_out]);
        let group_tiles = n_tiles.div_ceil(self.groups(sums.len()));
        let n_groups = n_tiles.div_ceil(group_tiles);
        let bias_len = self.c_out.next_multiple_of(LINE);
        let group_len = bias_len + sums.len();
        let mut partial = Scratch::new(n_groups * group_len);
        let zeros = vec![0.0; self.c_in];
        let shared = Shared::new(&mut partial);
        cpu.threads.for_each(n_groups, |group| {
            // SAFETY: each group has its own sums.
            let own = unsafe { shared.tile(group * group_len, group_len) };
            let (bias, own) = own.split_at_mut(bias_len);
            bias.fill(0.0);
            let range = group * group_tiles..n_tiles.min((group + 1) * group_tiles);
            let block_tiles = self.block_tiles(range.len());
            let mut operands = Operands::new(self, block_tiles);
            let mut write = Sums::Set;
            for first in range.clone().step_by(block_tiles) {
                let block = first..range.end.min(first + block_tiles);
                let n_tiles = block.len();
                operands.with_planes(|planes| self.transform(block, planes, 0, &zeros, bias, cpu));
                operands.multiply(&sums, n_tiles, own, write, cpu);
                write = Sums::Add;
            }
        });
        let groups: Vec<&[f32]> = partial.chunks_exact(group_len).collect();
        add_rows(groups.iter().map(|group| &group[..self.c_out]), d_bias);
        let groups: Vec<&[f32]> = groups.iter().map(|group| &group[bias_len..]).collect();
        let d_weight = Shared::new(d_weight);
        cpu.threads.for_each(self.c_in.div_ceil(TASK_ROWS), |task| {
            let first = task * TASK_ROWS;
            let rows = first..self.c_in.min(first + TASK_ROWS);
            self.transform_sums(&sums, &groups, rows, &d_weight, cpu);
        });
    }

    /// For many weights: transforms chunks of tiles, then passes over blocks of channels, whose
    /// sums stay in a thread's cache until they are transformed back.
    pub(super) fn by_blocks(&self, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_tiles = self.tiles.count();
        let chunk_tiles = self.chunk_tiles();
        let blocks = self.blocks(cpu);
        let block_len = blocks.sums(0).len();
        let mut operands = Operands::new(self, chunk_tiles.min(n_tiles));
        // The sums of several chunks have to wait for the next one, those of a single one do not.
        let is_single = chunk_tiles >= n_tiles;
        let mut waiting = Scratch::new(if is_single {
            0
        } else {
            blocks.count() * block_len
        });
        let waiting = Shared::new(&mut waiting);
        let bias_len = self.c_out.next_multiple_of(LINE);
        let mut bias = Scratch::new(n_tiles.div_ceil(TASK_TILES) * bias_len);
        let zeros = vec![0.0; self.c_in];
        let d_weight = Shared::new(d_weight);
        for start in (0..n_tiles).step_by(chunk_tiles) {
            let range = start..n_tiles.min(start + chunk_tiles);
            self.transform_chunk(range.clone(), &mut operands, &zeros, &mut bias, cpu);
            cpu.threads.for_each(blocks.count(), |idx| {
                let sums = blocks.sums(idx);
                let mut own = Scratch::new(if is_single { block_len } else { 0 });
                let own = if is_single {
                    &mut own[..]
                } else {
                    // SAFETY: each block has its own sums.
                    unsafe { waiting.tile(idx * block_len, block_len) }
                };
                let write = if start == 0 { Sums::Set } else { Sums::Add };
                operands.multiply(&sums, range.len(), own, write, cpu);
                if range.end == n_tiles {
                    self.transform_sums(&sums, &[own], sums.rows.clone(), &d_weight, cpu);
                }
            });
        }
        let bias = bias.chunks_exact(bias_len);
        add_rows(bias.map(|sums| &sums[..self.c_out]), d_bias);
    }

    /// Transforms a chunk of tiles, some in each task, with sums for the bias of each task.
    fn transform_chunk(
        &self,
        range: Range<usize>,
        operands: &mut Operands,
        zeros: &[f32],
        bias: &mut [f32],
        cpu: Cpu,
    ) {
        let bias_len = self.c_out.next_multiple_of(LINE);
        let bias = Shared::new(bias);
        operands.with_planes(|planes| {
            cpu.threads
                .for_each(range.len().div_ceil(TASK_TILES), |task| {
                    let first = range.start + task * TASK_TILES;
                    let tiles = first..range.end.min(first + TASK_TILES);
                    // SAFETY: each task has its own sums, as chunks are whole tasks but for the last.
                    let bias = unsafe { bias.tile(first / TASK_TILES * bias_len, bias_len) };
                    bias.fill(0.0);
                    self.transform(tiles, planes, first - range.start, zeros, bias, cpu);
                });
        });
    }

    /// Transforms inputs and output gradients of some tiles and adds the latter to `bias`.
    fn transform(
        &self,
        range: Range<usize>,
        [inputs, gradients]: &[Planes<'_>; 2],
        slot: usize,
        zeros: &[f32],
        bias: &mut [f32],
        cpu: Cpu,
    ) {
        cpu.isa.dispatch(TransformInput {
            tiles: self.tiles,
            x: self.x,
            channels: self.c_in,
            zeros,
            range: range.clone(),
            into: inputs,
            slot,
        });
        cpu.isa.dispatch(TransformGradient {
            tiles: self.tiles,
            d_y: self.d_y,
            channels: self.c_out,
            range,
            into: gradients,
            slot,
            bias,
        });
    }

    /// Transforms the sums of some rows to gradients.
    fn transform_sums(
        &self,
        sums: &SumsLayout,
        groups: &[&[f32]],
        rows: Range<usize>,
        d_weight: &Shared<'_>,
        cpu: Cpu,
    ) {
        cpu.isa.dispatch(TransformSums {
            sums,
            groups,
            rows,
            d_weight,
            channels: [self.c_in, self.c_out],
        });
    }

    /// A power of two, so that most numbers of threads get equal shares.
    fn groups(&self, sums_len: usize) -> usize {
        let most = (GROUPS_LEN / sums_len).min(self.tiles.count() / GROUP_TILES);
        1 << most.clamp(1, MAX_GROUPS).ilog2()
    }

    /// Tiles of a group whose transforms are multiplied at a time.
    fn block_tiles(&self, group_tiles: usize) -> usize {
        let most = BLOCK_LEN / (POSITIONS * (self.c_in + self.c_out));
        group_tiles.div_ceil(group_tiles.div_ceil(most.clamp(16, 96)))
    }

    /// Tiles whose transforms are multiplied at a time by blocks of channels.
    fn chunk_tiles(&self) -> usize {
        let sums_len = POSITIONS * self.c_in * self.c_out;
        let most = sums_len.clamp(MIN_CHUNK_LEN, MAX_CHUNK_LEN);
        let most = (most / (POSITIONS * (self.c_in + self.c_out))).max(1);
        let n_tiles = self.tiles.count();
        let like = n_tiles.div_ceil(n_tiles.div_ceil(most));
        like.next_multiple_of(TASK_TILES)
    }

    /// Large blocks read the operands fewer times, but each thread shall have one.
    ///
    /// No bit of a result depends on it.
    fn blocks(&self, cpu: Cpu) -> Blocks {
        let mut blocks = Blocks {
            channels: [self.c_in, self.c_out],
            size: BLOCK_SIZE,
        };
        while blocks.count() < cpu.threads.count() && blocks.size != [COLS, COLS] {
            let [rows, cols] = &mut blocks.size;
            *rows.max(cols) /= 2;
        }
        blocks
    }
}

/// The sums of all weights in blocks of input and output channels.
struct Blocks {
    channels: [usize; 2],
    size: [usize; 2],
}

impl Blocks {
    fn count(&self) -> usize {
        let [c_in, c_out] = self.channels;
        c_in.div_ceil(self.size[0]) * c_out.div_ceil(self.size[1])
    }

    fn sums(&self, idx: usize) -> SumsLayout {
        let n_strips = self.channels[1].div_ceil(self.size[1]);
        let range = |idx: usize, size: usize, end: usize| idx * size..end.min((idx + 1) * size);
        SumsLayout::new([
            range(idx / n_strips, self.size[0], self.channels[0]),
            range(idx % n_strips, self.size[1], self.channels[1]),
        ])
    }
}

/// Transformed inputs and output gradients of some tiles.
struct Operands {
    layouts: [Layout; 2],
    channels: [usize; 2],
    n_tiles: usize,
    values: [Scratch; 2],
}

impl Operands {
    fn new(gradient: &WeightGradient<'_>, n_tiles: usize) -> Self {
        let layouts = [
            Layout::channels_by_tiles(n_tiles, gradient.c_in),
            Layout::panels(n_tiles, gradient.c_out),
        ];
        Self {
            layouts,
            channels: [gradient.c_in, gradient.c_out],
            n_tiles,
            values: layouts.map(|layout| Scratch::new(layout.len())),
        }
    }

    fn with_planes(&mut self, f: impl FnOnce(&[Planes<'_>; 2])) {
        let [inputs, gradients] = &mut self.values;
        f(&[
            Planes::new(inputs, self.layouts[0], [self.n_tiles, self.channels[0]]),
            Planes::new(gradients, self.layouts[1], [self.n_tiles, self.channels[1]]),
        ]);
    }

    /// Sums the products of the first `n_tiles` tiles.
    fn multiply(&self, sums: &SumsLayout, n_tiles: usize, out: &mut [f32], write: Sums, cpu: Cpu) {
        let [inputs, gradients] = self.layouts;
        for (panel, col) in sums.cols.clone().step_by(COLS).enumerate() {
            let products = Products {
                a: &self.values[0][sums.rows.start..],
                a_position: inputs.position_stride,
                rows: Rows::Transposed {
                    stride: inputs.chunk,
                },
                b: &self.values[1][col / COLS * gradients.chunk_stride..],
                b_position: gradients.position_stride,
                c: &mut out[panel * sums.panel_stride..],
                c_position: sums.position_stride,
                c_row: COLS,
                n_rows: sums.rows.len(),
                depth: n_tiles,
                n_cols: panel_cols(col, sums.cols.end),
                sums: write,
            };
            products.run(cpu.isa);
        }
    }
}

/// Adds rows in order.
fn add_rows<'a>(rows: impl Iterator<Item = &'a [f32]>, sum: &mut [f32]) {
    sum.fill(0.0);
    for row in rows {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
}
