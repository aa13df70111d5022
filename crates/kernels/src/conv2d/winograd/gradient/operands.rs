//! Transformed tiles, and the products over them.

use std::ops::Range;

use super::super::product::{COLS, Products, Rows, Sums};
use super::super::tile::{Layout, Planes};
use super::sums::SumsLayout;
use crate::cpu::Cpu;
use crate::scratch::Scratch;

/// Transformed inputs and output gradients of some tiles.
pub(super) struct Operands {
    layouts: [Layout; 2],
    /// Input channels, and output channels from the start of a panel on.
    channels: [Range<usize>; 2],
    n_tiles: usize,
    values: [Scratch; 2],
}

impl Operands {
    /// Room for `n_tiles` of some input and output channels.
    pub(super) fn new(channels: [Range<usize>; 2], n_tiles: usize) -> Self {
        let layouts = [
            Layout::channels_by_tiles(n_tiles, channels[0].len()),
            Layout::panels(n_tiles, channels[1].len()),
        ];
        Self {
            layouts,
            channels,
            n_tiles,
            values: layouts.map(|layout| Scratch::new(layout.len())),
        }
    }

    /// Runs `f` with the places of inputs and output gradients, and their channels.
    pub(super) fn with_planes(&mut self, f: impl FnOnce(&[(Planes<'_>, Range<usize>); 2])) {
        let [inputs, gradients] = &mut self.values;
        let planes = |values, idx: usize| {
            let channels = self.channels[idx].clone();
            let size = [self.n_tiles, channels.len()];
            (Planes::new(values, self.layouts[idx], size), channels)
        };
        f(&[planes(inputs, 0), planes(gradients, 1)]);
    }

    /// Sums the products of the first `n_tiles` tiles.
    pub(super) fn multiply(
        &self,
        sums: &SumsLayout,
        n_tiles: usize,
        out: &mut [f32],
        write: Sums,
        cpu: Cpu,
    ) {
        let [inputs, gradients] = self.layouts;
        let first = self.channels.each_ref().map(|channels| channels.start);
        let products = Products {
            a: &self.values[0][sums.rows.start - first[0]..],
            a_position: inputs.position_stride,
            rows: Rows::Transposed {
                stride: inputs.chunk,
            },
            b: &self.values[1][(sums.cols.start - first[1]) / COLS * gradients.chunk_stride..],
            b_position: gradients.position_stride,
            b_panel: gradients.chunk_stride,
            c: out,
            c_position: sums.position_stride,
            c_panel: sums.panel_stride,
            c_row: COLS,
            n_rows: sums.rows.len(),
            depth: n_tiles,
            n_cols: sums.cols.len().next_multiple_of(COLS / 2),
            sums: write,
            ahead: None,
        };
        products.run(cpu.isa);
    }
}
