//! A convolution of images: transform the tiles, multiply at 36 positions, transform back.

use std::ops::Range;

use super::filter::{Filter, TransformFilter};
use super::images::{TransformInput, TransformOutput};
use super::product::{Ahead, COLS, Products, Rows, Sums};
use super::tile::{Layout, Planes, Tiles};
use super::transform::POSITIONS;
use crate::cpu::{Cpu, Shared};
use crate::scratch::{LINE, Scratch};

/// What is convolved; the result has `filter.cols()` channels.
pub(super) struct Convolution<'a> {
    pub(super) tiles: Tiles,
    /// `[N, H, W, filter.depth()]`.
    pub(super) x: &'a [f32],
    pub(super) filter: Filter<'a>,
    pub(super) bias: Option<&'a [f32]>,
    /// `[N, H, W, filter.cols()]`.
    pub(super) residual: Option<&'a [f32]>,
}

/// Floats that blocks of transformed inputs and products may take of a second-level cache of 1 MiB,
/// next to the weights that stream through it.
const BLOCK_LEN: usize = 168 << 10;

/// Depths of transformed weights that fit the second-level cache with the products of a panel.
const DEEP_DEPTH: usize = 64;

/// Depths of transformed weights that one task computes.
const FILTER_DEPTH: usize = 64;

/// Tiles of which one task transforms the inputs for all panels.
const DEEP_TILES: usize = 4;

impl Convolution<'_> {
    /// Transforms all weights, then passes over blocks of tiles: each thread transforms the inputs
    /// of some tiles, multiplies and transforms back while they are in its cache.
    pub(super) fn by_tiles(&self, y: &mut [f32], cpu: Cpu) {
        let (depth, cols) = (self.filter.depth(), self.filter.cols());
        let filter_layout = Layout::panels(depth, cols);
        let mut filters = Scratch::new(filter_layout.len());
        self.transform_filters(&mut filters, filter_layout, cpu);
        let filters = Operand {
            values: &filters,
            layout: filter_layout,
        };
        let zeros = vec![0.0; depth];
        let block_tiles = self.block_tiles(depth + cols, cpu);
        let n_tiles = self.tiles.count();
        let y = Shared::new(y);
        cpu.threads
            .for_each(n_tiles.div_ceil(block_tiles), |block| {
                let range = block * block_tiles..n_tiles.min((block + 1) * block_tiles);
                let layout = Layout::tiles_by_channels(range.len(), depth);
                let mut inputs = Scratch::new(layout.len());
                let into = Planes::new(&mut inputs, layout, [range.len(), depth]);
                self.transform_inputs(range.clone(), &zeros, &into, 0, cpu);
                let mut products = Block::new(range.len(), cols);
                let inputs = Operand {
                    values: &inputs,
                    layout,
                };
                products.multiply([inputs, filters], [depth, cols], (Sums::Set, None), cpu);
                self.transform_outputs(&products, range, 0..cols, &y, cpu);
            });
    }

    /// For few tiles and many channels, where the transformed weights are too large for any cache:
    /// transforms all inputs, then passes over panels of output channels, whose weights are
    /// transformed some depths at a time and used at once.
    pub(super) fn by_panels(&self, y: &mut [f32], cpu: Cpu) {
        let (depth, cols) = (self.filter.depth(), self.filter.cols());
        let n_tiles = self.tiles.count();
        let zeros = vec![0.0; depth];
        let layout = Layout::tiles_by_channels(n_tiles, depth);
        let mut inputs = Scratch::new(layout.len());
        let into = Planes::new(&mut inputs, layout, [n_tiles, depth]);
        cpu.threads.for_each(n_tiles.div_ceil(DEEP_TILES), |task| {
            let first = task * DEEP_TILES;
            let range = first..n_tiles.min(first + DEEP_TILES);
            self.transform_inputs(range, &zeros, &into, first, cpu);
        });
        let inputs = &inputs[..];
        let y = Shared::new(y);
        let strips = Strips::new(cols, cpu);
        cpu.threads.for_each(strips.n, |strip| {
            let part = strips.part(strip);
            let filter_layout = Layout::panels(DEEP_DEPTH, COLS);
            let mut filters = Scratch::new(filter_layout.len());
            let mut products = Block::new(n_tiles, COLS);
            let mut sums = Sums::Set;
            for first_k in (0..depth.max(1)).step_by(DEEP_DEPTH) {
                let depths = first_k..depth.min(first_k + DEEP_DEPTH);
                cpu.isa.dispatch(TransformFilter {
                    filter: self.filter,
                    isa: cpu.isa,
                    depth: depths.clone(),
                    first_col: part.start,
                    into: &Shared::new(&mut filters),
                    start: 0,
                    position_stride: filter_layout.position_stride,
                });
                let inputs = Operand {
                    values: &inputs[first_k / layout.chunk * layout.chunk_stride..],
                    layout,
                };
                let filters = Operand {
                    values: &filters,
                    layout: filter_layout,
                };
                let (next_k, next_part) = match depths.end {
                    end if end < depth => (end, part.clone()),
                    _ => (0, strips.part((strip + 1).min(strips.n - 1))),
                };
                let next_depths = next_k..depth.min(next_k + DEEP_DEPTH);
                let ahead = Some(self.filter.ahead(next_depths, next_part));
                let size = [depths.len(), part.len()];
                products.multiply([inputs, filters], size, (sums, ahead), cpu);
                sums = Sums::Continue;
            }
            self.transform_outputs(&products, 0..n_tiles, part, &y, cpu);
        });
    }

    /// Tiles of a block: as many as the cache holds, in blocks of like size for all threads.
    ///
    /// No bit of a result depends on it.
    fn block_tiles(&self, channels: usize, cpu: Cpu) -> usize {
        let n_tiles = self.tiles.count();
        let most = (BLOCK_LEN / (POSITIONS * channels) / 12 * 12).clamp(12, 96);
        let rounds = n_tiles.div_ceil(most * cpu.threads.count());
        let n_blocks = (rounds * cpu.threads.count()).max(1);
        n_tiles.div_ceil(n_blocks).next_multiple_of(4).max(4)
    }

    /// All weights, panel by panel.
    fn transform_filters(&self, filters: &mut [f32], layout: Layout, cpu: Cpu) {
        let (depth, cols) = (self.filter.depth(), self.filter.cols());
        let panels = Shared::new(filters);
        let n_parts = depth.div_ceil(FILTER_DEPTH);
        cpu.threads.for_each(cols.div_ceil(COLS) * n_parts, |task| {
            let (panel, first) = (task / n_parts, task % n_parts * FILTER_DEPTH);
            cpu.isa.dispatch(TransformFilter {
                filter: self.filter,
                isa: cpu.isa,
                depth: first..depth.min(first + FILTER_DEPTH),
                first_col: panel * COLS,
                into: &panels,
                start: panel * layout.chunk_stride + first * COLS,
                position_stride: layout.position_stride,
            });
        });
    }

    fn transform_inputs(
        &self,
        range: Range<usize>,
        zeros: &[f32],
        into: &Planes<'_>,
        slot: usize,
        cpu: Cpu,
    ) {
        cpu.isa.dispatch(TransformInput {
            tiles: self.tiles,
            x: self.x,
            channels: self.filter.depth(),
            part: 0..self.filter.depth(),
            zeros,
            range,
            into,
            slot,
        });
    }

    fn transform_outputs(
        &self,
        products: &Block,
        range: Range<usize>,
        part: Range<usize>,
        y: &Shared<'_>,
        cpu: Cpu,
    ) {
        cpu.isa.dispatch(TransformOutput {
            tiles: self.tiles,
            m: &products.sums,
            m_position: products.position_stride,
            m_row: products.cols,
            range,
            y,
            channels: self.filter.cols(),
            bias: self.bias,
            part,
            residual: self.residual,
        });
    }
}

