//! The weights of a convolution as the registers read them: panel by panel, step by step.

use std::ops::Range;

use super::Conv2d;
use crate::amx::pack::TILE;
use crate::amx::product::{BLOCK, STEP, STEP_BYTES};
use crate::amx::{Amx, SIDE};

/// Floats of the weights of a step.
const STEP_LEN: usize = STEP_BYTES / size_of::<f32>();

/// Which way a filter is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// As it is.
    Forward,
    /// Turned by 180 degrees with its channels exchanged, for the gradient of the input.
    Turned,
}

/// `[taps, C_in, C_out]`, used as `[taps, depth, cols]`.
pub(super) struct Weights<'a> {
    weight: &'a [f32],
    direction: Direction,
    n_taps: usize,
    c_in: usize,
    c_out: usize,
    pub(super) depth: usize,
    pub(super) cols: usize,
}

impl<'a> Weights<'a> {
    pub(super) fn new(conv: &Conv2d, weight: &'a [f32], direction: Direction) -> Self {
        let (c_in, c_out) = (conv.c_in, conv.c_out);
        let (depth, cols) = match direction {
            Direction::Forward => (c_in, c_out),
            Direction::Turned => (c_out, c_in),
        };
        Self {
            weight,
            direction,
            n_taps: conv.n_taps(),
            c_in,
            c_out,
            depth,
            cols,
        }
    }

    /// Panels of [`BLOCK`] columns.
    pub(super) fn n_panels(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    /// Floats of a panel.
    pub(super) fn panel_len(&self) -> usize {
        self.n_taps * self.depth.div_ceil(STEP) * STEP_LEN
    }

    /// Writes a panel: for each tap and [`STEP`] depths two tiles of columns.
    pub(super) fn pack(&self, panel: usize, into: &mut [f32], amx: Amx) {
        let chunks = self.depth.div_ceil(STEP);
        for (step, into) in into.chunks_exact_mut(STEP_LEN).enumerate() {
            let (tap, first) = (step / chunks, step % chunks * STEP);
            for (i, tile) in into.chunks_exact_mut(TILE).enumerate() {
                let col = panel * BLOCK + i * SIDE;
                let depths = first..self.depth.min(first + STEP);
                let cols = col..self.cols.min(col + SIDE);
                match self.direction {
                    Direction::Forward => {
                        let row = |i: usize| match first + i < depths.end {
                            true => self.weights(tap, first + i, cols.clone()),
                            false => &[],
                        };
                        amx.tile_of_rows(row, tile);
                    }
                    Direction::Turned => {
                        let column = |i: usize| match col + i < cols.end {
                            true => self.weights(self.n_taps - 1 - tap, col + i, depths.clone()),
                            false => &[],
                        };
                        amx.tile_of_columns(column, tile);
                    }
                }
            }
        }
    }

    /// The weights from an input channel to some output channels.
    fn weights(&self, tap: usize, c_in: usize, c_out: Range<usize>) -> &[f32] {
        let row = (tap * self.c_in + c_in) * self.c_out;
        &self.weight[row + c_out.start.min(c_out.end)..row + c_out.end]
    }
}
