//! 3×3 convolutions of stride 1 by Winograd's algorithm: a quarter of the multiplications.
//!
//! Tiles of 4×4 outputs come from 36 products per pair of channels instead of 144 (F(4×4, 3×3) of
//! Lavin and Gray 2015, arXiv 1509.09308). In the forward pass and the gradient of the input, sums
//! over channels are chains of multiply-adds in the order of the channels, and transforms are those
//! of one tile and channel alone: neither batch nor blocks nor threads change a bit of an output.
//!
//! The price is twice the error: 1.1e-6 instead of 5.9e-7, relative L2, with 128 channels of normal
//! data.

mod convolve;
mod filter;
mod gradient;
mod images;
mod product;
mod tile;
mod transform;

use super::{Conv2d, Groups, Inputs};
use crate::cpu::Cpu;
use convolve::Convolution;
use filter::{Direction, Filter};
use gradient::WeightGradient;
use tile::Tiles;
use transform::OUT;

/// Whether the functions of this module can compute a convolution, and faster than the general
/// ones: 3×3 taps that keep the size of images, which fill at least a third of their tiles.
///
/// With 2×2 images (a quarter) it was slower, with 5×5 (two fifths) faster. The answer does not
/// depend on the number of images, so neither does the result of one of them.
pub fn applies(conv: &Conv2d) -> bool {
    let covered = |side: usize| side.div_ceil(OUT) * OUT;
    fits(conv) && 3 * conv.h * conv.w >= covered(conv.h) * covered(conv.w)
}

/// `y = conv(x, weight) + bias + residual`.
///
/// # Shapes
/// - `y`: `[N, H, W, C_out]`
///
/// # Panics
/// If the filter is not 3×3 with stride 1 and padding 1, or if a slice has another length;
/// likewise the gradients.
pub fn forward(conv: &Conv2d, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) {
    let Inputs {
        x,
        weight,
        bias,
        residual,
    } = inputs;
    check(conv, x.len(), weight.len(), y.len());
    assert_eq!(bias.len(), conv.c_out);
    assert!(residual.is_none_or(|residual| residual.len() == y.len()));
    let convolution = Convolution {
        tiles: tiles(conv),
        x,
        filter: filter(conv, weight, Direction::Forward),
        bias: Some(bias),
        residual,
    };
    convolution.run(convolution.pass(), y, cpu);
}

/// `d_x`: the gradient with respect to the input, given that of the output.
pub fn backward_input(conv: &Conv2d, d_y: &[f32], weight: &[f32], d_x: &mut [f32], cpu: Cpu) {
    check(conv, d_x.len(), weight.len(), d_y.len());
    let convolution = Convolution {
        tiles: tiles(conv),
        x: d_y,
        filter: filter(conv, weight, Direction::Turned),
        bias: None,
        residual: None,
    };
    convolution.run(convolution.pass(), d_x, cpu);
}

/// `d_weight` and `d_bias`: the gradients with respect to weights and bias.
///
/// The sums over tiles are cut by the sizes alone and added in a fixed order.
pub fn backward_weight(
    conv: &Conv2d,
    x: &[f32],
    d_y: &[f32],
    d_weight: &mut [f32],
    d_bias: &mut [f32],
    cpu: Cpu,
) {
    check(conv, x.len(), d_weight.len(), d_y.len());
    assert_eq!(d_bias.len(), conv.c_out);
    if d_y.is_empty() || d_weight.is_empty() {
        return conv.gemm_backward_weight(x, d_y, d_weight, d_bias, cpu);
    }
    let gradient = WeightGradient {
        tiles: tiles(conv),
        x,
        c_in: conv.c_in,
        d_y,
        c_out: conv.c_out,
    };
    match gradient_pass(gradient.tiles.count()) {
        Pass::ByTiles => gradient.by_tiles(d_weight, d_bias, cpu),
        Pass::ByChannels => gradient.by_blocks(d_weight, d_bias, cpu),
    }
}

/// What stays in a thread's cache while the other part of the data passes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Pass over tiles of images.
    ByTiles,
    /// Pass over channels of weights.
    ByChannels,
}

