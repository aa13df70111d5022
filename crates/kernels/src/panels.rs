//! Matrices cut into panels of a few columns: the layout that the register tiles of a product read.

use std::ops::Range;

use crate::cpu::{Cpu, Isa, Shared, Threads};
use crate::scratch::Scratch;

/// Columns of one panel of a product's right side.
pub(crate) const COLS: usize = 32;

/// Elements from which on packing is shared by the threads: fewer take less than starting one.
const PARALLEL: usize = 1 << 18;

/// The right side of a product, `[k, n]`, read in panels of [`COLS`] columns.
pub(crate) struct Panels<'a> {
    pub(crate) k: usize,
    pub(crate) n: usize,
    data: Data<'a>,
    row_stride: usize,
    panel_stride: usize,
}

enum Data<'a> {
    InPlace(&'a [f32]),
    Packed(Scratch),
}

impl Data<'_> {
    #[inline(always)]
    fn slice(&self) -> &[f32] {
        match self {
            Self::InPlace(rows) => rows,
            Self::Packed(packed) => packed,
        }
    }
}

impl<'a> Panels<'a> {
    /// A row-major matrix as it is, if all its panels are whole.
    pub(crate) fn in_place(rows: &'a [f32], k: usize, n: usize) -> Option<Self> {
        assert_eq!(rows.len(), k * n);
        n.is_multiple_of(COLS).then_some(Self {
            k,
            n,
            data: Data::InPlace(rows),
            row_stride: n,
            panel_stride: COLS,
        })
    }

    /// A copy with each panel by itself, `[n / COLS, k, COLS]`.
    ///
    /// `fill(columns, panel)` writes some columns of all k rows; what it leaves out is undefined.
    pub(crate) fn pack(
        k: usize,
        n: usize,
        threads: Threads,
        fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) -> Self {
        let panel_stride = k * COLS;
        let n_panels = n.div_ceil(COLS);
        let mut packed = Scratch::new(n_panels * panel_stride);
        let shared = Shared::new(&mut packed);
        let threads = if k * n < PARALLEL {
            Threads::new(1)
        } else {
            threads
        };
        threads.for_each(n_panels, |panel| {
            let columns = panel * COLS..((panel + 1) * COLS).min(n);
            // SAFETY: panels are disjoint.
            fill(columns, unsafe {
                shared.tile(panel * panel_stride, panel_stride)
            });
        });
        Self {
            k,
            n,
            data: Data::Packed(packed),
            row_stride: COLS,
            panel_stride,
        }
    }

    /// Packs the rows `row(0) .. row(k - 1)`, each of n elements.
    pub(crate) fn from_rows<'r>(
        k: usize,
        n: usize,
        row: impl Fn(usize) -> &'r [f32] + Sync,
        cpu: Cpu,
    ) -> Self {
        Self::pack(k, n, cpu.threads, |columns, panel| {
            for (i, into) in panel.chunks_exact_mut(COLS).enumerate() {
                copy_padded(&row(i)[columns.clone()], into);
            }
        })
    }

    /// Packs the matrix whose columns are `column(0) .. column(n - 1)`, each of k elements.
    pub(crate) fn from_columns<'r>(
        k: usize,
        n: usize,
        column: impl Fn(usize) -> &'r [f32] + Sync,
        cpu: Cpu,
    ) -> Self {
        Self::pack(k, n, cpu.threads, |columns, panel| {
            transpose(columns.map(&column), panel);
        })
    }

    /// Elements from one row of a panel to the next.
    #[inline(always)]
    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Where the panel starts: k rows of [`COLS`] elements, `row_stride` apart.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> &[f32] {
        let start = panel * self.panel_stride;
        match self.k.checked_sub(1) {
            Some(last) => &self.data.slice()[start..][..last * self.row_stride + COLS],
            None => &[],
        }
    }
}

/// Writes columns, at most [`COLS`] of equal length, into the rows of a panel.
pub(crate) fn transpose<'a>(columns: impl Iterator<Item = &'a [f32]>, panel: &mut [f32]) {
    // Rows whose cache lines stay at hand while all columns pass.
    const BLOCK: usize = 64;
    let mut sources = [&[][..]; COLS];
    let mut n = 0;
    for column in columns {
        sources[n] = column;
        n += 1;
    }
    for (block, rows) in panel.chunks_mut(BLOCK * COLS).enumerate() {
        for (c, source) in sources[..n].iter().enumerate() {
            let source = &source[block * BLOCK..][..rows.len() / COLS];
            for (row, &value) in rows.chunks_exact_mut(COLS).zip(source) {
                row[c] = value;
            }
        }
        for row in rows.chunks_exact_mut(COLS) {
            row[n..].fill(0.0);
        }
    }
}

