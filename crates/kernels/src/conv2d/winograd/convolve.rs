//! A convolution of images: transform the tiles, multiply at 36 positions, transform back.

use std::ops::Range;

use super::filter::{Filter, TransformFilter, panel_len, position_stride};
use super::product::{COLS, Products, Rows, Sums};
use super::scratch::{LINE, Scratch};
use super::tile::{Layout, Planes, Tiles, TransformInput, TransformOutput};
use super::transform::POSITIONS;
use crate::cpu::{Cpu, Shared};

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
const BLOCK_LEN: usize = 160 << 10;

/// Channels of a block of products: two panels.
const BLOCK_COLS: usize = 2 * COLS;

/// Most input channels whose transforms are kept at a time. With more, blocks get so few tiles
/// that the weights pass through the cache too often.
const BLOCK_DEPTH: usize = 384;

/// Depths of transformed weights that fit the second-level cache with the products of a panel.
const DEEP_DEPTH: usize = 64;

/// Depths of transformed weights that one task computes.
const FILTER_DEPTH: usize = 64;

/// Tiles of which one task transforms the inputs for all panels.
const DEEP_TILES: usize = 4;

/// Columns of a panel that are live, rounded up to half a panel.
pub(super) fn panel_cols(first_col: usize, cols: usize) -> usize {
    (cols - first_col).next_multiple_of(COLS / 2).min(COLS)
}