/// By channels if transformed weights are larger than transformed images: they crossed there with
/// 128 tiles of 256 channels, and at 8 tiles of 512 the pass by tiles had half the speed.
fn convolution_pass(n_tiles: usize, [depth, cols]: [usize; 2]) -> Pass {
    if n_tiles * (depth + cols) <= depth * cols {
        Pass::ByChannels
    } else {
        Pass::ByTiles
    }
}

/// By tiles if there are enough to transform them again for each block of channels: that was slower
/// at 32 tiles of 512 channels, an eighth faster at 128 of 256, and by half at 128 and 512 of 128.
fn gradient_pass(n_tiles: usize) -> Pass {
    if n_tiles >= 128 {
        Pass::ByTiles
    } else {
        Pass::ByChannels
    }
}

impl Convolution<'_> {
    fn pass(&self) -> Pass {
        let channels = [self.filter.depth(), self.filter.cols()];
        convolution_pass(self.tiles.count(), channels)
    }

    fn run(&self, pass: Pass, y: &mut [f32], cpu: Cpu) {
        if y.is_empty() {
            return;
        }
        match pass {
            Pass::ByTiles => self.by_tiles(y, cpu),
            Pass::ByChannels => self.by_panels(y, cpu),
        }
    }
}

fn tiles(conv: &Conv2d) -> Tiles {
    Tiles::new([conv.n, conv.h, conv.w])
}

fn filter<'a>(conv: &Conv2d, weight: &'a [f32], direction: Direction) -> Filter<'a> {
    Filter {
        weight,
        c_in: conv.c_in,
        c_out: conv.c_out,
        direction,
    }
}

fn fits(conv: &Conv2d) -> bool {
    let shape = (conv.kernel, conv.stride, conv.padding, conv.groups);
    shape == ([3, 3], 1, [1, 1], Groups::One)
}

