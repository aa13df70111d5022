//! The gradient of the weights: a product over tiles of transformed inputs and output gradients.
//!
//! Sums over tiles are cut by the sizes alone and added in a fixed order.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::convolve::panel_cols;
use super::product::{COLS, Products, ROW_STEP, Rows, Sums};
use super::scratch::{LINE, Scratch};
use super::tile::{Layout, Planes, Tiles, TransformGradient, TransformInput, load, store};
use super::transform::{self, IN, POSITIONS, TAPS};
use crate::cpu::{Cpu, Shared};

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

/// Floats of all groups' sums: some megabytes, which a third-level cache holds.
const GROUPS_LEN: usize = 3 << 20;

/// Fewest tiles of a group: with fewer, adding the groups costs more than it saves.
const GROUP_TILES: usize = 128;

/// Most groups: more feed no more threads, but have to be added.
const MAX_GROUPS: usize = 16;

/// Floats of the transforms that are multiplied at a time by blocks of channels: 4 MiB, which stay
/// in a third-level cache; more if the sums, which wait between chunks, are larger anyway.
const MIN_CHUNK_LEN: usize = 1 << 20;

/// At most 48 MiB.
const MAX_CHUNK_LEN: usize = 12 << 20;

/// Tiles that one task transforms then.
const CHUNK_TILES: usize = 8;

/// Input and output channels of a block of sums.
const BLOCK_SIZE: [usize; 2] = [128, 64];

/// Rows of weights that one task transforms back.
const FINISH_ROWS: usize = 16;