/// Columns in like shares for all threads: panels of which some are half live.
///
/// No bit of a result depends on them.
struct Strips {
    cols: usize,
    n_halves: usize,
    n: usize,
}

impl Strips {
    fn new(cols: usize, cpu: Cpu) -> Self {
        let n_halves = cols.div_ceil(COLS / 2);
        let rounds = n_halves.div_ceil(2 * cpu.threads.count());
        Self {
            cols,
            n_halves,
            n: n_halves.min(rounds * cpu.threads.count()),
        }
    }

    fn part(&self, strip: usize) -> Range<usize> {
        let start = |strip: usize| strip * self.n_halves / self.n * (COLS / 2);
        start(strip)..self.cols.min(start(strip + 1))
    }
}

/// Transformed inputs, from some depth on, or filters.
#[derive(Clone, Copy)]
struct Operand<'a> {
    values: &'a [f32],
    layout: Layout,
}

/// The products of some tiles and columns, `[36, tile, cols]`.
struct Block {
    sums: Scratch,
    n_tiles: usize,
    cols: usize,
    position_stride: usize,
}

impl Block {
    fn new(n_tiles: usize, cols: usize) -> Self {
        let cols = cols.next_multiple_of(LINE);
        let position_stride = n_tiles.next_multiple_of(4) * cols.next_multiple_of(2 * LINE) + LINE;
        Self {
            sums: Scratch::new(POSITIONS * position_stride),
            n_tiles,
            cols,
            position_stride,
        }
    }

    /// Multiplies inputs by filters of some depth and columns. If there is something to ask for,
    /// inputs are asked for as well: they are in a cache of all threads, not in one's own.
    fn multiply(
        &mut self,
        [inputs, filters]: [Operand<'_>; 2],
        [depth, n_cols]: [usize; 2],
        (sums, ahead): (Sums, Option<Ahead>),
        cpu: Cpu,
    ) {
        let products = Products {
            a: inputs.values,
            a_position: inputs.layout.position_stride,
            rows: Rows::Chunked {
                chunk_stride: inputs.layout.chunk_stride,
                is_far: ahead.is_some(),
            },
            b: filters.values,
            b_position: filters.layout.position_stride,
            b_panel: filters.layout.chunk_stride,
            c: &mut self.sums,
            c_position: self.position_stride,
            c_panel: COLS,
            c_row: self.cols,
            n_rows: self.n_tiles,
            depth,
            n_cols: n_cols.next_multiple_of(COLS / 2),
            sums,
            ahead,
        };
        products.run(cpu.isa);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Threads;

    #[test]
    fn strips_are_the_columns_in_order_and_like_shares_for_all_threads() {
        for n_threads in [1, 2, 3, 8] {
            let cpu = Cpu::best(Threads::new(n_threads));
            for cols in [1, 16, 17, 32, 33, 100, 288, 384, 1000] {
                let strips = Strips::new(cols, cpu);
                let parts: Vec<_> = (0..strips.n).map(|strip| strips.part(strip)).collect();
                let mut end = 0;
                for part in &parts {
                    assert!(
                        part.start == end && (1..=COLS).contains(&part.len()),
                        "{parts:?}"
                    );
                    end = part.end;
                }
                assert_eq!(end, cols);
                let share = |parts: &[Range<usize>]| parts.iter().map(ExactSizeIterator::len).sum();
                let n_each = parts.len().div_ceil(n_threads);
                let most: usize = parts.chunks(n_each).map(share).max().unwrap_or(0);
                assert!(most <= cols.div_ceil(n_threads) + COLS, "{parts:?}");
            }
        }
    }
}
