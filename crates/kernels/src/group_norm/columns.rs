//! Loops over the rows of a tile for as many columns as registers hold.
//!
//! What belongs to a channel, sums above all, stays in registers from row to row. Each element sees
//! the same operations in whatever part its column is.

use super::{Activation, TILE};
use crate::cache::{line, prefetch_line, prefetch_to_write};
use crate::cpu::MulAdd;
use crate::element::Element;
use crate::elementwise::{sigmoid, silu_slope};

/// What is done with the rows of a tile.
pub(super) trait Columns {
    /// Does it for N columns from `first` on.
    fn run<const N: usize>(&mut self, first: usize);
}

/// Does it for all columns of rows of `width`.
#[inline(always)]
pub(super) fn for_all(width: usize, work: &mut impl Columns) {
    const MANY: usize = 32;
    let n_whole = width / MANY * MANY;
    for first in (0..n_whole).step_by(MANY) {
        work.run::<MANY>(first);
    }
    for first in n_whole..width {
        work.run::<1>(first);
    }
}

/// Asks for what is a tile further on, while there is arithmetic to do: the next tile, mostly.
#[inline(always)]
fn prefetch_next_tile<X>(row: &[X]) {
    for part in row.chunks(line::<X>()) {
        prefetch_line(part.as_ptr().wrapping_add(TILE));
    }
}

/// The same for what will be written.
#[inline(always)]
fn prefetch_next_tile_to_write<X>(row: &mut [X]) {
    for part in row.chunks_mut(line::<X>()) {
        prefetch_to_write(part.as_mut_ptr().wrapping_add(TILE));
    }
}

#[inline(always)]
fn part<const N: usize>(row: &[f32], first: usize) -> [f32; N] {
    let mut part = [0.0; N];
    part.copy_from_slice(&row[first..first + N]);
    part
}

/// Per channel the mean of a tile, `[positions, width]`, and the sum of squares about it.
///
/// Differences from one of the tile's positions, then squares about the tile's mean: no digits are
/// lost to a mean that is large against the deviation.
pub(super) struct Moments<'a> {
    pub(super) x: &'a [f32],
    /// Written, `[width]`.
    pub(super) mean: &'a mut [f32],
    /// Written, `[width]`.
    pub(super) spread: &'a mut [f32],
    pub(super) mul_add: MulAdd,
}

impl Columns for Moments<'_> {
    #[inline(always)]
    fn run<const N: usize>(&mut self, first: usize) {
        let width = self.mean.len();
        let reciprocal = 1.0 / (self.x.len() / width) as f32;
        let origin: [f32; N] = part(self.x, first);
        let mut mean = [0.0; N];
        for x in self.x.chunks_exact(width) {
            let row = x[first..first + N].iter().zip(&origin);
            for (mean, (x, origin)) in mean.iter_mut().zip(row) {
                *mean += x - origin;
            }
        }
        for (mean, origin) in mean.iter_mut().zip(origin) {
            *mean = self.mul_add.run(*mean, reciprocal, origin);
        }
        let mut spread = [0.0; N];
        for x in self.x.chunks_exact(width) {
            let x = &x[first..first + N];
            prefetch_next_tile(x);
            let row = x.iter().zip(&mean);
            for (spread, (x, mean)) in spread.iter_mut().zip(row) {
                let difference = x - mean;
                *spread = self.mul_add.run(difference, difference, *spread);
            }
        }
        self.mean[first..first + N].copy_from_slice(&mean);
        self.spread[first..first + N].copy_from_slice(&spread);
    }
}

/// `y = act((x - mean) * slope + shift)`.
pub(super) struct Forward<'a, Y> {
    /// `[positions, width]`.
    pub(super) x: &'a [f32],
    /// Mean, slope and shift, `width` each.
    pub(super) lines: [&'a [f32]; 3],
    /// Written, rows of `y_width` of which `width` from `y_first` on.
    pub(super) y: &'a mut [Y],
    pub(super) y_width: usize,
    pub(super) y_first: usize,
    pub(super) activation: Activation,
    pub(super) mul_add: MulAdd,
}

impl<Y: Element> Columns for Forward<'_, Y> {
    #[inline(always)]
    fn run<const N: usize>(&mut self, first: usize) {
        let mul_add = self.mul_add;
        match self.activation {
            Activation::Identity => self.rows::<N>(
                first,
                #[inline(always)]
                |u| u,
            ),
            Activation::Silu => {
                self.rows::<N>(
                    first,
                    #[inline(always)]
                    |u| u * sigmoid(u, mul_add),
                );
            }
        }
    }
}

