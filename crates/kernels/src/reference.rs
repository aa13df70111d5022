//! The kernels again, naive and obvious, in f64: what the tests compare with.

use crate::attention::{Attention, Order};
use crate::conv2d::{self, Conv2d, Groups};
use crate::group_norm::{self, Activation, GroupNorm};

/// See [`Conv2d::forward`].
pub fn conv2d(conv: &Conv2d, inputs: &conv2d::Inputs<'_>) -> Vec<f64> {
    let mut y = vec![0.0; conv.y_len()];
    for_each_product(conv, |x_idx, weight_idx, y_idx| {
        y[y_idx] += f64::from(inputs.x[x_idx]) * f64::from(inputs.weight[weight_idx]);
    });
    for (idx, y) in y.iter_mut().enumerate() {
        *y += f64::from(inputs.bias[idx % conv.c_out]);
        *y += inputs
            .residual
            .map_or(0.0, |residual| f64::from(residual[idx]));
    }
    y
}

/// The gradients of a convolution with respect to input, weights and bias.
pub fn conv2d_backward(
    conv: &Conv2d,
    x: &[f32],
    weight: &[f32],
    d_y: &[f32],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut d_x, mut d_weight) = (vec![0.0; conv.x_len()], vec![0.0; conv.weight_len()]);
    let mut d_bias = vec![0.0; conv.c_out];
    for_each_product(conv, |x_idx, weight_idx, y_idx| {
        d_x[x_idx] += f64::from(weight[weight_idx]) * f64::from(d_y[y_idx]);
        d_weight[weight_idx] += f64::from(x[x_idx]) * f64::from(d_y[y_idx]);
    });
    for (idx, d_y) in d_y.iter().enumerate() {
        d_bias[idx % conv.c_out] += f64::from(*d_y);
    }
    (d_x, d_weight, d_bias)
}

/// Calls `f(x_idx, weight_idx, y_idx)` for each product that a convolution sums.
fn for_each_product(conv: &Conv2d, mut f: impl FnMut(usize, usize, usize)) {
    let [kernel_h, kernel_w] = conv.kernel;
    let (out_h, out_w) = (conv.out_h(), conv.out_w());
    let channels = pairs(conv.c_in, conv.c_out).filter_map(|(ci, co)| match conv.groups {
        Groups::One => Some((ci, co, ci * conv.c_out + co)),
        Groups::Depthwise => (ci == co).then_some((ci, co, co)),
    });
    let channels: Vec<_> = channels.collect();
    let per_tap = conv.weight_len() / (kernel_h * kernel_w);
    let input = |o: usize, k: usize, padding: usize, size: usize| {
        let padded = o * conv.stride + k;
        padded.checked_sub(padding).filter(|&i| i < size)
    };
    for (image, (oy, ox)) in (0..conv.n).flat_map(|n| pairs(out_h, out_w).map(move |o| (n, o))) {
        for (ky, kx) in pairs(kernel_h, kernel_w) {
            let iy = input(oy, ky, conv.padding[0], conv.h);
            let ix = input(ox, kx, conv.padding[1], conv.w);
            let (Some(iy), Some(ix)) = (iy, ix) else {
                continue;
            };
            let x = ((image * conv.h + iy) * conv.w + ix) * conv.c_in;
            let weight = (ky * kernel_w + kx) * per_tap;
            let y = ((image * out_h + oy) * out_w + ox) * conv.c_out;
            for &(ci, co, weight_idx) in &channels {
                f(x + ci, weight + weight_idx, y + co);
            }
        }
    }
}

/// All pairs of an index below `rows` and one below `cols`, row by row.
fn pairs(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..cols).map(move |col| (row, col)))
}

/// See [`GroupNorm::forward`].
pub fn group_norm(norm: &GroupNorm, inputs: &group_norm::Inputs<'_>) -> Vec<f64> {
    let per_group = norm.c / norm.n_groups;
    let mut y = vec![0.0; inputs.x.len()];
    for image in 0..norm.n {
        for group in 0..norm.n_groups {
            let indices: Vec<(usize, usize)> = (0..norm.n_positions)
                .flat_map(|p| (group * per_group..(group + 1) * per_group).map(move |c| (p, c)))
                .map(|(p, c)| {
                    (
                        (image * norm.n_positions + p) * norm.c + c,
                        image * norm.c + c,
                    )
                })
                .collect();
            let mean_of = |f: &dyn Fn(f64) -> f64| {
                indices
                    .iter()
                    .map(|&(idx, _)| f(f64::from(inputs.x[idx])))
                    .sum::<f64>()
                    / indices.len() as f64
            };
            let mean = mean_of(&|x| x);
            let variance = mean_of(&|x| (x - mean).powi(2));
            for (idx, channel) in indices {
                let x_hat = (f64::from(inputs.x[idx]) - mean) / (variance + 1e-5).sqrt();
                let u = f64::from(inputs.scale[channel]) * x_hat + f64::from(inputs.shift[channel]);
                y[idx] = match norm.activation {
                    Activation::Identity => u,
                    Activation::Silu => u / (1.0 + (-u).exp()),
                };
            }
        }
    }
    y
}

/// See [`Attention::forward`].
pub fn attention(attention: &Attention, qkv: &[f32]) -> Vec<f64> {
    let Attention {
        n,
        n_positions: t,
        n_heads,
        head_channels: d,
        order,
    } = *attention;
    let c = attention.channels();
    let mut y = vec![0.0; n * t * c];
    for (image, head) in (0..n).flat_map(|n| (0..n_heads).map(move |h| (n, h))) {
        let at = |kind: usize, position: usize, i: usize| {
            let channel = match order {
                Order::HeadMajor => (head * 3 + kind) * d + i,
                Order::KindMajor => kind * c + head * d + i,
            };
            f64::from(qkv[(image * t + position) * 3 * c + channel])
        };
        for query in 0..t {
            let scores: Vec<f64> = (0..t)
                .map(|key| {
                    (0..d).map(|i| at(0, query, i) * at(1, key, i)).sum::<f64>() / (d as f64).sqrt()
                })
                .collect();
            let max = scores.iter().fold(f64::NEG_INFINITY, |max, &s| max.max(s));
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for i in 0..d {
                y[(image * t + query) * c + head * d + i] = scores
                    .iter()
                    .enumerate()
                    .map(|(key, s)| (s - max).exp() / sum * at(2, key, i))
                    .sum();
            }
        }
    }
    y
}
