//! Group normalization with learned scale and shift, the conditioning of AdaGN, and the activation after it.

use std::rc::Rc;

use candle_core::{D, Device, Tensor};
use p2_kernels::element::bf16;
pub use p2_kernels::group_norm::Activation;
use p2_kernels::group_norm::{Gradients, GroupNorm as Sizes, Inputs};

use super::{
    Joined, Number, Output, composed, is_bf16, on_kernels, shape_error, with_slices, written,
};
use crate::tape::{Node, Saved};
use crate::{Cpu, Result};

/// How channels are grouped and what follows the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Groups of channels.
    pub n_groups: usize,
    /// What follows.
    pub activation: Activation,
    /// In which type it is written.
    pub output: Output,
}

/// What a norm multiplies by and adds.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// Per channel, `[C]`.
    pub weight: &'a Node,
    /// Per channel, `[C]`.
    pub bias: &'a Node,
    /// Per image and channel, `[N, 2 C]`, all scales, then all shifts: `x (1 + scale) + shift` follows.
    pub scale_shift: Option<&'a Node>,
}

impl<'a> Affine<'a> {
    /// All that a norm of `x` depends on.
    fn inputs(&self, x: &'a Joined) -> Vec<&'a Node> {
        let params = [self.weight, self.bias].into_iter();
        x.iter().chain(params).chain(self.scale_shift).collect()
    }
}

/// `act((x_hat weight + bias) (1 + scale) + shift)`, `x_hat = (x - mean) / sqrt(variance + 1e-5)`, with
/// the moments of each image's groups.
///
/// # Shapes
/// - `x`: `[N, H, W, C]`; two sources are read where they are, and a group may have channels of both
/// - returns: like `x`, as one, in the type that [`Output`] says
///
/// # Errors
/// If the shapes do not fit.
///
/// # Source
/// Wu and He 2018, arXiv 1803.08494, eq. 7; with the conditioning of Dhariwal and Nichol 2021,
/// arXiv 2105.05233, section 3.1 (AdaGN).
pub fn group_norm(x: impl Into<Joined>, affine: Affine<'_>, options: Options) -> Result<Node> {
    let x = x.into();
    let (n, h, w, c) = x.shape().dims4()?;
    let Affine {
        weight,
        bias,
        scale_shift,
    } = affine;
    let n_groups = options.n_groups;
    let fits = n_groups > 0
        && c > 0
        && c % n_groups == 0
        && weight.dims() == [c]
        && bias.dims() == [c]
        && scale_shift.is_none_or(|node| node.dims() == [n, 2 * c]);
    if !fits {
        let shape = x.shape();
        return Err(shape_error(format_args!(
            "group_norm of {shape:?} in {n_groups} groups with {affine:?}"
        )));
    }
    let op = Norm {
        sizes: Sizes {
            n,
            n_positions: h * w,
            channels: x.values().channels(),
            n_groups,
            activation: options.activation,
        },
        output: options.output,
        cpu: x.tape().cpu(),
    };
    if on_kernels(&affine.inputs(&x)) {
        return op.recorded(&x, affine);
    }
    let x = &x.into_node()?;
    match scale_shift {
        Some(scale_shift) => composed(
            "group norm",
            [x, weight, bias, scale_shift],
            |[x, weight, bias, scale_shift]| {
                group_norm_reference(x, [weight, bias], Some(scale_shift), options)
            },
        ),
        None => composed("group norm", [x, weight, bias], |[x, weight, bias]| {
            group_norm_reference(x, [weight, bias], None, options)
        }),
    }
}

/// [`group_norm`] in plain candle operations.
///
/// # Errors
/// If the shapes do not fit.
pub fn group_norm_reference(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    scale_shift: Option<&Tensor>,
    options: Options,
) -> candle_core::Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let n_groups = options.n_groups;
    let grouped = x.reshape((n, h * w, n_groups, c / n_groups))?;
    let grouped = grouped.permute((0, 2, 1, 3))?.flatten(2, 3)?; // [N, G, H*W*C/G]
    let centered = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let variance = centered.sqr()?.mean_keepdim(D::Minus1)?;
    let x_hat = centered.broadcast_div(&(variance + 1e-5)?.sqrt()?)?;
    let x_hat = x_hat
        .reshape((n, n_groups, h * w, c / n_groups))?
        .permute((0, 2, 1, 3))?;
    let x_hat = x_hat.reshape((n, h, w, c))?; // [N, H, W, C]
    let u = x_hat.broadcast_mul(weight)?.broadcast_add(bias)?;
    let u = match scale_shift {
        None => u,
        Some(scale_shift) => {
            let part = |first| scale_shift.narrow(1, first, c)?.reshape((n, 1, 1, c));
            u.broadcast_mul(&(part(0)? + 1.0)?)?
                .broadcast_add(&part(c)?)?
        }
    };
    match options.activation {
        Activation::Identity => Ok(u),
        Activation::Silu => u.silu(),
    }
}

