//! Convolutions of stride 1 that keep the size of images, on tile registers: see [`crate::amx`].
//!
//! The images of a batch lie below each other in one [`Picture`], with zeros around each. The
//! input of a tap is then the picture shifted by a constant: a matrix whose rows are pixels and
//! start at equal distances, which the registers read where it lies. Outputs between the images are
//! computed and dropped.

mod gradient;
mod picture;
mod weights;

use std::ops::Range;

use super::{Conv2d, Groups, Inputs};
use crate::amx::product::{BLOCK, Block, STEP, Side, Steps};
use crate::amx::{Amx, Registers};
use crate::cache::{line, prefetch_line, prefetch_to_write};
use crate::cpu::{Cpu, Shared};
use crate::element::Element;
use crate::gemm::Sum;
use crate::scratch::Scratch;
use gradient::WeightGradient;
use picture::{Picture, Sheet};
use weights::{Direction, Weights};

/// Floats of the part of a picture that a thread keeps in a second-level cache of 2 MiB while all
/// weights pass over it.
const SHEET_LEN: usize = 192 << 10;

/// Floats of the weights that stay there while such a part passes over them.
const PANELS_LEN: usize = 192 << 10;

/// Whether the functions of this module can compute a convolution, and faster than the others:
/// zeros between the images must not be more than three quarters of the picture.
pub(super) fn applies(conv: &Conv2d) -> bool {
    let keeps_size = conv.stride == 1
        && (0..2).all(|i| conv.kernel[i] % 2 == 1 && conv.padding[i] == conv.kernel[i] / 2);
    let [margin_h, margin_w] = conv.padding;
    conv.groups == Groups::One
        && keeps_size
        && (conv.h + margin_h) * (conv.w + margin_w) <= 4 * conv.h * conv.w
}

/// See [`Conv2d::forward`].
pub(super) fn forward<X: Element, Y: Element>(
    conv: &Conv2d,
    inputs: Inputs<'_, X>,
    y: &mut [Y],
    amx: Amx,
    cpu: Cpu,
) {
    let convolution = Convolution {
        picture: Picture::of(conv),
        x: inputs.x,
        weights: Weights::new(conv, inputs.weight, Direction::Forward),
        bias: Some(inputs.bias),
        residual: inputs.residual,
        amx,
        cpu,
    };
    convolution.run(convolution.pass(), y);
}

/// See [`Conv2d::backward_input`].
pub(super) fn backward_input<X: Element, Y: Element>(
    conv: &Conv2d,
    d_y: &[Y],
    weight: &[f32],
    d_x: &mut [X],
    amx: Amx,
    cpu: Cpu,
) {
    let convolution = Convolution {
        picture: Picture::of(conv),
        x: d_y,
        weights: Weights::new(conv, weight, Direction::Turned),
        bias: None,
        residual: None,
        amx,
        cpu,
    };
    convolution.run(convolution.pass(), d_x);
}

/// See [`Conv2d::backward_weight`].
pub(super) fn backward_weight<X: Element, Y: Element>(
    conv: &Conv2d,
    (x, d_y): (&[X], &[Y]),
    [d_weight, d_bias]: [&mut [f32]; 2],
    amx: Amx,
    cpu: Cpu,
) {
    if d_y.is_empty() || d_weight.is_empty() {
        return X::with_f32(x, cpu, |x| {
            Y::with_f32(d_y, cpu, |d_y| {
                conv.gemm_backward_weight(x, d_y, d_weight, d_bias, cpu);
            });
        });
    }
    let gradient = WeightGradient::new(conv, (x, d_y), amx, cpu);
    gradient.run(gradient.pass(), d_weight, d_bias);
}

/// What stays in a thread's cache while the other part of the data passes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Pass over rows of the picture.
    ByRows,
    /// Pass over channels of weights.
    ByChannels,
}

