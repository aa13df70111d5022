//! Group normalization with a scale and a shift per image and channel, and the SiLU after it.
//!
//! `y = act(scale * (x - mean) / sqrt(variance + eps) + shift)`, moments over a group's channels
//! and all positions. The statistics of an image are sums over fixed tiles of its positions.
//!
//! The input may lie in two places, each with some of the channels: results have the same bits as
//! if they lay in one.

mod backward;
mod columns;
mod moments;

use std::ops::Range;

use crate::cpu::{Cpu, Shared, Threads};
use crate::element::Element;
use columns::{Forward, for_all};

/// Elements of one tile of an image: a short sum, so that f32 suffices inside; tiles add up in f64.
const TILE: usize = 1 << 12;

/// Elements of an image that one core's cache holds two or three times over.
const CACHED: usize = 1 << 17;

/// What follows the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x sigmoid(x)`.
    Silu,
}

/// Sizes of the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupNorm {
    /// Images.
    pub n: usize,
    /// Positions of an image, H times W.
    pub n_positions: usize,
    /// Channels of the first source and, if there are two, of the second, else 0. Their sum C is a
    /// multiple of `n_groups`; a group may have channels of both.
    pub channels: [usize; 2],
    /// Groups of channels.
    pub n_groups: usize,
    /// What follows.
    pub activation: Activation,
}

/// Inputs of both directions.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The sources, read as one `[N, H*W, C]`: `[N, H*W, C_first]` and `[N, H*W, C_second]`.
    pub x: [&'a [f32]; 2],
    /// `[N, C]`.
    pub scale: &'a [f32],
    /// `[N, C]`.
    pub shift: &'a [f32],
}

/// The gradients with respect to [`Inputs`], each shaped like its input.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// `[N, H*W, C_first]` and `[N, H*W, C_second]`.
    pub d_x: [&'a mut [f32]; 2],
    /// `[N, C]`.
    pub d_scale: &'a mut [f32],
    /// `[N, C]`.
    pub d_shift: &'a mut [f32],
}

/// A source that has channels.
struct Source {
    index: usize,
    /// Where its channels stand among all.
    channels: Range<usize>,
}

impl Source {
    /// Its elements at `positions` of an image.
    fn elements(&self, positions: &Range<usize>) -> Range<usize> {
        let width = self.channels.len();
        positions.start * width..positions.end * width
    }
}

impl GroupNorm {
    /// Computes `y`, `[N, H*W, C]`, and returns the moments that [`GroupNorm::backward`] needs:
    /// per image and channel its group's mean and reciprocal deviation, `[N, 2, C]`.
    pub fn forward<Y: Element>(&self, inputs: Inputs<'_>, y: &mut [Y], cpu: Cpu) -> Vec<f32> {
        self.check(&inputs);
        let (c, image_len) = (self.c(), self.image_len());
        assert_eq!(y.len(), self.n * image_len);
        let mut moments = vec![0.0; self.n * 2 * c];
        let (shared_y, shared_moments) = (Shared::new(y), Shared::new(&mut moments));
        self.for_each_image(cpu, |image, cpu| {
            // SAFETY: images are disjoint.
            let (y, moments) = unsafe {
                (
                    shared_y.tile(image * image_len, image_len),
                    shared_moments.tile(image * 2 * c, 2 * c),
                )
            };
            let inputs = self.image(&inputs, image);
            self.image_moments(inputs.x, moments, cpu);
            self.image_forward(inputs, moments, y, cpu);
        });
        moments
    }

    /// Runs `f` for each image, on all threads together or each image on one.
    ///
    /// An image that fits a core's cache is read from memory once by a thread of its own.
    fn for_each_image(&self, cpu: Cpu, f: impl Fn(usize, Cpu) + Sync) {
        if self.image_len() <= CACHED && self.n >= cpu.threads.count() {
            let alone = Cpu {
                threads: Threads::new(1),
                ..cpu
            };
            cpu.threads.for_each(self.n, |image| f(image, alone));
        } else {
            (0..self.n).for_each(|image| f(image, cpu));
        }
    }

    /// The inputs of one image.
    fn image<'a>(&self, inputs: &Inputs<'a>, image: usize) -> Inputs<'a> {
        let c = self.c();
        Inputs {
            x: [0, 1].map(|source| {
                let len = self.n_positions * self.channels[source];
                &inputs.x[source][image * len..][..len]
            }),
            scale: &inputs.scale[image * c..][..c],
            shift: &inputs.shift[image * c..][..c],
        }
    }

    fn image_forward<Y: Element>(
        &self,
        inputs: Inputs<'_>,
        moments: &[f32],
        y: &mut [Y],
        cpu: Cpu,
    ) {
        let c = self.c();
        let slope = self.slopes(&inputs, moments);
        let shared = Shared::new(y);
        self.for_each_tile(cpu, |positions| {
            // SAFETY: tiles are disjoint.
            let y = unsafe { shared.tile(positions.start * c, positions.len() * c) };
            for source in self.sources() {
                let x = &inputs.x[source.index][source.elements(&positions)];
                let channels = source.channels;
                let lines = [moments, &slope, inputs.shift].map(|line| &line[channels.clone()]);
                cpu.isa.vectorize(
                    #[inline(always)]
                    |mul_add| {
                        let mut part = Forward {
                            x,
                            lines,
                            y: &mut *y,
                            y_width: c,
                            y_first: channels.start,
                            activation: self.activation,
                            mul_add,
                        };
                        for_all(channels.len(), &mut part);
                    },
                );
            }
        });
    }

    /// `scale * rstd` of an image's channels.
    fn slopes(&self, inputs: &Inputs<'_>, moments: &[f32]) -> Vec<f32> {
        let rstds = moments[self.c()..].iter();
        rstds
            .zip(inputs.scale)
            .map(|(rstd, scale)| rstd * scale)
            .collect()
    }

    /// Runs `f` with the positions of each tile of an image.
    fn for_each_tile(&self, cpu: Cpu, f: impl Fn(Range<usize>) + Sync) {
        cpu.threads.for_each(self.n_tiles(), |tile| {
            let first = tile * self.tile_positions();
            f(first..(first + self.tile_positions()).min(self.n_positions));
        });
    }

    fn sources(&self) -> impl Iterator<Item = Source> {
        let [first, second] = self.channels;
        let places = [0..first, first..first + second].into_iter().enumerate();
        places
            .map(|(index, channels)| Source { index, channels })
            .filter(|source| !source.channels.is_empty())
    }

    /// Channels of both sources.
    fn c(&self) -> usize {
        self.channels[0] + self.channels[1]
    }

    fn image_len(&self) -> usize {
        self.n_positions * self.c()
    }

    fn tile_positions(&self) -> usize {
        (TILE / self.c()).max(1)
    }

    fn n_tiles(&self) -> usize {
        self.n_positions.div_ceil(self.tile_positions())
    }

    fn check(&self, inputs: &Inputs<'_>) {
        let c = self.c();
        assert!(
            self.n_groups > 0 && c > 0 && c.is_multiple_of(self.n_groups),
            "{self:?}"
        );
        assert_eq!(inputs.x.map(<[f32]>::len), self.source_lens());
        assert_eq!(inputs.scale.len(), self.n * c);
        assert_eq!(inputs.shift.len(), self.n * c);
    }

    /// Elements of each source.
    fn source_lens(&self) -> [usize; 2] {
        self.channels.map(|c| self.n * self.n_positions * c)
    }
}