/// Whether the lengths are those of the sizes: what the pointers rely on.
fn check(conv: &Conv2d, x_len: usize, weight_len: usize, y_len: usize) {
    conv.check();
    assert!(fits(conv), "{conv:?}");
    assert_eq!(
        (x_len, weight_len, y_len),
        (conv.x_len(), conv.weight_len(), conv.y_len())
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use crate::{Isa, Threads};

    fn numbers(len: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + i / 7) % 2003) as f32 / 1000.0 - 1.0;
        (0..len).map(number).collect()
    }

    fn conv(size: [usize; 2], kernel: usize) -> Conv2d {
        let [h, w] = size;
        let padding = kernel / 2;
        let [n, c_in, c_out, stride] = [2, 70, 50, 1];
        Conv2d {
            n,
            h,
            w,
            c_in,
            c_out,
            kernel: [kernel; 2],
            stride,
            padding: [padding; 2],
            groups: Groups::One,
        }
    }

    #[test]
    fn it_applies_to_3x3_filters_of_images_that_fill_their_tiles() {
        for (size, kernel, expected) in [
            ([32, 32], 3, true),
            ([4, 4], 3, true),
            ([3, 3], 3, true),
            ([5, 5], 3, true),
            ([2, 4], 3, true),
            ([2, 2], 3, false),
            ([1, 4], 3, false),
            ([1, 1], 3, false),
            ([32, 32], 1, false),
            ([32, 32], 5, false),
        ] {
            assert_eq!(applies(&conv(size, kernel)), expected, "{size:?} {kernel}");
        }
        let conv = conv([32, 32], 3);
        assert!(!applies(&Conv2d { stride: 2, ..conv }));
        assert!(!applies(&Conv2d {
            padding: [0, 0],
            ..conv
        }));
    }

    #[test]
    fn passes_depend_on_tiles_and_channels() {
        for (n_tiles, channels, expected) in [
            (2048, [64, 64], Pass::ByTiles),
            (128, [128, 128], Pass::ByTiles),
            (32, [128, 128], Pass::ByChannels),
            (32, [256, 256], Pass::ByChannels),
            (128, [256, 256], Pass::ByChannels),
            (288, [256, 256], Pass::ByTiles),
            (8, [1024, 512], Pass::ByChannels),
        ] {
            assert_eq!(convolution_pass(n_tiles, channels), expected);
        }
        for (n_tiles, expected) in [
            (2048, Pass::ByTiles),
            (128, Pass::ByTiles),
            (32, Pass::ByChannels),
        ] {
            assert_eq!(gradient_pass(n_tiles), expected);
        }
    }

    #[test]
    fn both_passes_of_a_convolution_give_the_same_bits() {
        let conv = conv([6, 9], 3);
        let (x, weight) = (numbers(conv.x_len()), numbers(conv.weight_len()));
        let (bias, residual) = (numbers(conv.c_out), numbers(conv.y_len()));
        for isa in Isa::available() {
            let cpu = Cpu {
                isa,
                ..Cpu::best(Threads::new(2))
            };
            for direction in [Direction::Forward, Direction::Turned] {
                let is_forward = direction == Direction::Forward;
                let convolution = Convolution {
                    tiles: tiles(&conv),
                    x: if is_forward { &x } else { &residual },
                    filter: filter(&conv, &weight, direction),
                    bias: is_forward.then_some(&bias),
                    residual: is_forward.then_some(&residual),
                };
                let len = if is_forward {
                    conv.y_len()
                } else {
                    conv.x_len()
                };
                let [tiles, channels] = [Pass::ByTiles, Pass::ByChannels].map(|pass| {
                    let mut y = vec![f32::NAN; len];
                    convolution.run(pass, &mut y, cpu);
                    y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                });
                assert!(tiles == channels, "{direction:?} on {isa:?}");
            }
        }
    }
    #[test]
    fn both_passes_of_a_gradient_agree_and_threads_change_no_bit() {
        let conv = Conv2d {
            n: 4,
            c_in: 130,
            c_out: 100,
            ..conv([22, 23], 3)
        };
        let (x, d_y) = (numbers(conv.x_len()), numbers(conv.y_len()));
        let gradient = WeightGradient {
            tiles: tiles(&conv),
            x: &x,
            c_in: conv.c_in,
            d_y: &d_y,
            c_out: conv.c_out,
        };
        assert_eq!(gradient_pass(gradient.tiles.count()), Pass::ByTiles);
        let cpu = Cpu::best(Threads::new(1));
        let run = |pass, n_threads| {
            let threads = Threads::new(n_threads);
            let cpu = Cpu { threads, ..cpu };
            let mut sums = vec![f32::NAN; conv.weight_len() + conv.c_out];
            let (d_weight, d_bias) = sums.split_at_mut(conv.weight_len());
            match pass {
                Pass::ByTiles => gradient.by_tiles(d_weight, d_bias, cpu),
                Pass::ByChannels => gradient.by_blocks(d_weight, d_bias, cpu),
            }
            sums
        };
        let bits = |sums: &[f32]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
        let [tiles, channels] = [Pass::ByTiles, Pass::ByChannels].map(|pass| {
            let one = run(pass, 1);
            for n_threads in [2, 3, 8] {
                assert!(bits(&one) == bits(&run(pass, n_threads)), "{n_threads}");
            }
            one
        });
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
        };
        let error = norm(&mut tiles.iter().zip(&channels).map(|(a, b)| a - b));
        let relative = error / norm(&mut channels.iter().copied());
        assert!(relative < 2e-6, "{relative}");
    }

    #[test]
    fn gradients_that_are_whole_lines_have_the_bits_of_others() {
        let conv = Conv2d {
            c_in: 20,
            c_out: 48,
            ..conv([9, 10], 3)
        };
        let (x, d_y) = (numbers(conv.x_len()), numbers(conv.y_len()));
        for isa in Isa::available() {
            let cpu = Cpu {
                isa,
                ..Cpu::best(Threads::new(2))
            };
            // Scratch begins at a line: what is one float on is streamed by no instruction set.
            let [lines, others] = [0, 1].map(|start| {
                let mut buffer = Scratch::zeros(start + conv.weight_len());
                let d_weight = &mut buffer[start..];
                backward_weight(&conv, &x, &d_y, d_weight, &mut [0.0; 48], cpu);
                d_weight.iter().map(|d| d.to_bits()).collect::<Vec<_>>()
            });
            assert!(lines == others, "{isa:?}");
            assert!(lines.iter().any(|&bits| bits != 0));
        }
    }
}