/// A convolution of a picture.
struct Convolution<'a, X> {
    picture: Picture,
    /// `[N, H, W, depth]`.
    x: &'a [X],
    weights: Weights<'a>,
    bias: Option<&'a [f32]>,
    /// `[N, H, W, cols]`.
    residual: Option<&'a [f32]>,
    amx: Amx,
    cpu: Cpu,
}

impl<X: Element> Convolution<'_, X> {
    /// By channels if the weights are larger than the picture. No bit of a result depends on it.
    fn pass(&self) -> Pass {
        let weights = self.picture.n_taps() * self.weights.cols;
        if self.picture.n_positions() < weights {
            Pass::ByChannels
        } else {
            Pass::ByRows
        }
    }

    fn run<Y: Element>(&self, pass: Pass, y: &mut [Y]) {
        if y.is_empty() {
            return;
        }
        let steps = self.steps();
        let y = Shared::new(y);
        match pass {
            Pass::ByRows => self.by_rows(&steps, &y),
            Pass::ByChannels => self.by_panels(&steps, &y),
        }
    }

    /// Where the pixels of each tap and [`STEP`] channels are, from an output's position in a sheet.
    fn steps(&self) -> Steps {
        let (picture, pixel) = (self.picture, self.sheet(0..0).pixel_bytes());
        let chunks = self.weights.depth.div_ceil(STEP);
        Steps::new((0..picture.n_taps()).flat_map(move |tap| {
            let tap = picture.shift(tap) * pixel;
            (0..chunks).map(move |chunk| tap + chunk * STEP / 2 * size_of::<f32>())
        }))
    }

    /// A sheet of some rows, not yet filled.
    fn sheet(&self, rows: Range<usize>) -> Sheet {
        Sheet::new(self.picture, rows, self.weights.depth)
    }

    /// Packs all weights, then passes over the picture.
    fn by_rows<Y: Element>(&self, steps: &Steps, y: &Shared<'_, Y>) {
        let (n_panels, panel_len) = (self.weights.n_panels(), self.weights.panel_len());
        let mut weights = Scratch::new(n_panels * panel_len);
        let shared = Shared::new(&mut weights);
        self.cpu.threads.for_each(n_panels, |panel| {
            // SAFETY: panels are disjoint.
            let into = unsafe { shared.tile(panel * panel_len, panel_len) };
            self.weights.pack(panel, into, self.amx);
        });
        let (n_rows, block_rows) = (self.picture.n_rows(), self.block_rows());
        self.cpu
            .threads
            .for_each(n_rows.div_ceil(block_rows), |block| {
                let rows = block * block_rows..n_rows.min((block + 1) * block_rows);
                let sheet = self.sheet(rows);
                let mut pairs = Scratch::new(sheet.len());
                sheet.fill(
                    self.x,
                    &Shared::new(&mut pairs),
                    0..sheet.n_rows(),
                    self.amx,
                );
                let registers = self.amx.registers();
                // All blocks of the sheet meet some panels while those are in the cache.
                let at_a_time = (PANELS_LEN / panel_len.max(1)).max(1);
                for first in (0..n_panels).step_by(at_a_time) {
                    let panels = first..n_panels.min(first + at_a_time);
                    let weights = &weights[first * panel_len..panels.end * panel_len];
                    self.multiply(&registers, (&sheet, &pairs), steps, (panels, weights), y);
                }
            });
    }

    /// For few pixels and many weights: packs the picture, then passes over panels of weights, each
    /// packed when it is used.
    fn by_panels<Y: Element>(&self, steps: &Steps, y: &Shared<'_, Y>) {
        let sheet = self.sheet(0..self.picture.n_rows());
        let mut pairs = Scratch::new(sheet.len());
        let shared = Shared::new(&mut pairs);
        self.cpu.threads.for_each(sheet.n_rows(), |row| {
            sheet.fill(self.x, &shared, row..row + 1, self.amx);
        });
        let pairs = &pairs[..];
        let panel_len = self.weights.panel_len();
        self.cpu.threads.for_each(self.weights.n_panels(), |panel| {
            let mut weights = Scratch::new(panel_len);
            self.weights.pack(panel, &mut weights, self.amx);
            let registers = self.amx.registers();
            let panels = (panel..panel + 1, &weights[..]);
            self.multiply(&registers, (&sheet, pairs), steps, panels, y);
        });
    }

    /// Rows of a block: as many as the cache holds, in blocks of like size for all threads.
    fn block_rows(&self) -> usize {
        let n_rows = self.picture.n_rows();
        let row_len = self.sheet(0..1).row_len();
        let most = (SHEET_LEN / row_len.max(1)).max(1);
        let rounds = n_rows.div_ceil(most * self.cpu.threads.count());
        n_rows
            .div_ceil((rounds * self.cpu.threads.count()).max(1))
            .max(1)
    }

    /// All outputs of a sheet in the columns of some panels.
    fn multiply<Y: Element>(
        &self,
        registers: &Registers,
        (sheet, pairs): (&Sheet, &[f32]),
        steps: &Steps,
        (panels, weights): (Range<usize>, &[f32]),
        y: &Shared<'_, Y>,
    ) {
        let (pixel, panel_len) = (sheet.pixel_bytes(), self.weights.panel_len());
        let mut sums = Scratch::new(BLOCK * BLOCK);
        let mut outputs = sheet.outputs();
        for first in (0..sheet.n_outputs()).step_by(BLOCK) {
            let positions: [_; BLOCK] = std::array::from_fn(|_| outputs.next().flatten());
            for panel in panels.clone() {
                let block = Block {
                    a: Side {
                        pairs: &pairs[first * sheet.pixel_len()..],
                        row: pixel,
                        next: BLOCK / 2 * pixel,
                    },
                    a_steps: steps,
                    b: Side {
                        pairs: &weights[(panel - panels.start) * panel_len..][..panel_len],
                        row: 64,
                        next: 1024,
                    },
                    sum: Sum::Set,
                };
                let cols = panel * BLOCK..self.weights.cols.min((panel + 1) * BLOCK);
                self.prefetch(&positions, cols.clone(), y);
                registers.multiply(&block, &mut sums);
                self.store(&sums, &positions, cols, y);
            }
        }
    }

    /// Asks for what [`Self::store`] touches: there is time while a block is multiplied.
    fn prefetch<Y: Element>(
        &self,
        positions: &[Option<usize>; BLOCK],
        cols: Range<usize>,
        y: &Shared<'_, Y>,
    ) {
        for position in positions.iter().flatten() {
            let start = position * self.weights.cols + cols.start;
            for col in (0..cols.len()).step_by(line::<Y>()) {
                prefetch_to_write(y.pointer(start + col, 1));
            }
            if let Some(residual) = self.residual {
                for col in (0..cols.len()).step_by(line::<f32>()) {
                    prefetch_line(&raw const residual[start + col]);
                }
            }
        }
    }

    /// Adds bias and residual to sums, and writes those of pixels.
    fn store<Y: Element>(
        &self,
        sums: &[f32],
        positions: &[Option<usize>; BLOCK],
        cols: Range<usize>,
        y: &Shared<'_, Y>,
    ) {
        let bias = self.bias.map(|bias| &bias[cols.clone()]);
        self.cpu.isa.vectorize(
            #[inline(always)]
            |_| {
                for (sums, position) in sums.chunks_exact(BLOCK).zip(positions) {
                    let Some(position) = position else { continue };
                    let start = position * self.weights.cols + cols.start;
                    // SAFETY: rows of sheets and panels are disjoint.
                    let y = unsafe { y.tile(start, cols.len()) };
                    let residual = self
                        .residual
                        .map(|residual| &residual[start..][..cols.len()]);
                    if let Ok(y) = <&mut [Y; BLOCK]>::try_from(&mut *y) {
                        write_row(y, sums, bias, residual);
                    } else {
                        write_row(y, sums, bias, residual);
                    }
                }
            },
        );
    }
}

