//! The kernels again, naive and obvious, in f64: what the tests compare with.

use crate::attention::{Attention, Order};
use crate::conv2d::Conv2d;
use crate::group_norm::{Activation, GroupNorm, Inputs};

/// See [`Conv2d::forward`].
pub fn conv2d(conv: &Conv2d, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; conv.y_len()];
    for_each_product(conv, |x_idx, weight_idx, y_idx| {
        y[y_idx] += f64::from(x[x_idx]) * f64::from(weight[weight_idx]);
    });
    for (idx, y) in y.iter_mut().enumerate() {
        *y += f64::from(bias[idx % conv.c_out]);
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
    let Conv2d {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel,
        stride,
        padding,
    } = *conv;
    let (out_h, out_w) = (conv.out_h(), conv.out_w());
    let input = |o: usize, k: usize, size: usize| {
        (o * stride + k).checked_sub(padding).filter(|&i| i < size)
    };
    for image in 0..n {
        for (oy, ox) in (0..out_h).flat_map(|oy| (0..out_w).map(move |ox| (oy, ox))) {
            for (ky, kx) in (0..kernel).flat_map(|ky| (0..kernel).map(move |kx| (ky, kx))) {
                let (Some(iy), Some(ix)) = (input(oy, ky, h), input(ox, kx, w)) else {
                    continue;
                };
                for (ci, co) in (0..c_in).flat_map(|ci| (0..c_out).map(move |co| (ci, co))) {
                    f(
                        ((image * h + iy) * w + ix) * c_in + ci,
                        ((ky * kernel + kx) * c_in + ci) * c_out + co,
                        ((image * out_h + oy) * out_w + ox) * c_out + co,
                    );
                }
            }
        }
    }
}

/// See [`GroupNorm::forward`].
pub fn group_norm(norm: &GroupNorm, inputs: &Inputs<'_>) -> Vec<f64> {
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
