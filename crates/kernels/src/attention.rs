//! Multi-head self-attention without a stored `T × T` matrix: the backward pass computes it again.
//!
//! Queries, keys and values come interleaved in one tensor, as the projection before wrote them.

mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vectors;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::cache::{line, prefetch_line, prefetch_to_write};
use crate::cpu::{Cpu, Precision, Shared};
use crate::element::Element;
use rows::HeadInRows;
#[cfg(target_arch = "x86_64")]
use tiles::HeadOnTiles;
use vectors::HeadInVectors;

/// `2^x` for x in [-1/2, 1/2] by powers of x: the least relative error with a first number of 1.
const EXP2: [f32; 6] = [
    1.0,
    0.693_146_94,
    0.240_221_2,
    0.055_507_13,
    0.009_675_541,
    0.001_327_647_2,
];

/// Sizes of the operation and the layout of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Images.
    pub n: usize,
    /// Positions of an image.
    pub n_positions: usize,
    /// Heads.
    pub n_heads: usize,
    /// Channels per head.
    pub head_channels: usize,
    /// How the input's channels are laid out.
    pub order: Order,
}

/// How the 3 C channels of queries, keys and values are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Head by head: its query, key and value (the reference's `QKVAttentionLegacy`).
    HeadMajor,
    /// All queries, all keys, all values, each head by head (`QKVAttention`).
    KindMajor,
}

impl Attention {
    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.n_heads * self.head_channels
    }

    /// `softmax(q k^T / sqrt(D)) v` per head: `qkv` is `[N, T, 3 C]`, `y` is `[N, T, C]`, head by
    /// head.
    pub fn forward<X: Element, Y: Element>(&self, qkv: &[X], y: &mut [Y], cpu: Cpu) {
        self.check(qkv.len(), y.len());
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = self.tiles(cpu) {
            return self.forward_heads(qkv, y, cpu, |head, y, ahead| {
                HeadOnTiles::new(head, self.scale(), amx).forward(y, ahead);
            });
        }
        X::with_f32(qkv, cpu, |qkv| {
            Y::write_f32(y, cpu, |y| {
                self.forward_heads(qkv, y, cpu, |head, y, ahead| {
                    if cpu.precision == Precision::Bf16 {
                        HeadInRows::new(head, self.scale(), cpu).forward(y, ahead);
                    } else {
                        HeadInVectors::new(head, self.scale(), cpu.isa).forward(y, ahead);
                    }
                });
            });
        });
    }

    /// Runs `forward` for each head; it calls its last argument for positions that are read soon.
    fn forward_heads<X: Element, Y: Element>(
        &self,
        qkv: &[X],
        y: &mut [Y],
        cpu: Cpu,
        forward: impl Fn(&Head<'_, X>, &Outputs<'_, Y>, &dyn Fn(Range<usize>)) + Sync,
    ) {
        let shared = Shared::new(y);
        cpu.threads.for_each(self.n * self.n_heads, |task| {
            let y = Outputs {
                data: &shared,
                places: self.output_places(task),
            };
            let ahead = |positions: Range<usize>| {
                self.head(qkv, task + 1).prefetch(0..3, positions.clone());
                y.prefetch(0..1, positions);
            };
            forward(&self.head(qkv, task), &y, &ahead);
        });
    }

    /// `d_qkv`, given the gradient of the output.
    pub fn backward<X: Element, Y: Element>(
        &self,
        qkv: &[X],
        d_y: &[Y],
        d_qkv: &mut [X],
        cpu: Cpu,
    ) {
        self.check(qkv.len(), d_y.len());
        assert_eq!(d_qkv.len(), qkv.len());
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = self.tiles(cpu) {
            return self.backward_heads(qkv, d_y, d_qkv, cpu, |head, d_y, d_qkv, ahead| {
                HeadOnTiles::new(head, self.scale(), amx).backward(d_y, d_qkv, ahead);
            });
        }
        let in_f32 = |qkv: &[f32], d_y: &[f32], d_qkv: &mut [f32]| {
            self.backward_heads(qkv, d_y, d_qkv, cpu, |head, d_y, d_qkv, ahead| {
                if cpu.precision == Precision::Bf16 {
                    HeadInRows::new(head, self.scale(), cpu).backward(d_y, d_qkv, ahead);
                } else {
                    HeadInVectors::new(head, self.scale(), cpu.isa).backward(d_y, d_qkv, ahead);
                }
            });
        };
        X::with_f32(qkv, cpu, |qkv| {
            Y::with_f32(d_y, cpu, |d_y| {
                X::write_f32(d_qkv, cpu, |d_qkv| in_f32(qkv, d_y, d_qkv));
            });
        });
    }

    /// Runs `backward` for each head, as [`Self::forward_heads`] does.
    fn backward_heads<X: Element, Y: Element>(
        &self,
        qkv: &[X],
        d_y: &[Y],
        d_qkv: &mut [X],
        cpu: Cpu,
        backward: impl Fn(&Head<'_, X>, &Head<'_, Y>, &Outputs<'_, X>, &dyn Fn(Range<usize>)) + Sync,
    ) {
        let shared = Shared::new(d_qkv);
        cpu.threads.for_each(self.n * self.n_heads, |task| {
            let head = self.head(qkv, task);
            let d_y_of = |task| Head {
                data: d_y,
                places: self.output_places(task),
            };
            let d_qkv = Outputs {
                data: &shared,
                places: head.places,
            };
            let ahead = |positions: Range<usize>| {
                self.head(qkv, task + 1).prefetch(0..3, positions.clone());
                d_y_of(task + 1).prefetch(0..1, positions.clone());
                d_qkv.prefetch(0..3, positions);
            };
            backward(&head, &d_y_of(task), &d_qkv, &ahead);
        });
    }

    /// The tile registers, if they multiply faster in the precision that is asked for.
    #[cfg(target_arch = "x86_64")]
    fn tiles(&self, cpu: Cpu) -> Option<Amx> {
        let applies = cpu.precision == Precision::Bf16 && tiles::applies(self);
        Amx::of(cpu.isa).filter(|_| applies)
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.head_channels as f64).sqrt()) as f32
    }

    /// The inputs of a task: a head of an image.
    fn head<'a, X>(&self, qkv: &'a [X], task: usize) -> Head<'a, X> {
        let (d, c) = (self.head_channels, self.channels());
        let (image, head) = (task / self.n_heads, task % self.n_heads);
        let offsets = match self.order {
            Order::HeadMajor => [0, 1, 2].map(|kind| (head * 3 + kind) * d),
            Order::KindMajor => [0, 1, 2].map(|kind| kind * c + head * d),
        };
        let first = image * self.n_positions * 3 * c;
        let places = Places {
            starts: offsets.map(|offset| first + offset),
            stride: 3 * c,
            n_positions: self.n_positions,
            d,
        };
        Head { data: qkv, places }
    }

    /// Where the outputs of a task are, as the first kind.
    fn output_places(&self, task: usize) -> Places {
        let (d, c) = (self.head_channels, self.channels());
        let (image, head) = (task / self.n_heads, task % self.n_heads);
        Places {
            starts: [image * self.n_positions * c + head * d; 3],
            stride: c,
            n_positions: self.n_positions,
            d,
        }
    }

    fn check(&self, qkv_len: usize, y_len: usize) {
        assert!(self.n_positions > 0 && self.head_channels > 0, "{self:?}");
        assert_eq!(y_len, self.n * self.n_positions * self.channels());
        assert_eq!(qkv_len, 3 * y_len);
    }
}