/// `y = (sums + bias) + residual`.
#[inline(always)]
fn write_row<Y: Element>(
    y: &mut [Y],
    sums: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
) {
    match (bias, residual) {
        (None, None) => {
            for (y, sum) in y.iter_mut().zip(sums) {
                *y = Y::round(*sum);
            }
        }
        (Some(bias), None) => {
            for ((y, sum), bias) in y.iter_mut().zip(sums).zip(bias) {
                *y = Y::round(sum + bias);
            }
        }
        (bias, Some(residual)) => {
            for (i, ((y, sum), residual)) in y.iter_mut().zip(sums).zip(residual).enumerate() {
                *y = Y::round((sum + bias.map_or(0.0, |bias| bias[i])) + residual);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::bf16;
    use crate::{Isa, Threads, reference};

    fn conv(n: usize, [h, w]: [usize; 2], [c_in, c_out]: [usize; 2], kernel: [usize; 2]) -> Conv2d {
        Conv2d {
            n,
            h,
            w,
            c_in,
            c_out,
            kernel,
            stride: 1,
            padding: kernel.map(|size| size / 2),
            groups: Groups::One,
        }
    }

    /// Whole numbers of 8 bits, which are bf16: sums and products of them are exact.
    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 7919 + i / 7 + seed) % 255) as f32 - 127.0)
            .collect()
    }

    /// Emulated registers, and those of the machine if it has them.
    fn cpus() -> Vec<(Amx, Cpu)> {
        let Some(simd) = pulp::x86::V4::try_new() else {
            return vec![];
        };
        let cpu = Cpu::best(Threads::new(2));
        let all = Amx::for_tests().into_iter().chain(Amx::detect());
        all.map(|amx| {
            (
                amx,
                Cpu {
                    isa: Isa::Amx(simd, amx),
                    ..cpu
                },
            )
        })
        .collect()
    }

    #[test]
    fn it_applies_to_images_that_keep_their_size() {
        let wide = conv(1, [32, 32], [128, 192], [3, 3]);
        for (conv, expected) in [
            (Conv2d::linear(1, 3, 5), true),
            (wide, true),
            (conv(1, [4, 4], [64, 64], [1, 7]), true),
            (conv(1, [2, 2], [64, 64], [7, 7]), false), // more zeros than pixels
            (conv(1, [8, 8], [64, 64], [2, 2]), false),
            (Conv2d { stride: 2, ..wide }, false),
            (
                Conv2d {
                    padding: [0, 0],
                    ..wide
                },
                false,
            ),
        ] {
            assert_eq!(applies(&conv), expected, "{conv:?}");
        }
    }

    #[test]
    fn both_passes_are_exact_on_whole_numbers() {
        for conv in [
            conv(3, [5, 7], [33, 70], [3, 3]),
            conv(2, [3, 4], [5, 40], [5, 1]),
            conv(1, [1, 90], [64, 31], [1, 3]),
            Conv2d::linear(77, 40, 33),
            conv(2, [2, 2], [0, 3], [3, 3]),
        ] {
            let (x, weight) = (numbers(conv.x_len(), 1), numbers(conv.weight_len(), 2));
            let (bias, residual) = (numbers(conv.c_out, 3), numbers(conv.y_len(), 4));
            let inputs = Inputs {
                x: &x,
                weight: &weight,
                bias: &bias,
                residual: Some(&residual),
            };
            let y = reference::conv2d(&conv, &inputs);
            let (d_x, ..) = reference::conv2d_backward(&conv, &x, &weight, &residual);
            for (amx, cpu) in cpus() {
                for pass in [Pass::ByRows, Pass::ByChannels] {
                    let convolution = |direction, x, bias, residual| Convolution {
                        picture: Picture::of(&conv),
                        x,
                        weights: Weights::new(&conv, &weight, direction),
                        bias,
                        residual,
                        amx,
                        cpu,
                    };
                    let mut got = vec![f32::NAN; conv.y_len()];
                    convolution(Direction::Forward, &x, Some(&bias), Some(&residual))
                        .run(pass, &mut got);
                    assert!(
                        got.iter().map(|&y| f64::from(y)).eq(y.iter().copied()),
                        "{conv:?}"
                    );
                    let mut got = vec![f32::NAN; conv.x_len()];
                    convolution(Direction::Turned, &residual, None, None).run(pass, &mut got);
                    assert!(
                        got.iter().map(|&x| f64::from(x)).eq(d_x.iter().copied()),
                        "{conv:?}"
                    );
                }
            }
        }
    }

    /// `y`, `d_x`, and `d_weight` with `d_bias`.
    fn run<X: Element>(conv: &Conv2d, amx: Amx, cpu: Cpu) -> (Vec<X>, Vec<X>, Vec<f32>) {
        let of_type = |numbers: Vec<f32>| -> Vec<X> { numbers.into_iter().map(X::round).collect() };
        let x = of_type(numbers(conv.x_len(), 1));
        let d_y = of_type(numbers(conv.y_len(), 2));
        let (weight, bias) = (numbers(conv.weight_len(), 3), numbers(conv.c_out, 4));
        let inputs = Inputs {
            x: &x,
            weight: &weight,
            bias: &bias,
            residual: None,
        };
        let nothing = |len| vec![X::round(f32::NAN); len];
        let (mut y, mut d_x) = (nothing(d_y.len()), nothing(x.len()));
        forward(conv, inputs, &mut y, amx, cpu);
        backward_input(conv, &d_y, &weight, &mut d_x, amx, cpu);
        let mut sums = vec![f32::NAN; weight.len() + bias.len()];
        let (d_weight, d_bias) = sums.split_at_mut(weight.len());
        backward_weight(conv, (&x, &d_y), [d_weight, d_bias], amx, cpu);
        (y, d_x, sums)
    }

    #[test]
    fn bf16_has_the_bits_of_the_same_numbers_in_f32() {
        for conv in [
            conv(3, [5, 7], [33, 70], [3, 3]),
            conv(2, [3, 4], [5, 40], [5, 1]),
            Conv2d::linear(77, 40, 33),
        ] {
            for (amx, cpu) in cpus() {
                let (y, d_x, sums) = run::<f32>(&conv, amx, cpu);
                let as_halves =
                    |x: Vec<f32>| -> Vec<_> { x.into_iter().map(bf16::from_f32).collect() };
                let expected = (as_halves(y), as_halves(d_x), sums);
                assert_eq!(run::<bf16>(&conv, amx, cpu), expected, "{conv:?}");
            }
        }
    }

    #[test]
    fn both_passes_of_a_weight_gradient_are_exact_on_whole_numbers() {
        for conv in [
            conv(3, [5, 7], [33, 70], [3, 3]),
            conv(1, [9, 4], [5, 40], [5, 1]), // two slabs of one image
            conv(1, [1, 90], [64, 31], [1, 3]), // a single row, and no second slab
            Conv2d::linear(77, 40, 33),
        ] {
            let (x, d_y) = (numbers(conv.x_len(), 1), numbers(conv.y_len(), 2));
            let weight = vec![0.0; conv.weight_len()];
            let (_, d_weight, d_bias) = reference::conv2d_backward(&conv, &x, &weight, &d_y);
            for (amx, cpu) in cpus() {
                for pass in [Pass::ByRows, Pass::ByChannels] {
                    let gradient = WeightGradient::new(&conv, (&x[..], &d_y[..]), amx, cpu);
                    let mut got = vec![f32::NAN; conv.weight_len()];
                    let mut got_bias = vec![f32::NAN; conv.c_out];
                    gradient.run(pass, &mut got, &mut got_bias);
                    let is_same = |got: &[f32], expected: &[f64]| {
                        got.iter()
                            .map(|&x| f64::from(x))
                            .eq(expected.iter().copied())
                    };
                    assert!(is_same(&got, &d_weight), "{conv:?} {pass:?}");
                    assert!(is_same(&got_bias, &d_bias), "{conv:?} {pass:?}");
                }
            }
        }
    }
}
