//! The gradient of the weights: a product over tiles of transformed inputs and output gradients.
//!
//! Sums over tiles are cut by the sizes alone and added in a fixed order.

mod blocks;
mod operands;
mod sums;

use std::ops::Range;

use super::images::{TransformGradient, TransformInput};
use super::product::{COLS, Sums};
use super::tile::{Planes, Tiles};
use super::transform::POSITIONS;
use crate::cpu::{Cpu, Shared};
use crate::scratch::{LINE, Scratch};
use blocks::Blocks;
use operands::Operands;
use sums::{SumsLayout, TransformSums};

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

impl WeightGradient<'_> {
    /// Passes over groups of tiles and blocks of channels, each pair with sums of its own that stay
    /// in a thread's cache, and adds those of the groups.
    ///
    /// A tile is transformed again for each block: less work than to fetch it from where all threads
    /// can reach it.
    pub(super) fn by_tiles(&self, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_tiles = self.tiles.count();
        let group_tiles = n_tiles.div_ceil(self.groups());
        let n_groups = n_tiles.div_ceil(group_tiles);
        // No bit of a result depends on the blocks.
        let blocks = Blocks::new([self.c_in, self.c_out], n_groups, cpu.threads.count());
        let block_len = blocks.sums(0).len();
        // The sums of several groups have to wait for each other, those of a single one do not.
        let is_single = n_groups == 1;
        let n_waiting = if is_single {
            0
        } else {
            blocks.count() * n_groups
        };
        let mut waiting = Scratch::new(n_waiting * block_len);
        let shared_waiting = Shared::new(&mut waiting);
        let bias_len = self.c_out.next_multiple_of(COLS);
        let mut bias = Scratch::new(n_groups * bias_len);
        let shared_bias = Shared::new(&mut bias);
        let shared_weight = Shared::new(d_weight);
        cpu.threads.for_each(blocks.count() * n_groups, |task| {
            let (group, block) = (task / blocks.count(), task % blocks.count());
            let sums = blocks.sums(block);
            let mut own = Scratch::new(if is_single { block_len } else { 0 });
            let own = if is_single {
                &mut own[..]
            } else {
                // SAFETY: each task has its own sums.
                unsafe { shared_waiting.tile(task * block_len, block_len) }
            };
            let bias_cols = sums.cols.len().next_multiple_of(LINE);
            let mut unwanted = Scratch::new(bias_cols);
            let bias = if sums.rows.start == 0 {
                // SAFETY: each group and block of output channels has its own sums.
                unsafe { shared_bias.tile(group * bias_len + sums.cols.start, bias_cols) }
            } else {
                &mut unwanted[..]
            };
            let range = group * group_tiles..n_tiles.min((group + 1) * group_tiles);
            self.sum_tiles(&sums, range, own, bias, cpu);
            if is_single {
                self.transform_sums(&sums, &[own], sums.rows.clone(), &shared_weight, cpu);
            }
        });
        add_rows(
            bias.chunks_exact(bias_len).map(|sums| &sums[..self.c_out]),
            d_bias,
        );
        if !is_single {
            self.transform_waiting(&blocks, &waiting, &shared_weight, cpu);
        }
    }

    /// Sums the products of some tiles, and their output gradients.
    fn sum_tiles(
        &self,
        sums: &SumsLayout,
        range: Range<usize>,
        out: &mut [f32],
        bias: &mut [f32],
        cpu: Cpu,
    ) {
        bias.fill(0.0);
        let zeros = vec![0.0; sums.rows.len().max(sums.cols.len())];
        let block_tiles = self.block_tiles(range.len());
        let mut operands = Operands::new([sums.rows.clone(), sums.cols.clone()], block_tiles);
        let mut write = Sums::Set;
        for first in range.clone().step_by(block_tiles) {
            let block = first..range.end.min(first + block_tiles);
            let n_tiles = block.len();
            operands.with_planes(|planes| self.transform(block, planes, 0, &zeros, bias, cpu));
            operands.multiply(sums, n_tiles, out, write, cpu);
            write = Sums::Add;
        }
    }

    /// Adds the groups' sums, `[group, block, ..]`, and transforms them to gradients.
    fn transform_waiting(&self, blocks: &Blocks, waiting: &[f32], d_weight: &Shared<'_>, cpu: Cpu) {
        let len = blocks.sums(0).len();
        let n_parts = blocks.size[0].div_ceil(TASK_ROWS);
        cpu.threads.for_each(blocks.count() * n_parts, |task| {
            let (block, part) = (task / n_parts, task % n_parts);
            let sums = blocks.sums(block);
            let groups = waiting.chunks_exact(len).skip(block);
            let groups: Vec<&[f32]> = groups.step_by(blocks.count()).collect();
            let first = sums.rows.start + part * TASK_ROWS;
            let rows = first.min(sums.rows.end)..sums.rows.end.min(first + TASK_ROWS);
            self.transform_sums(&sums, &groups, rows, d_weight, cpu);
        });
    }

    /// For many weights: transforms chunks of tiles, then passes over blocks of channels, whose
    /// sums stay in a thread's cache until they are transformed back.
    pub(super) fn by_blocks(&self, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_tiles = self.tiles.count();
        let chunk_tiles = self.chunk_tiles();
        // No bit of a result depends on the blocks.
        let blocks = Blocks::new([self.c_in, self.c_out], 1, cpu.threads.count());
        let block_len = blocks.sums(0).len();
        let mut operands = Operands::new([0..self.c_in, 0..self.c_out], chunk_tiles.min(n_tiles));
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
        let zeros = vec![0.0; self.c_in.max(self.c_out)];
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
        [inputs, gradients]: &[(Planes<'_>, Range<usize>); 2],
        slot: usize,
        zeros: &[f32],
        bias: &mut [f32],
        cpu: Cpu,
    ) {
        cpu.isa.dispatch(TransformInput {
            tiles: self.tiles,
            x: self.x,
            channels: self.c_in,
            part: inputs.1.clone(),
            zeros,
            range: range.clone(),
            into: &inputs.0,
            slot,
        });
        cpu.isa.dispatch(TransformGradient {
            tiles: self.tiles,
            d_y: self.d_y,
            channels: self.c_out,
            part: gradients.1.clone(),
            zeros,
            range,
            into: &gradients.0,
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
    fn groups(&self) -> usize {
        let sums_len = POSITIONS * self.c_in * self.c_out;
        let most = (GROUPS_LEN / sums_len).min(self.tiles.count() / GROUP_TILES);
        1 << most.clamp(1, MAX_GROUPS).ilog2()
    }

    /// Tiles of a group whose transforms for a block of channels are multiplied at a time: the
    /// same for any number of blocks, as each sum is written once per such a block.
    fn block_tiles(&self, group_tiles: usize) -> usize {
        let [rows, cols] = Blocks::new([self.c_in, self.c_out], 1, 1).size;
        let most = BLOCK_LEN / (POSITIONS * (rows + cols));
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
