//! 3×3 convolutions of stride 1 by Winograd's algorithm: a quarter of the multiplications.
//!
//! Tiles of 4×4 outputs come from 36 products per pair of channels instead of 144 (F(4×4, 3×3) of
//! Lavin and Gray 2015, arXiv 1509.09308). Sums over channels are chains of multiply-adds in the
//! order of the channels and transforms are those of one tile and channel alone, so neither batch
//! nor blocks nor threads change a bit of an output.

mod convolve;
mod filter;
mod gradient;
mod product;
mod scratch;
mod tile;
mod transform;

use super::Conv2d;
use crate::cpu::Cpu;
use convolve::Convolution;
use filter::{Direction, Filter};
use gradient::WeightGradient;
use tile::Tiles;

/// Whether a convolution is one of 3×3 taps that keeps the size of its images.
fn fits(conv: &Conv2d) -> bool {
    [conv.kernel, conv.stride, conv.padding] == [3, 1, 1]
}

/// What the larger part of the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// Images: pass over blocks of tiles.
    ByTiles,
    /// Weights: pass over panels of channels.
    ByPanels,
}

/// The faster variant for so many tiles and channels.
fn variant(n_tiles: usize, [depth, cols]: [usize; 2]) -> Variant {
    let e = std::env::var("W_V").map_or(2, |x| x.parse().unwrap());
    if e == 1 || e == 2 && n_tiles * (depth + cols) <= depth * cols {
        Variant::ByPanels
    } else {
        Variant::ByTiles
    }
}

/// `y = conv(x, weight) + bias + residual`.
///
/// # Shapes
/// - `x`: `[N, H, W, C_in]`
/// - `weight`: `[3, 3, C_in, C_out]`
/// - `bias`: `[C_out]`
/// - `residual` and `y`: `[N, H, W, C_out]`
///
/// # Panics
/// If the filter is not 3×3 with stride 1 and padding 1, or if a slice has another length;
/// likewise the gradients.
pub fn forward(
    conv: &Conv2d,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    y: &mut [f32],
    cpu: Cpu,
) {
    let variant = variant(tiles(conv).count(), [conv.c_in, conv.c_out]);
    forward_by(variant, conv, [x, weight, bias], residual, y, cpu);
}

fn forward_by(
    variant: Variant,
    conv: &Conv2d,
    [x, weight, bias]: [&[f32]; 3],
    residual: Option<&[f32]>,
    y: &mut [f32],
    cpu: Cpu,
) {
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
    convolution.run(variant, y, cpu);
}

/// `d_x`: the gradient with respect to the input, given that of the output.
pub fn backward_input(conv: &Conv2d, d_y: &[f32], weight: &[f32], d_x: &mut [f32], cpu: Cpu) {
    let variant = variant(tiles(conv).count(), [conv.c_out, conv.c_in]);
    backward_input_by(variant, conv, [d_y, weight], d_x, cpu);
}

fn backward_input_by(
    variant: Variant,
    conv: &Conv2d,
    [d_y, weight]: [&[f32]; 2],
    d_x: &mut [f32],
    cpu: Cpu,
) {
    check(conv, d_x.len(), weight.len(), d_y.len());
    let convolution = Convolution {
        tiles: tiles(conv),
        x: d_y,
        filter: filter(conv, weight, Direction::Turned),
        bias: None,
        residual: None,
    };
    convolution.run(variant, d_x, cpu);
}

impl Convolution<'_> {
    fn run(&self, variant: Variant, y: &mut [f32], cpu: Cpu) {
        if y.is_empty() {
            return;
        }
        match variant {
            Variant::ByTiles => self.by_tiles(y, cpu),
            Variant::ByPanels => self.by_panels(y, cpu),
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

fn check(conv: &Conv2d, x_len: usize, weight_len: usize, y_len: usize) {
    conv.check();
    assert!(fits(conv), "{conv:?}");
    assert_eq!(
        (x_len, weight_len, y_len),
        (conv.x_len(), conv.weight_len(), conv.y_len())
    );
}

/// `d_weight` and `d_bias`: the gradients with respect to weights and bias.
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
    let gradient = WeightGradient {
        tiles: tiles(conv),
        x,
        c_in: conv.c_in,
        d_y,
        c_out: conv.c_out,
    };
    if d_y.is_empty() || d_weight.is_empty() {
        d_weight.fill(0.0);
        conv.backward_bias(d_y, d_bias, cpu);
    } else if std::env::var_os("W_DEEP").map_or(conv.c_in * conv.c_out > 1 << 13, |x| x == "1") {
        gradient.by_blocks(d_weight, d_bias, cpu);
    } else {
        gradient.by_tiles(d_weight, d_bias, cpu);
    }
}