impl Convolution<'_> {
    /// Transforms all weights, then passes over blocks of tiles: each thread transforms the inputs
    /// of some tiles, multiplies and transforms back while they are in its cache.
    pub(super) fn by_tiles(&self, y: &mut [f32], cpu: Cpu) {
        let (depth, cols) = (self.filter.depth(), self.filter.cols());
        let mut filters = Scratch::take(cols.div_ceil(COLS) * panel_len(depth));
        self.transform_filters(&mut filters, cpu);
        let filters = &filters[..];
        let zeros = vec![0.0; depth];
        let block_depth = if depth <= BLOCK_DEPTH {
            depth
        } else {
            depth
                .div_ceil(depth.div_ceil(BLOCK_DEPTH))
                .next_multiple_of(LINE)
        };
        // Products of all columns wait for the next depths, if there are any.
        let block_cols = if block_depth == depth {
            BLOCK_COLS.min(cols.next_multiple_of(LINE))
        } else {
            cols.next_multiple_of(LINE)
        };
        let block_tiles = self.block_tiles(block_depth + BLOCK_COLS, cpu);
        let n_tiles = self.tiles.count();
        let y = Shared::new(y);
        cpu.threads
            .for_each(n_tiles.div_ceil(block_tiles), |block| {
                let range = block * block_tiles..n_tiles.min((block + 1) * block_tiles);
                let layout = Layout::tiles_by_channels(range.len(), block_depth);
                let mut inputs = Scratch::take(layout.len());
                let mut products = Block::new(range.len(), block_cols);
                for first_col in (0..cols).step_by(block_cols.max(1)) {
                    let part = first_col..cols.min(first_col + block_cols);
                    for first_k in (0..depth.max(1)).step_by(block_depth.max(1)) {
                        let depths = first_k..depth.min(first_k + block_depth);
                        if first_col == 0 {
                            let size = [range.len(), depths.len()];
                            let into = Planes::new(&mut inputs, layout, size);
                            self.transform_inputs(
                                range.clone(),
                                depths.clone(),
                                &zeros,
                                &into,
                                0,
                                cpu,
                            );
                        }
                        for col in part.clone().step_by(COLS) {
                            let panel =
                                &filters[col / COLS * panel_len(depth)..][..panel_len(depth)];
                            products.multiply(
                                [&inputs, panel.get(first_k * COLS..).unwrap_or(&[])],
                                layout,
                                position_stride(depth),
                                [depths.len(), col - first_col, panel_cols(col, cols)],
                                if first_k == 0 {
                                    Sums::Set
                                } else {
                                    Sums::Continue
                                },
                                cpu,
                            );
                        }
                    }
                    self.transform_outputs(&products, range.clone(), part, &y, cpu);
                }
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
        let mut inputs = Scratch::take(layout.len());
        let into = Planes::new(&mut inputs, layout, [n_tiles, depth]);
        cpu.threads.for_each(n_tiles.div_ceil(DEEP_TILES), |task| {
            let first = task * DEEP_TILES;
            let range = first..n_tiles.min(first + DEEP_TILES);
            self.transform_inputs(range, 0..depth, &zeros, &into, first, cpu);
        });
        let inputs = &inputs[..];
        let y = Shared::new(y);
        cpu.threads.for_each(cols.div_ceil(COLS), |panel| {
            let part = panel * COLS..cols.min((panel + 1) * COLS);
            let mut filters = Scratch::take(panel_len(DEEP_DEPTH));
            let mut products = Block::new(n_tiles, COLS);
            for first_k in (0..depth.max(1)).step_by(DEEP_DEPTH) {
                let depths = first_k..depth.min(first_k + DEEP_DEPTH);
                self.transform_panel(depths.clone(), part.start, &mut filters, DEEP_DEPTH, cpu);
                let from = first_k / layout.chunk * layout.chunk_stride;
                products.multiply(
                    [&inputs[from..], &filters],
                    layout,
                    position_stride(DEEP_DEPTH),
                    [depths.len(), 0, panel_cols(part.start, cols)],
                    if first_k == 0 {
                        Sums::Set
                    } else {
                        Sums::Continue
                    },
                    cpu,
                );
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

    fn transform_filters(&self, filters: &mut [f32], cpu: Cpu) {
        let (depth, cols) = (self.filter.depth(), self.filter.cols());
        let n_parts = depth.div_ceil(FILTER_DEPTH);
        let n_panels = cols.div_ceil(COLS);
        assert!(filters.len() >= n_panels * panel_len(depth));
        let into = Pointer(filters.as_mut_ptr());
        cpu.threads.for_each(n_panels * n_parts, |task| {
            let (panel, first) = (task / n_parts, task % n_parts * FILTER_DEPTH);
            let transform = TransformFilter {
                filter: self.filter,
                depth: first..depth.min(first + FILTER_DEPTH),
                first_col: panel * COLS,
                into: into.at(panel * panel_len(depth) + first * COLS),
                position_stride: position_stride(depth),
            };
            // SAFETY: `filters` holds all panels; tasks write different panels or depths.
            unsafe { transform.run(cpu.isa) };
        });
    }

    /// The weights of some depths and of the panel from `first_col` on, at the start of `into`,
    /// which has room for `room` depths.
    fn transform_panel(
        &self,
        depth: Range<usize>,
        first_col: usize,
        into: &mut [f32],
        room: usize,
        cpu: Cpu,
    ) {
        assert!(depth.len() <= room && into.len() >= panel_len(room));
        let transform = TransformFilter {
            filter: self.filter,
            depth,
            first_col,
            into: into.as_mut_ptr(),
            position_stride: position_stride(room),
        };
        // SAFETY: `into` is exclusive and large enough.
        unsafe { transform.run(cpu.isa) };
    }

    fn transform_inputs(
        &self,
        range: Range<usize>,
        part: Range<usize>,
        zeros: &[f32],
        into: &Planes<'_>,
        slot: usize,
        cpu: Cpu,
    ) {
        cpu.isa.dispatch(TransformInput {
            tiles: self.tiles,
            x: self.x,
            channels: self.filter.depth(),
            part,
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

/// A pointer that threads may share, for writes to different places.
#[derive(Clone, Copy)]
struct Pointer(*mut f32);

// SAFETY: only writes to different places go through it.
unsafe impl Sync for Pointer {}

impl Pointer {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
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
        let position_stride = n_tiles.next_multiple_of(4) * cols.next_multiple_of(2 * LINE) + LINE;
        Self {
            sums: Scratch::take(POSITIONS * position_stride),
            n_tiles,
            cols,
            position_stride,
        }
    }

    /// Multiplies inputs by `depth` rows of a panel that is live in `n_cols` columns, into the
    /// columns from `col` on.
    fn multiply(
        &mut self,
        [inputs, panel]: [&[f32]; 2],
        layout: Layout,
        b_position: usize,
        [depth, col, n_cols]: [usize; 3],
        sums: Sums,
        cpu: Cpu,
    ) {
        let products = Products {
            a: inputs,
            a_position: layout.position_stride,
            rows: Rows::Chunked {
                chunk_stride: layout.chunk_stride,
            },
            b: panel,
            b_position,
            c: &mut self.sums[col..],
            c_position: self.position_stride,
            c_row: self.cols,
            n_rows: self.n_tiles,
            depth,
            n_cols,
            sums,
        };
        products.run(cpu.isa);
    }
}