impl<Y: Element> Forward<'_, Y> {
    #[inline(always)]
    fn rows<const N: usize>(&mut self, first: usize, act: impl Fn(f32) -> f32) {
        let width = self.lines[0].len();
        let [mean, slope, shift] = self.lines.map(|line| part::<N>(line, first));
        let rows = self.y.chunks_exact_mut(self.y_width);
        for (y, x) in rows.zip(self.x.chunks_exact(width)) {
            let x = &x[first..first + N];
            let y = &mut y[self.y_first + first..][..N];
            prefetch_next_tile(x);
            prefetch_next_tile_to_write(y);
            let line = mean.iter().zip(&slope).zip(&shift);
            for ((y, x), ((mean, slope), shift)) in y.iter_mut().zip(x).zip(line) {
                *y = Y::round(act(self.mul_add.run(x - mean, *slope, *shift)));
            }
        }
    }
}

/// The gradient before the activation, its sums and its sums times the normalized input.
pub(super) struct Sums<'a, Y> {
    /// `[positions, width]`.
    pub(super) x: &'a [f32],
    /// Rows of `y_width` of which `width` from `y_first` on.
    pub(super) d_y: &'a [Y],
    pub(super) y_width: usize,
    pub(super) y_first: usize,
    /// Mean, reciprocal deviation, slope and shift, `width` each.
    pub(super) lines: [&'a [f32]; 4],
    /// Written, `[positions, width]`.
    pub(super) d_u: &'a mut [f32],
    /// Written, `[width]` each.
    pub(super) sums: [&'a mut [f32]; 2],
    pub(super) activation: Activation,
    pub(super) mul_add: MulAdd,
}

impl<Y: Element> Columns for Sums<'_, Y> {
    #[inline(always)]
    fn run<const N: usize>(&mut self, first: usize) {
        let mul_add = self.mul_add;
        match self.activation {
            Activation::Identity => self.rows::<N>(
                first,
                #[inline(always)]
                |_| 1.0,
            ),
            Activation::Silu => {
                self.rows::<N>(
                    first,
                    #[inline(always)]
                    |u| silu_slope(u, mul_add),
                );
            }
        }
    }
}

impl<Y: Element> Sums<'_, Y> {
    #[inline(always)]
    fn rows<const N: usize>(&mut self, first: usize, slope_at: impl Fn(f32) -> f32) {
        let mul_add = self.mul_add;
        let width = self.lines[0].len();
        let [mean, rstd, slope, shift] = self.lines.map(|line| part::<N>(line, first));
        let (mut sum, mut sum_centered) = ([0.0; N], [0.0; N]);
        let inputs = self.x.chunks_exact(width);
        let rows = inputs.zip(self.d_y.chunks_exact(self.y_width));
        for (d_u, (x, d_y)) in self.d_u.chunks_exact_mut(width).zip(rows) {
            let x = &x[first..first + N];
            let d_y = &d_y[self.y_first + first..][..N];
            let d_u = &mut d_u[first..first + N];
            prefetch_next_tile(x);
            prefetch_next_tile(d_y);
            prefetch_next_tile_to_write(d_u);
            let row = d_u.iter_mut().zip(x.iter().zip(d_y));
            let line = mean.iter().zip(&slope).zip(&shift);
            let sums = sum.iter_mut().zip(&mut sum_centered);
            for (((d_u, (x, d_y)), ((mean, slope), shift)), (sum, sum_centered)) in
                row.zip(line).zip(sums)
            {
                let centered = x - mean;
                *d_u = d_y.widen() * slope_at(mul_add.run(centered, *slope, *shift));
                *sum += *d_u;
                *sum_centered = mul_add.run(*d_u, centered, *sum_centered);
            }
        }
        let [sums, sums_xhat] = &mut self.sums;
        sums[first..first + N].copy_from_slice(&sum);
        for (i, (sum, rstd)) in sum_centered.iter().zip(rstd).enumerate() {
            sums_xhat[first + i] = sum * rstd;
        }
    }
}

/// `d_x = slope * d_u + along * (x - mean) + offset`, in the place of `d_u`.
pub(super) struct Backward<'a> {
    /// `[positions, width]`.
    pub(super) x: &'a [f32],
    /// Slope, along, offset and mean, `width` each.
    pub(super) lines: [&'a [f32]; 4],
    pub(super) d_x: &'a mut [f32],
    pub(super) mul_add: MulAdd,
}

impl Columns for Backward<'_> {
    #[inline(always)]
    fn run<const N: usize>(&mut self, first: usize) {
        let mul_add = self.mul_add;
        let width = self.lines[0].len();
        let [slope, along, offset, mean] = self.lines.map(|line| part::<N>(line, first));
        let rows = self.d_x.chunks_exact_mut(width);
        for (d_x, x) in rows.zip(self.x.chunks_exact(width)) {
            let line = slope.iter().zip(&along).zip(&offset).zip(&mean);
            let (d_x, x) = (&mut d_x[first..first + N], &x[first..first + N]);
            prefetch_next_tile(x);
            prefetch_next_tile_to_write(d_x);
            let row = d_x.iter_mut().zip(x);
            for ((d_x, x), (((slope, along), offset), mean)) in row.zip(line) {
                let rest = mul_add.run(*along, x - mean, *offset);
                *d_x = mul_add.run(*slope, *d_x, rest);
            }
        }
    }
}