impl WeightGradient<'_> {
    /// Passes over groups of tiles, each with sums of all weights of its own, and adds those.
    pub(super) fn by_tiles(&self, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_tiles = self.tiles.count();
        let sums = SumsLayout::new([0..self.c_in, 0..self.c_out]);
        let n_groups = self.groups(sums.len());
        let bias_len = self.c_out.next_multiple_of(LINE);
        let group_len = sums.len() + bias_len;
        let group_tiles = n_tiles.div_ceil(n_groups);
        let n_groups = n_tiles.div_ceil(group_tiles);
        let mut partial = Scratch::take(n_groups * group_len);
        let block_tiles = self.block_tiles().min(group_tiles);
        let block_tiles = group_tiles.div_ceil(group_tiles.div_ceil(block_tiles));
        let zeros = vec![0.0; self.c_in];
        let shared = Shared::new(&mut partial);
        cpu.threads.for_each(n_groups, |group| {
            // SAFETY: each group has its own sums.
            let own = unsafe { shared.tile(group * group_len, group_len) };
            let (bias, own) = own.split_at_mut(bias_len);
            bias.fill(0.0);
            let range = group * group_tiles..n_tiles.min((group + 1) * group_tiles);
            let mut operands = Operands::new(self, block_tiles);
            for first in range.clone().step_by(block_tiles) {
                let block = first..range.end.min(first + block_tiles);
                let write = if first == range.start {
                    Sums::Set
                } else {
                    Sums::Add
                };
                let n_tiles = block.len();
                operands.with_planes(|planes| self.transform(block, planes, 0, &zeros, bias, cpu));
                operands.multiply(&sums, n_tiles, own, write, cpu);
            }
        });
        let partial = &partial[..];
        let groups: Vec<&[f32]> = partial.chunks_exact(group_len).collect();
        add_rows(groups.iter().map(|group| &group[..self.c_out]), d_bias);
        let groups: Vec<&[f32]> = groups.iter().map(|group| &group[bias_len..]).collect();
        let d_weight = Shared::new(d_weight);
        cpu.threads
            .for_each(self.c_in.div_ceil(FINISH_ROWS), |task| {
                let first = task * FINISH_ROWS;
                cpu.isa.dispatch(Finish {
                    sums: &sums,
                    groups: &groups,
                    rows: first..self.c_in.min(first + FINISH_ROWS),
                    d_weight: &d_weight,
                    channels: [self.c_in, self.c_out],
                });
            });
    }

    /// For many weights: transforms chunks of tiles, then passes over blocks of channels, whose
    /// sums stay in a thread's cache until they are transformed back.
    pub(super) fn by_blocks(&self, d_weight: &mut [f32], d_bias: &mut [f32], cpu: Cpu) {
        let n_tiles = self.tiles.count();
        let chunk_tiles = self.chunk_tiles();
        let n_chunks = n_tiles.div_ceil(chunk_tiles);
        let [block_rows, block_cols] = self.block_size(cpu);
        let n_strips = self.c_out.div_ceil(block_cols);
        let n_blocks = n_strips * self.c_in.div_ceil(block_rows);
        let block = |idx: usize| {
            let (row, col) = (idx / n_strips * block_rows, idx % n_strips * block_cols);
            SumsLayout::new([
                row..self.c_in.min(row + block_rows),
                col..self.c_out.min(col + block_cols),
            ])
        };
        let block_len = block(0).len();
        let mut operands = Operands::new(self, chunk_tiles.min(n_tiles));
        // Sums of several chunks have to wait for the next one.
        let mut waiting = Scratch::take(if n_chunks > 1 {
            n_blocks * block_len
        } else {
            0
        });
        let waiting = Shared::new(&mut waiting);
        let bias_len = self.c_out.next_multiple_of(LINE);
        let mut bias = Scratch::take(n_tiles.div_ceil(CHUNK_TILES) * bias_len);
        let zeros = vec![0.0; self.c_in];
        let d_weight = Shared::new(d_weight);
        for (chunk, start) in (0..n_tiles).step_by(chunk_tiles).enumerate() {
            let range = start..n_tiles.min(start + chunk_tiles);
            let bias = Shared::new(&mut bias);
            operands.with_planes(|planes| {
                cpu.threads
                    .for_each(range.len().div_ceil(CHUNK_TILES), |task| {
                        let first = start + task * CHUNK_TILES;
                        // SAFETY: each task has its own sums.
                        let bias = unsafe { bias.tile(first / CHUNK_TILES * bias_len, bias_len) };
                        bias.fill(0.0);
                        let tiles = first..range.end.min(first + CHUNK_TILES);
                        self.transform(tiles, planes, first - start, &zeros, bias, cpu);
                    });
            });
            let is_last = range.end == n_tiles;
            cpu.threads.for_each(n_blocks, |idx| {
                let sums = block(idx);
                let mut own = Scratch::take(if n_chunks > 1 { 0 } else { block_len });
                let own = if n_chunks > 1 {
                    // SAFETY: each block has its own sums.
                    unsafe { waiting.tile(idx * block_len, block_len) }
                } else {
                    &mut own[..]
                };
                let write = if chunk == 0 { Sums::Set } else { Sums::Add };
                operands.multiply(&sums, range.len(), own, write, cpu);
                if is_last {
                    cpu.isa.dispatch(Finish {
                        sums: &sums,
                        groups: &[own],
                        rows: sums.rows.clone(),
                        d_weight: &d_weight,
                        channels: [self.c_in, self.c_out],
                    });
                }
            });
        }
        add_rows(
            bias.chunks_exact(bias_len).map(|row| &row[..self.c_out]),
            d_bias,
        );
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

    /// Tiles whose transforms are multiplied at a time.
    fn chunk_tiles(&self) -> usize {
        let sums_len = POSITIONS * self.c_in * self.c_out;
        let most = sums_len.clamp(MIN_CHUNK_LEN, MAX_CHUNK_LEN);
        let most = (most / (POSITIONS * (self.c_in + self.c_out))).max(CHUNK_TILES);
        let n_tiles = self.tiles.count();
        let like = n_tiles.div_ceil(n_tiles.div_ceil(most));
        like.next_multiple_of(CHUNK_TILES)
    }

    /// A power of two, so that most numbers of threads get equal shares.
    fn groups(&self, sums_len: usize) -> usize {
        let most = (GROUPS_LEN / sums_len).min(self.tiles.count() / GROUP_TILES);
        let most = most.clamp(1, MAX_GROUPS);
        1 << most.ilog2()
    }

    /// Rows and columns of a block of sums: large ones read the operands fewer times, but there
    /// have to be some for each thread. No bit of a result depends on it.
    fn block_size(&self, cpu: Cpu) -> [usize; 2] {
        let [mut rows, mut cols] = BLOCK_SIZE;
        let count = |rows, cols| self.c_in.div_ceil(rows) * self.c_out.div_ceil(cols);
        while count(rows, cols) < cpu.threads.count() && rows * cols > COLS * COLS {
            if rows > cols { rows /= 2 } else { cols /= 2 }
        }
        [rows, cols]
    }

    fn block_tiles(&self) -> usize {
        let most = BLOCK_LEN / (POSITIONS * (self.c_in + self.c_out)).max(1);
        (most / 8 * 8).clamp(16, 96)
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
            values: layouts.map(|layout| Scratch::take(layout.len())),
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

/// Sums of products of some input and output channels, `[36, panel, row, COLS]`.
struct SumsLayout {
    rows: Range<usize>,
    /// Starts at a panel.
    cols: Range<usize>,
    panel_stride: usize,
    position_stride: usize,
}

impl SumsLayout {
    fn new([rows, cols]: [Range<usize>; 2]) -> Self {
        let panel_stride = rows.len().next_multiple_of(ROW_STEP) * COLS;
        Self {
            panel_stride,
            position_stride: cols.len().div_ceil(COLS) * panel_stride + LINE,
            rows,
            cols,
        }
    }

    fn len(&self) -> usize {
        POSITIONS * self.position_stride
    }
}

/// Adds the sums of all groups and transforms them to gradients of weights: `G^T u G`.
struct Finish<'a> {
    sums: &'a SumsLayout,
    groups: &'a [&'a [f32]],
    /// Part of the rows of `sums`.
    rows: Range<usize>,
    /// `[3, 3, C_in, C_out]`, of which the rows and the columns of `sums` are written.
    d_weight: &'a Shared<'a>,
    channels: [usize; 2],
}

