//! 2-D convolution and, as its 1×1 case, the linear layer.

use std::ops::Range;

use candle_core::{D, Tensor};
use p2_kernels::conv2d::{Conv2d as Sizes, Groups, Inputs};

use super::{Joined, composed, on_kernels, shape_error, with_slices, written};
use crate::Result;
use crate::tape::Node;

/// Distance of output positions and width of the zeros around the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Distance of two output positions in the input.
    pub stride: usize,
    /// Rows and columns of zeros around the input.
    pub padding: usize,
}

/// What a convolution multiplies by and adds.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    /// `[K, K, C_in, C_out]`.
    pub weight: &'a Node,
    /// `[C_out]`.
    pub bias: &'a Node,
}

/// `x * weight + bias`, plus `residual` if there is one.
///
/// # Shapes
/// - `x`: `[N, H, W, C_in]`; with a 1×1 kernel two sources are read where they are
/// - `residual` and what is returned: `[N, H', W', C_out]` with `H' = (H + 2 padding - K) / stride + 1`
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(
    x: impl Into<Joined>,
    filter: Filter<'_>,
    geometry: Geometry,
    residual: Option<&Node>,
) -> Result<Node> {
    let Filter { weight, bias } = filter;
    let x = &match x.into() {
        Joined {
            first,
            second: Some(second),
        } if weight.dims().starts_with(&[1, 1]) => {
            return sum_of_products([&first, &second], filter, geometry, residual);
        }
        x => x.into_node()?,
    };
    let sizes = sizes(x, filter, geometry)?;
    let y_dims = [sizes.n, sizes.out_h(), sizes.out_w(), sizes.c_out];
    if let Some(residual) = residual
        && residual.dims() != y_dims
    {
        let dims = residual.dims();
        return Err(shape_error(format_args!("residual {dims:?} of {sizes:?}")));
    }
    match residual {
        None if on_kernels(&[x, weight, bias]) => recorded(x, filter, sizes, None),
        Some(residual) if on_kernels(&[x, weight, bias, residual]) => {
            recorded(x, filter, sizes, Some(residual))
        }
        None => composed("conv", [x, weight, bias], |[x, weight, bias]| {
            conv2d_reference(x, weight, bias, geometry)
        }),
        Some(residual) => composed(
            "conv",
            [x, weight, bias, residual],
            |[x, weight, bias, residual]| conv2d_reference(x, weight, bias, geometry)? + residual,
        ),
    }
}

/// A 1×1 convolution of two sources: each with its rows of the weights, the second onto the first.
fn sum_of_products(
    [first, second]: [&Node; 2],
    Filter { weight, bias }: Filter<'_>,
    geometry: Geometry,
    residual: Option<&Node>,
) -> Result<Node> {
    let (_, _, c_in, _) = weight.value().dims4()?;
    let c_first = first.value().dim(D::Minus1)?.min(c_in);
    let no_bias = bias.tape().constant(&bias.value().zeros_like()?);
    let own = Filter {
        weight: &input_channels(weight, 0..c_first)?,
        bias,
    };
    let y = conv2d(first, own, geometry, residual)?;
    let own = Filter {
        weight: &input_channels(weight, c_first..c_in)?,
        bias: &no_bias,
    };
    conv2d(second, own, geometry, Some(&y))
}

/// The weights of some input channels of a 1×1 convolution: `[1, 1, C_in, C_out]` to `[1, 1, C, C_out]`.
fn input_channels(weight: &Node, channels: Range<usize>) -> Result<Node> {
    let c_in = weight.value().dim(2)?;
    let value = weight.value().narrow(2, channels.start, channels.len())?;
    let slot = weight.slot();
    Ok(weight
        .tape()
        .record("linear and 1x1", &[weight], value, move |d_y, sums| {
            let after = c_in - channels.end;
            let d_weight = d_y.tensor().pad_with_zeros(2, channels.start, after)?;
            sums.add(slot, d_weight)
        }))
}

fn sizes(x: &Node, filter: Filter<'_>, geometry: Geometry) -> Result<Sizes> {
    let (n, h, w, c_in) = x.value().dims4()?;
    let (kernel, kernel_w, weight_c_in, c_out) = filter.weight.value().dims4()?;
    let Geometry { stride, padding } = geometry;
    let fits = kernel == kernel_w
        && weight_c_in == c_in
        && filter.bias.dims() == [c_out]
        && h.min(w) + 2 * padding >= kernel
        && kernel > 0
        && stride > 0;
    if !fits {
        let dims = x.dims();
        return Err(shape_error(format_args!(
            "conv2d of {dims:?} with {filter:?} and {geometry:?}"
        )));
    }
    Ok(Sizes {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel: [kernel; 2],
        stride,
        padding: [padding; 2],
        groups: Groups::One,
    })
}

