//! The four forms in which products read rows of a head, and that of probabilities.

use crate::amx::pack::TILE;
use crate::amx::product::{BLOCK, STEP, STEP_BYTES, Side};
use crate::amx::{Amx, SIDE};
use crate::element::Element;
use crate::scratch::Scratch;

/// Floats of a step where steps follow each other.
pub(super) const STEP_LEN: usize = STEP_BYTES / size_of::<f32>();

/// How rows of one head are packed, `[T, D]`, both filled with zeros to a multiple of [`BLOCK`].
#[derive(Clone, Copy)]
pub(super) struct Packing {
    pub(super) amx: Amx,
    pub(super) n_positions: usize,
    pub(super) d: usize,
}

/// One side of products: blocks of [`BLOCK`] rows of its matrix, or of columns of the right one.
pub(super) struct Packed {
    pub(super) pairs: Scratch,
    /// Floats of a block.
    block_len: usize,
    /// From a row of a tile to the next, in bytes.
    row: usize,
    /// From the first tile of a block to the second, in bytes.
    next: usize,
}

impl Packed {
    /// A block, as products read it.
    pub(super) fn side(&self, block: usize) -> Side<'_> {
        self.side_from(block, 0)
    }

    /// The same without as many bytes of its first steps.
    pub(super) fn side_from(&self, block: usize, bytes: usize) -> Side<'_> {
        Side {
            pairs: &self.pairs[block * self.block_len + bytes / size_of::<f32>()..],
            row: self.row,
            next: self.next,
        }
    }
}

impl Packing {
    /// Blocks of positions.
    pub(super) fn n_blocks(&self) -> usize {
        self.n_positions.div_ceil(BLOCK)
    }

    /// Strips of [`STEP`] channels.
    pub(super) fn n_strips(&self) -> usize {
        self.d.div_ceil(STEP)
    }

    /// Left sides of sums over channels, in blocks of positions.
    pub(super) fn rows<'a, X: Element>(&self, row: impl Fn(usize) -> &'a [X]) -> Packed {
        let row_len = self.n_strips() * STEP / 2;
        let mut packed = self.packed(self.n_blocks(), BLOCK * row_len);
        for (i, into) in packed.pairs.chunks_exact_mut(row_len).enumerate() {
            self.amx.neighbors(self.row(&row, i), into);
        }
        packed.row = row_len * size_of::<f32>();
        packed.next = SIDE * packed.row;
        packed
    }

    /// Where the steps of [`Self::rows`] are, in bytes.
    pub(super) fn row_steps(&self) -> impl Iterator<Item = usize> {
        (0..self.n_strips()).map(|strip| strip * STEP / 2 * size_of::<f32>())
    }

    /// Right sides of sums over channels, in blocks of positions.
    pub(super) fn columns<'a, X: Element>(&self, row: impl Fn(usize) -> &'a [X]) -> Packed {
        let mut packed = self.packed(self.n_blocks(), self.n_strips() * STEP_LEN);
        for (idx, step) in packed.pairs.chunks_exact_mut(STEP_LEN).enumerate() {
            let (block, strip) = (idx / self.n_strips(), idx % self.n_strips());
            for (i, tile) in step.chunks_exact_mut(TILE).enumerate() {
                let first = block * BLOCK + i * SIDE;
                let column = |i| self.strip(&row, first + i, strip);
                self.amx.tile_of_columns(column, tile);
            }
        }
        packed
    }

    /// Left sides of sums over positions, in strips of channels.
    pub(super) fn column_pairs<'a, X: Element>(&self, row: impl Fn(usize) -> &'a [X]) -> Packed {
        let strip_len = self.n_blocks() * STEP_LEN;
        let mut packed = self.packed(self.n_strips(), strip_len);
        for (strip, into) in packed.pairs.chunks_exact_mut(strip_len).enumerate() {
            let pairs = self.position_pairs(&row, strip);
            let mut sum = [0.0; BLOCK];
            self.amx.strip_of_columns(pairs, into, &mut sum);
        }
        packed
    }

    /// Right sides of sums over positions, in strips of channels.
    pub(super) fn row_pairs<'a, X: Element>(&self, row: impl Fn(usize) -> &'a [X]) -> Packed {
        let strip_len = self.n_blocks() * STEP_LEN;
        let mut packed = self.packed_row_pairs(self.n_strips());
        for (strip, into) in packed.pairs.chunks_exact_mut(strip_len).enumerate() {
            let pairs = self.position_pairs(&row, strip);
            self.amx.strip_of_rows(pairs, into);
        }
        packed
    }

    /// Room for right sides of sums over positions: `n_strips` of [`BLOCK`] columns.
    pub(super) fn packed_row_pairs(&self, n_strips: usize) -> Packed {
        let strip_len = self.n_blocks() * STEP_LEN;
        let line = SIDE * size_of::<f32>();
        Packed {
            row: 2 * line,
            next: line,
            ..self.packed(n_strips, strip_len)
        }
    }

    /// Room for left sides of sums over queries, in blocks of keys: as many steps as asked for, one
    /// after the other, each of all keys.
    pub(super) fn packed_keys(&self, n_steps: usize) -> Packed {
        self.packed(n_steps * self.n_blocks(), STEP_LEN)
    }

    /// Tiles of a step one after the other.
    fn packed(&self, n_blocks: usize, block_len: usize) -> Packed {
        let tile = TILE * size_of::<f32>();
        Packed {
            pairs: Scratch::new(n_blocks * block_len),
            block_len,
            row: SIDE * size_of::<f32>(),
            next: tile,
        }
    }

    /// A row, or nothing behind the last one.
    fn row<'a, X: Element>(&self, row: impl Fn(usize) -> &'a [X], i: usize) -> &'a [X] {
        if i < self.n_positions { row(i) } else { &[] }
    }

    /// The channels of a strip and those behind.
    fn strip<'a, X: Element>(
        &self,
        row: impl Fn(usize) -> &'a [X],
        i: usize,
        strip: usize,
    ) -> &'a [X] {
        self.row(row, i).get(strip * STEP..).unwrap_or_default()
    }

    /// The channels of a strip, two positions at a time.
    fn position_pairs<'a, X: Element>(
        &self,
        row: impl Fn(usize) -> &'a [X],
        strip: usize,
    ) -> impl Iterator<Item = [&'a [X]; 2]> {
        (0..self.n_positions)
            .step_by(2)
            .map(move |i| [i, i + 1].map(|i| self.strip(&row, i, strip)))
    }
}