/// Copies a row into the beginning of a longer one and fills the rest with zeros.
#[inline(always)]
fn copy_padded(from: &[f32], into: &mut [f32]) {
    let (values, rest) = into.split_at_mut(from.len());
    values.copy_from_slice(from);
    rest.fill(0.0);
}

/// How a product of rows by panels is cut into tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles {
    n_rows: usize,
    rows_per_block: usize,
    n_panels: usize,
    panels_per_part: usize,
}

impl Tiles {
    /// Blocks of rows by all n columns, or by parts of them where there are too few blocks for the
    /// threads.
    pub(crate) fn new([n_rows, k, n]: [usize; 3], rows_per_block: usize, threads: Threads) -> Self {
        let n_panels = n.div_ceil(COLS);
        let n_parts = match threads.for_products(n_rows * k * n).count() {
            1 => 1,
            count => (2 * count).div_ceil(n_rows.div_ceil(rows_per_block).max(1)),
        };
        Self {
            n_rows,
            rows_per_block,
            n_panels,
            panels_per_part: n_panels.div_ceil(n_parts).max(1),
        }
    }

    /// How many there are.
    pub(crate) fn count(self) -> usize {
        self.n_rows.div_ceil(self.rows_per_block) * self.n_parts()
    }

    fn n_parts(self) -> usize {
        self.n_panels.div_ceil(self.panels_per_part)
    }

    /// The rows of a tile.
    pub(crate) fn rows(self, tile: usize) -> Range<usize> {
        let first = tile / self.n_parts() * self.rows_per_block;
        first..(first + self.rows_per_block).min(self.n_rows)
    }

    /// The panels of a tile.
    pub(crate) fn panels(self, tile: usize) -> Range<usize> {
        let first = tile % self.n_parts() * self.panels_per_part;
        first..(first + self.panels_per_part).min(self.n_panels)
    }
}

/// Positions by channels, in strips of W channels: a side of a sum of outer products.
pub(crate) struct Strips<'a, const W: usize> {
    data: Data<'a>,
    pub(crate) n_positions: usize,
    position_stride: usize,
    strip_stride: usize,
}

impl<'a, const W: usize> Strips<'a, W> {
    /// Rows that stand `stride` apart. Where their length is no multiple of [`ROW_STEP`], products
    /// read past the end of the last.
    pub(crate) fn in_place(rows: &'a [f32], n_positions: usize, stride: usize) -> Self {
        Self {
            data: Data::InPlace(rows),
            n_positions,
            position_stride: stride,
            strip_stride: W,
        }
    }

    /// Packs the rows `row(0) .. row(n_positions - 1)`, each of n elements, or none for zeros.
    pub(crate) fn pack<'r>(
        n_positions: usize,
        n: usize,
        row: impl Fn(usize) -> Option<&'r [f32]>,
        isa: Isa,
    ) -> Self {
        // Off a power of two, or the same position of all strips falls into one set of the cache.
        let strip_stride = n_positions * W + 16;
        let mut data = Scratch::new(n.div_ceil(W) * strip_stride);
        isa.vectorize(
            #[inline(always)]
            |_| {
                for position in 0..n_positions {
                    let row = row(position);
                    for (strip, into) in data.chunks_exact_mut(strip_stride).enumerate() {
                        let into = &mut into[position * W..][..W];
                        match row {
                            Some(row) if (strip + 1) * W <= n => {
                                into.copy_from_slice(&row[strip * W..][..W]);
                            }
                            Some(row) => copy_padded(&row[strip * W..n], into),
                            None => into.fill(0.0),
                        }
                    }
                }
            },
        );
        Self {
            data: Data::Packed(data),
            n_positions,
            position_stride: W,
            strip_stride,
        }
    }

    /// Elements from one position of a strip to the next.
    #[inline(always)]
    pub(crate) fn position_stride(&self) -> usize {
        self.position_stride
    }

    /// Where n channels stand at the first position, `position_stride` from those at the next.
    #[inline(always)]
    pub(crate) fn channels(&self, first: usize, n: usize) -> *const f32 {
        let start = first / W * self.strip_stride + first % W;
        match self.n_positions.checked_sub(1) {
            Some(last) => self.data.slice()[start..][..last * self.position_stride + n].as_ptr(),
            None => self.data.slice().as_ptr(),
        }
    }
}