/// The kernel, which takes one scale and one shift per image and channel.
#[derive(Clone, Copy)]
struct Norm {
    sizes: Sizes,
    output: Output,
    cpu: Cpu,
}

impl Norm {
    fn recorded(self, x: &Joined, affine: Affine<'_>) -> Result<Node> {
        let Affine {
            weight,
            bias,
            scale_shift,
        } = affine;
        let params = Params {
            weight: weight.value().to_vec1()?,
            bias: bias.value().to_vec1()?,
            scale_shift: match scale_shift {
                None => None,
                Some(node) => Some(node.value().flatten_all()?.to_vec1()?),
            },
        };
        let folded = Rc::new(params.fold(self.sizes));
        let (value, moments) = x
            .tape()
            .forward("group norm", || self.forward(&x.values(), &folded))?;
        let inputs = affine.inputs(x);
        let slots = x.map(Node::slot);
        let [weight, bias] = [weight, bias].map(Node::slot);
        let conditioning = scale_shift.and_then(Node::slot);
        let (saved, again) = (x.map(Node::save), x.map(Node::save));
        let folded_too = folded.clone();
        let node = x
            .tape()
            .record("group norm", &inputs, value, move |d_y, sums| {
                let x = saved.try_map(Saved::get)?;
                let (d_x, d_folded) = self.backward(&x, &folded, &moments, d_y.tensor())?;
                let [d_weight, d_bias, d_scale_shift] = params.unfold(self.sizes, &d_folded);
                let (n, c) = (self.sizes.n, d_weight.len());
                let on_cpu = |values: Vec<f32>, shape: &[usize]| {
                    Tensor::from_vec(values, shape, &Device::Cpu)
                };
                for (slot, d_x) in slots.into_iter().zip(d_x) {
                    sums.add(slot, d_x)?;
                }
                sums.add(weight, on_cpu(d_weight, &[c])?)?;
                sums.add(bias, on_cpu(d_bias, &[c])?)?;
                if conditioning.is_some() {
                    sums.add(conditioning, on_cpu(d_scale_shift, &[n, 2 * c])?)?;
                }
                Ok(())
            });
        Ok(node.with_recipe(move || {
            let x = again.try_map(Saved::get)?;
            Ok(self.forward(&x, &folded_too)?.0)
        }))
    }

    fn forward(self, x: &Joined<Tensor>, folded: &Folded) -> Result<(Tensor, Vec<f32>)> {
        if self.output.is_bf16(self.cpu) {
            self.forward_to::<bf16>(x, folded)
        } else {
            self.forward_to::<f32>(x, folded)
        }
    }

    fn forward_to<Y: Number>(
        self,
        x: &Joined<Tensor>,
        folded: &Folded,
    ) -> Result<(Tensor, Vec<f32>)> {
        let mut moments = Vec::new();
        let y = x.with_slices(|x_values| {
            let inputs = folded.inputs(x_values);
            written::<Y>(x.shape(), |y| {
                moments = self.sizes.forward(inputs, y, self.cpu);
            })
        })?;
        Ok((y, moments))
    }