/// [`conv2d`] in plain candle operations.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d_reference(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    geometry: Geometry,
) -> candle_core::Result<Tensor> {
    let x = x.permute((0, 3, 1, 2))?.contiguous()?; // [N, C_in, H, W]
    let weight = weight.permute((3, 2, 0, 1))?.contiguous()?; // [C_out, C_in, K, K]
    let y = x.conv2d(&weight, geometry.padding, geometry.stride, 1, 1)?;
    y.permute((0, 2, 3, 1))?.contiguous()?.broadcast_add(bias) // [N, H', W', C_out]
}

/// `x weight + bias` on the last axis, plus `residual` if there is one.
///
/// # Shapes
/// - `x`: `[.., C_in]`
/// - `filter.weight`: `[C_in, C_out]`
/// - `residual` and what is returned: `[.., C_out]`
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Node, filter: Filter<'_>, residual: Option<&Node>) -> Result<Node> {
    let (c_in, c_out) = filter.weight.value().dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.pop() != Some(c_in) {
        let (dims, weight) = (x.dims(), filter.weight.dims());
        return Err(shape_error(format_args!(
            "linear of {dims:?} with weights {weight:?}"
        )));
    }
    let n = shape.iter().product::<usize>();
    shape.push(c_out);
    let residual = match residual {
        Some(residual) if residual.dims() == shape => Some(residual.reshape((n, 1, 1, c_out))?),
        Some(residual) => {
            let dims = residual.dims();
            return Err(shape_error(format_args!(
                "residual {dims:?} of linear to {shape:?}"
            )));
        }
        None => None,
    };
    let filter = Filter {
        weight: &filter.weight.reshape((1, 1, c_in, c_out))?,
        bias: filter.bias,
    };
    let geometry = Geometry {
        stride: 1,
        padding: 0,
    };
    let x = x.reshape((n, 1, 1, c_in))?;
    conv2d(&x, filter, geometry, residual.as_ref())?.reshape(shape)
}

/// The kernel on the tape.
fn recorded(
    x: &Node,
    Filter { weight, bias }: Filter<'_>,
    sizes: Sizes,
    residual: Option<&Node>,
) -> Result<Node> {
    let cpu = x.tape().cpu();
    let name = match sizes.kernel {
        [1, 1] => "linear and 1x1",
        [3, 3] => "conv 3x3",
        _ => "conv",
    };
    let y_shape = (sizes.n, sizes.out_h(), sizes.out_w(), sizes.c_out);
    let added = residual.unwrap_or(bias).value(); // read as a residual only if there is one
    let value = x.tape().forward(name, || {
        let tensors = [x.value(), weight.value(), bias.value(), added];
        with_slices(tensors, |[x, weight, bias, added]| {
            let inputs = Inputs {
                x,
                weight,
                bias,
                residual: residual.map(|_| added),
            };
            written(y_shape, |y| sizes.forward(inputs, y, cpu))
        })
    })?;
    let mut inputs = vec![x, weight, bias];
    inputs.extend(residual);
    let slots = [x, weight, bias].map(Node::slot);
    let residual = residual.and_then(Node::slot);
    // The image itself, and other constants, need no gradient.
    let learns = slots[1].is_some() || slots[2].is_some();
    let saved = learns.then(|| x.save());
    let weight = weight.value().clone();
    let node = x.tape().record(name, &inputs, value, move |d_y, sums| {
        if slots[0].is_some() {
            let d_x = with_slices([&weight, d_y.tensor()], |[weight, d_y]| {
                let shape = (sizes.n, sizes.h, sizes.w, sizes.c_in);
                written(shape, |d_x| sizes.backward_input(d_y, weight, d_x, cpu))
            })?;
            sums.add(slots[0], d_x)?;
        }
        if let Some(saved) = saved {
            let x = saved.get()?;
            let mut d_bias = vec![0.0; sizes.c_out];
            let d_weight = with_slices([&x, d_y.tensor()], |[x, d_y]| {
                written(weight.shape(), |d_weight| {
                    sizes.backward_weight(x, d_y, d_weight, &mut d_bias, cpu);
                })
            })?;
            sums.add(slots[1], d_weight)?;
            sums.add(slots[2], Tensor::from_vec(d_bias, sizes.c_out, x.device())?)?;
        }
        sums.pass(residual, d_y)
    });
    Ok(node)
}
