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
    let mut y = vec![0.0; inputs.x.map(<[f32]>::len).iter().sum()];
    for_each_group(norm, inputs.x, |group| {
        for element in &group.elements {
            let u = element.u(inputs);
            y[element.idx] = match norm.activation {
                Activation::Identity => u,
                Activation::Silu => u / (1.0 + (-u).exp()),
            };
        }
    });
    y
}

/// The gradients of a group norm with respect to input, scale and shift; that of the input is
/// `[N, H*W, C]`, of both sources.
pub fn group_norm_backward(
    norm: &GroupNorm,
    inputs: &group_norm::Inputs<'_>,
    d_y: &[f32],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let mut d_x = vec![0.0; d_y.len()];
    let mut d_scale = vec![0.0; inputs.scale.len()];
    let mut d_shift = vec![0.0; inputs.shift.len()];
    for_each_group(norm, inputs.x, |group| {
        let mut d_x_hats = vec![];
        for element in &group.elements {
            let u = element.u(inputs);
            let slope = match norm.activation {
                Activation::Identity => 1.0,
                Activation::Silu => {
                    let s = 1.0 / (1.0 + (-u).exp());
                    s + u * s * (1.0 - s)
                }
            };
            let d_u = f64::from(d_y[element.idx]) * slope;
            d_scale[element.channel] += d_u * element.x_hat;
            d_shift[element.channel] += d_u;
            d_x_hats.push(d_u * f64::from(inputs.scale[element.channel]));
        }
        let count = d_x_hats.len() as f64;
        let mean = d_x_hats.iter().sum::<f64>() / count;
        let pairs = group.elements.iter().zip(&d_x_hats);
        let along = pairs
            .clone()
            .map(|(element, d)| element.x_hat * d)
            .sum::<f64>()
            / count;
        for (element, d) in pairs {
            d_x[element.idx] = group.rstd * (d - mean - element.x_hat * along);
        }
    });
    (d_x, d_scale, d_shift)
}

/// What is normalized together.
struct Group {
    rstd: f64,
    elements: Vec<Element>,
}

/// One number of a group, and where it and its channel's scale and shift stand.
struct Element {
    idx: usize,
    channel: usize,
    x_hat: f64,
}

impl Element {
    /// What goes into the activation.
    fn u(&self, inputs: &group_norm::Inputs<'_>) -> f64 {
        f64::from(inputs.scale[self.channel]) * self.x_hat + f64::from(inputs.shift[self.channel])
    }
}

/// Calls `f` with each group of each image; elements are counted in the image of all channels.
fn for_each_group(norm: &GroupNorm, [first, second]: [&[f32]; 2], mut f: impl FnMut(Group)) {
    let [c_first, c_second] = norm.channels;
    let n_channels = c_first + c_second;
    let per_group = n_channels / norm.n_groups;
    for (image, group) in pairs(norm.n, norm.n_groups) {
        let mut elements: Vec<_> = pairs(norm.n_positions, per_group)
            .map(|(position, i)| {
                let c = group * per_group + i;
                let row = image * norm.n_positions + position;
                let x = match c.checked_sub(c_first) {
                    None => first[row * c_first + c],
                    Some(c) => second[row * c_second + c],
                };
                Element {
                    idx: row * n_channels + c,
                    channel: image * n_channels + c,
                    x_hat: f64::from(x),
                }
            })
            .collect();
        let count = elements.len() as f64;
        let mean = elements.iter().map(|element| element.x_hat).sum::<f64>() / count;
        for element in &mut elements {
            element.x_hat -= mean;
        }
        let variance = elements
            .iter()
            .map(|element| element.x_hat.powi(2))
            .sum::<f64>()
            / count;
        let rstd = 1.0 / (variance + 1e-5).sqrt();
        for element in &mut elements {
            element.x_hat *= rstd;
        }
        f(Group { rstd, elements });
    }
}

/// See [`Attention::forward`].
pub fn attention(attention: &Attention, qkv: &[f32]) -> Vec<f64> {
    let (t, d) = (attention.n_positions, attention.head_channels);
    let mut y = vec![0.0; attention.n * t * attention.channels()];
    for (image, head) in pairs(attention.n, attention.n_heads) {
        let of = Head::new(attention, image, head);
        for query in 0..t {
            for (key, p) in of.probabilities(qkv, query).iter().enumerate() {
                for i in 0..d {
                    y[of.y_idx(query, i)] += p * f64::from(qkv[of.idx(2, key, i)]);
                }
            }
        }
    }
    y
}

/// The gradient of an attention with respect to queries, keys and values.
pub fn attention_backward(attention: &Attention, qkv: &[f32], d_y: &[f32]) -> Vec<f64> {
    let (t, d) = (attention.n_positions, attention.head_channels);
    let mut d_qkv = vec![0.0; qkv.len()];
    for (image, head) in pairs(attention.n, attention.n_heads) {
        let of = Head::new(attention, image, head);
        let at = |kind, position, i| f64::from(qkv[of.idx(kind, position, i)]);
        for query in 0..t {
            let p = of.probabilities(qkv, query);
            let d_y = |i| f64::from(d_y[of.y_idx(query, i)]);
            let d_p: Vec<f64> = (0..t)
                .map(|key| (0..d).map(|i| d_y(i) * at(2, key, i)).sum())
                .collect();
            let mean: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
            for key in 0..t {
                let d_score = p[key] * (d_p[key] - mean) / (d as f64).sqrt();
                for i in 0..d {
                    d_qkv[of.idx(0, query, i)] += d_score * at(1, key, i);
                    d_qkv[of.idx(1, key, i)] += d_score * at(0, query, i);
                    d_qkv[of.idx(2, key, i)] += p[key] * d_y(i);
                }
            }
        }
    }
    d_qkv
}

/// One head of one image: where its numbers stand.
struct Head<'a> {
    attention: &'a Attention,
    image: usize,
    head: usize,
}

impl<'a> Head<'a> {
    fn new(attention: &'a Attention, image: usize, head: usize) -> Self {
        Self {
            attention,
            image,
            head,
        }
    }

    /// Where channel `i` of a query (0), key (1) or value (2) stands.
    fn idx(&self, kind: usize, position: usize, i: usize) -> usize {
        let (d, c) = (self.attention.head_channels, self.attention.channels());
        let channel = match self.attention.order {
            Order::HeadMajor => (self.head * 3 + kind) * d + i,
            Order::KindMajor => kind * c + self.head * d + i,
        };
        (self.image * self.attention.n_positions + position) * 3 * c + channel
    }

    /// Where channel `i` of an output stands.
    fn y_idx(&self, position: usize, i: usize) -> usize {
        let (d, c) = (self.attention.head_channels, self.attention.channels());
        (self.image * self.attention.n_positions + position) * c + self.head * d + i
    }

    /// How much the query sees of each key.
    fn probabilities(&self, qkv: &[f32], query: usize) -> Vec<f64> {
        let d = self.attention.head_channels;
        let at = |kind, position, i| f64::from(qkv[self.idx(kind, position, i)]);
        let scores: Vec<f64> = (0..self.attention.n_positions)
            .map(|key| {
                let dot: f64 = (0..d).map(|i| at(0, query, i) * at(1, key, i)).sum();
                dot / (d as f64).sqrt()
            })
            .collect();
        let max = scores.iter().fold(f64::NEG_INFINITY, |max, &s| max.max(s));
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        scores.iter().map(|s| (s - max).exp() / sum).collect()
    }
}