    fn backward(
        self,
        x: &Joined<Tensor>,
        folded: &Folded,
        moments: &[f32],
        d_y: &Tensor,
    ) -> Result<(Joined<Tensor>, Folded)> {
        if is_bf16(d_y) {
            self.backward_from::<bf16>(x, folded, moments, d_y)
        } else {
            self.backward_from::<f32>(x, folded, moments, d_y)
        }
    }

    fn backward_from<Y: Number>(
        self,
        x: &Joined<Tensor>,
        folded: &Folded,
        moments: &[f32],
        d_y: &Tensor,
    ) -> Result<(Joined<Tensor>, Folded)> {
        let mut d_folded = Folded {
            scale: vec![0.0; folded.scale.len()],
            shift: vec![0.0; folded.shift.len()],
        };
        let d_x = with_slices::<Y, _, _>([d_y], |[d_y]| {
            x.with_slices(|x_values| {
                x.shapes().written(|d_x| {
                    let gradients = Gradients {
                        d_x,
                        d_scale: &mut d_folded.scale,
                        d_shift: &mut d_folded.shift,
                    };
                    let inputs = folded.inputs(x_values);
                    self.sizes
                        .backward(inputs, moments, d_y, gradients, self.cpu);
                })
            })
        })?;
        Ok((d_x, d_folded))
    }
}

/// One scale and one shift per image and channel, `[N, C]`.
struct Folded {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Folded {
    fn inputs<'a>(&'a self, x: [&'a [f32]; 2]) -> Inputs<'a> {
        Inputs {
            x,
            scale: &self.scale,
            shift: &self.shift,
        }
    }
}

/// The values of an [`Affine`].
struct Params {
    weight: Vec<f32>,
    bias: Vec<f32>,
    scale_shift: Option<Vec<f32>>,
}

impl Params {
    /// Gain and added shift of an image's channel.
    fn conditioning(&self, image: usize, channel: usize) -> (f32, f32) {
        let c = self.weight.len();
        self.scale_shift.as_ref().map_or((1.0, 0.0), |values| {
            let row = &values[image * 2 * c..][..2 * c];
            (1.0 + row[channel], row[c + channel])
        })
    }

    /// `(x_hat weight + bias) gain + shift` as one scale and one shift.
    fn fold(&self, sizes: Sizes) -> Folded {
        let (mut scale, mut shift) = (vec![], vec![]);
        for image in 0..sizes.n {
            for (channel, (weight, bias)) in self.weight.iter().zip(&self.bias).enumerate() {
                let (gain, added) = self.conditioning(image, channel);
                scale.push(gain * weight);
                shift.push(gain * bias + added);
            }
        }
        Folded { scale, shift }
    }

    /// The gradients of weight, bias and conditioning, given those of scale and shift.
    fn unfold(&self, sizes: Sizes, d_folded: &Folded) -> [Vec<f32>; 3] {
        let c = self.weight.len();
        let (mut d_weight, mut d_bias) = (vec![0.0; c], vec![0.0; c]);
        let mut d_scale_shift = vec![0.0; sizes.n * 2 * c];
        for image in 0..sizes.n {
            for channel in 0..c {
                let (gain, _) = self.conditioning(image, channel);
                let d_scale = d_folded.scale[image * c + channel];
                let d_shift = d_folded.shift[image * c + channel];
                d_weight[channel] += d_scale * gain;
                d_bias[channel] += d_shift * gain;
                let row = &mut d_scale_shift[image * 2 * c..][..2 * c];
                row[channel] = d_scale * self.weight[channel] + d_shift * self.bias[channel];
                row[c + channel] = d_shift;
            }
        }
        [d_weight, d_bias, d_scale_shift]
    }
}