/// Where the rows of one head of one image are: D channels at each of T positions.
#[derive(Debug, Clone, Copy)]
struct Places {
    /// The first row of the queries (0), keys (1) and values (2).
    starts: [usize; 3],
    /// From a row to the next.
    stride: usize,
    n_positions: usize,
    d: usize,
}

impl Places {
    fn row(&self, kind: usize, position: usize) -> Range<usize> {
        let start = self.starts[kind] + position * self.stride;
        start..start + self.d
    }

    /// The starts of the cache lines of some rows, of elements of type X.
    fn lines<X>(
        &self,
        kinds: Range<usize>,
        positions: Range<usize>,
    ) -> impl Iterator<Item = usize> {
        positions.flat_map(move |position| {
            let rows = kinds.clone().map(move |kind| self.row(kind, position));
            rows.flat_map(|row| row.step_by(line::<X>()))
        })
    }
}

/// The inputs of one head.
#[derive(Debug, Clone, Copy)]
struct Head<'a, X = f32> {
    data: &'a [X],
    places: Places,
}

impl<'a, X> Head<'a, X> {
    /// A row, `[D]`.
    fn row(&self, kind: usize, position: usize) -> &'a [X] {
        &self.data[self.places.row(kind, position)]
    }

    /// Asks for rows that are read soon: their short pieces are too many for the hardware to foresee.
    fn prefetch(&self, kinds: Range<usize>, positions: Range<usize>) {
        for start in self.places.lines::<X>(kinds, positions) {
            prefetch_line(self.data.as_ptr().wrapping_add(start));
        }
    }
}

/// The outputs of one head, or the gradients of its inputs.
struct Outputs<'a, Y = f32> {
    data: &'a Shared<'a, Y>,
    places: Places,
}

impl<Y: Element> Outputs<'_, Y> {
    /// Writes some channels of a row, starting with the given one.
    #[inline]
    fn write(&self, kind: usize, position: usize, channel: usize, values: &[f32]) {
        let start = self.places.row(kind, position).start + channel;
        // SAFETY: nobody but the task of a head has its rows.
        let row = unsafe { self.data.tile(start, values.len()) };
        // Copies of a known size need no call.
        match (<&mut [Y; 32]>::try_from(&mut *row), values.try_into()) {
            (Ok(row), Ok(values)) => *row = <[f32; 32]>::map(values, Y::round),
            _ => {
                for (into, &value) in row.iter_mut().zip(values) {
                    *into = Y::round(value);
                }
            }
        }
    }

    /// Asks for rows that are written soon.
    fn prefetch(&self, kinds: Range<usize>, positions: Range<usize>) {
        for start in self.places.lines::<Y>(kinds, positions) {
            prefetch_to_write(self.data.pointer(start, 1));
        }
    }
}
