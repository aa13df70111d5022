//! Rows of channels as the products read them, and the ways between them and tensors.

use std::ops::Range;

use crate::attention::{Head, Outputs};
use crate::cpu::Isa;
use crate::gemm::ROW_STEP;
use crate::panels::COLS;
use crate::scratch::Scratch;
use crate::transpose;

/// Rows of d channels in strips of [`COLS`], filled up with zeros: the distance of two rows is a
/// constant, as register tiles have too many rows for a register each.
///
/// A few more rows than asked for, of any numbers, make register tiles whole.
pub(super) struct Rows {
    strips: Scratch,
    strip_len: usize,
    d: usize,
}

impl Rows {
    pub(super) fn new(n: usize, d: usize) -> Self {
        let strip_len = padded(n) * COLS;
        let len = d.div_ceil(COLS) * strip_len;
        let strips = match d.is_multiple_of(COLS) {
            true => Scratch::new(len),
            false => Scratch::zeros(len),
        };
        Self {
            strips,
            strip_len,
            d,
        }
    }

    /// All rows of a kind.
    pub(super) fn all(head: &Head<'_>, kind: usize, isa: Isa) -> Self {
        let n = head.places.n_positions;
        let mut rows = Self::new(n, head.places.d);
        rows.copy((head, kind, 0..n), |_| 1.0, isa);
        rows
    }

    /// Copies rows of a kind, each times its factor.
    pub(super) fn copy(
        &mut self,
        (head, kind, positions): (&Head<'_>, usize, Range<usize>),
        factor: impl Fn(usize) -> f32,
        isa: Isa,
    ) {
        isa.vectorize(
            #[inline(always)]
            |_| {
                for (idx, strip) in self.strips.chunks_exact_mut(self.strip_len).enumerate() {
                    let channels = idx * COLS..self.d.min((idx + 1) * COLS);
                    let rows = strip.chunks_exact_mut(COLS).zip(positions.clone());
                    for (i, (into, position)) in rows.enumerate() {
                        let row = &head.row(kind, position)[channels.clone()];
                        scale(row, factor(i), &mut into[..channels.len()]);
                    }
                }
            },
        );
    }

    /// Writes rows where positions of a kind are, each times its factor.
    pub(super) fn write(
        &self,
        factor: impl Fn(usize) -> f32,
        (into, kind, positions): (&Outputs<'_>, usize, Range<usize>),
        isa: Isa,
    ) {
        isa.vectorize(
            #[inline(always)]
            |_| {
                for (idx, strip) in self.strips.chunks_exact(self.strip_len).enumerate() {
                    let n = COLS.min(self.d - idx * COLS);
                    let rows = strip.chunks_exact(COLS).zip(positions.clone());
                    for (i, (row, position)) in rows.enumerate() {
                        let mut scaled = [0.0; COLS];
                        scale(row, factor(i), &mut scaled);
                        into.write(kind, position, idx * COLS, &scaled[..n]);
                    }
                }
            },
        );
    }

    /// All numbers from a row on, and their distance to those of the next strip.
    pub(super) fn at(&self, i: usize) -> (&[f32], usize) {
        (&self.strips[i * COLS..], self.strip_len)
    }

    pub(super) fn at_mut(&mut self, i: usize) -> (&mut [f32], usize) {
        (&mut self.strips[i * COLS..], self.strip_len)
    }
}

/// Rows that register tiles compute where n are asked for.
pub(super) fn padded(n: usize) -> usize {
    n.next_multiple_of(ROW_STEP)
}

/// `into = x * factor`.
#[inline(always)]
fn scale(x: &[f32], factor: f32, into: &mut [f32]) {
    // A known size needs no loop.
    if let (Ok(x), Ok(into)) = (
        <&[f32; COLS]>::try_from(x),
        <&mut [f32; COLS]>::try_from(&mut *into),
    ) {
        for i in 0..COLS {
            into[i] = x[i] * factor;
        }
        return;
    }
    for (into, x) in into.iter_mut().zip(x) {
        *into = x * factor;
    }
}

/// Writes some positions, at most [`COLS`], as columns: `[d, COLS]`, filled up with zeros.
pub(super) fn copy_columns(
    head: &Head<'_>,
    kind: usize,
    positions: &Range<usize>,
    columns: &mut [f32],
) {
    let n = positions.len();
    for first in (0..n).step_by(4) {
        let row = |i: usize| {
            let position = positions.start + (first + i).min(n - 1);
            head.row(kind, position).as_chunks::<4>()
        };
        let rows = [row(0), row(1), row(2), row(3)];
        let [a, b, c, d] = rows;
        let blocks = a.0.iter().zip(b.0).zip(c.0).zip(d.0);
        let (whole, rest) = columns.split_at_mut(a.0.len() * 4 * COLS);
        for ((((a, b), c), d), into) in blocks.zip(whole.chunks_exact_mut(4 * COLS)) {
            let block = transpose::four([*a, *b, *c, *d]);
            for i in 0..4 {
                into[i * COLS + first..][..4].copy_from_slice(&block[i]);
            }
        }
        for (channel, into) in rest.chunks_exact_mut(COLS).enumerate() {
            for (i, (_, rest)) in rows.iter().enumerate() {
                into[first + i] = rest[channel];
            }
        }
    }
    if n < COLS {
        for column in columns.chunks_exact_mut(COLS) {
            column[n..].fill(0.0);
        }
    }
}