impl WithSimd for Finish<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            sums,
            groups,
            rows,
            d_weight,
            channels: [c_in, c_out],
        } = self;
        assert!(groups.iter().all(|group| group.len() >= sums.len()));
        assert!(sums.rows.start <= rows.start && rows.end <= sums.rows.end);
        for row in rows {
            for (panel, col) in sums.cols.clone().step_by(COLS).enumerate() {
                let n_cols = COLS.min(sums.cols.end - col);
                let from = panel * sums.panel_stride + (row - sums.rows.start) * COLS;
                let mut out = [std::ptr::null_mut(); TAPS * TAPS];
                for (tap, out) in out.iter_mut().enumerate() {
                    let start = (tap * c_in + row) * c_out + col;
                    // SAFETY: rows and columns of different tasks are disjoint.
                    *out = unsafe { d_weight.tile(start, n_cols) }.as_mut_ptr();
                }
                for first in (0..n_cols).step_by(S::F32_LANES) {
                    let n = S::F32_LANES.min(n_cols - first);
                    // SAFETY: the sums hold whole panels at each position, checked above; the
                    // results hold `n_cols`.
                    unsafe {
                        let from = (groups, from + first, sums.position_stride);
                        finish(simd, from, (&out, first, n));
                    }
                }
            }
        }
    }
}

/// The gradients of one vector of weights, to `out` of each tap.
///
/// # Safety
/// Each group must hold a vector at `from` and each multiple of `position_stride` after it; `out`
/// be writable for `n` floats at `first`.
#[inline(always)]
unsafe fn finish<S: Simd>(
    simd: S,
    (groups, from, position_stride): (&[&[f32]], usize, usize),
    (out, first, n): (&[*mut f32; TAPS * TAPS], usize, usize),
) {
    transform::both_ways(
        #[inline(always)]
        |u| transform::weight_gradient(simd, u),
        #[inline(always)]
        |i, j| {
            let from = from + (i * IN + j) * position_stride;
            let mut sum = simd.splat_f32s(0.0);
            for group in groups {
                // SAFETY: in bounds by contract.
                let value = unsafe { load(simd, group.as_ptr().add(from), S::F32_LANES) };
                sum = simd.add_f32s(sum, value);
            }
            sum
        },
        #[inline(always)]
        |y, x, value| {
            // SAFETY: writable by contract.
            unsafe { store(simd, value, out[y * TAPS + x].add(first), n) };
        },
    );
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
