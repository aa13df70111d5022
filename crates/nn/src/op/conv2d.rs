//! 2-D convolution and, as its 1×1 case, the linear layer.

use candle_core::{D, Tensor};
use p2_kernels::conv2d::{Conv2d as Sizes, Groups, Inputs, JoinedConv2d, JoinedInputs};
use p2_kernels::element::bf16;

use super::{
    Joined, Number, Output, composed, is_bf16, is_f32, is_f32_or_bf16, shape_error, with_slices,
    written,
};
use crate::tape::{Node, Saved};
use crate::{Cpu, Result};

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

/// What happens to a product before it is written.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// It is written in the type that is given.
    To(Output),
    /// A residual is added, shaped like the result; it is written in f32.
    Onto(&'a Node),
}

impl<'a> Epilogue<'a> {
    fn residual(self) -> Option<&'a Node> {
        match self {
            Self::To(_) => None,
            Self::Onto(residual) => Some(residual),
        }
    }

    fn is_bf16(self, cpu: Cpu) -> bool {
        match self {
            Self::To(output) => output.is_bf16(cpu),
            Self::Onto(_) => false,
        }
    }
}

/// `x * weight + bias`, plus the residual if there is one.
///
/// # Shapes
/// - `x`: `[N, H, W, C_in]`, f32 or bf16; with a 1×1 kernel two sources of f32 are read where they are
/// - the residual and what is returned: `[N, H', W', C_out]` with `H' = (H + 2 padding - K) / stride + 1`
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(
    x: impl Into<Joined>,
    filter: Filter<'_>,
    geometry: Geometry,
    epilogue: Epilogue<'_>,
) -> Result<Node> {
    let residual = epilogue.residual();
    let Filter { weight, bias } = filter;
    let x = x.into();
    let (n, h, w, c_in) = x.shape().dims4()?;
    let sizes = sizes([n, h, w, c_in], filter, geometry)?;
    let y_dims = [sizes.n, sizes.out_h(), sizes.out_w(), sizes.c_out];
    if let Some(residual) = residual
        && residual.dims() != y_dims
    {
        let dims = residual.dims();
        return Err(shape_error(format_args!("residual {dims:?} of {sizes:?}")));
    }
    let to_bf16 = epilogue.is_bf16(x.tape().cpu());
    let params_fit = [weight, bias].into_iter().chain(residual).all(is_f32);
    if x.second.is_some()
        && let Some(conv) = sizes.joined(x.first.value().dim(D::Minus1)?)
        && x.iter().all(is_f32)
        && params_fit
        && !to_bf16
    {
        return recorded_joined(&x, filter, conv, y_dims, residual);
    }
    let x = &x.into_node()?;
    if is_f32_or_bf16(x) && params_fit {
        return match (is_bf16(x.value()), to_bf16) {
            (false, false) => recorded::<f32, f32>(x, filter, sizes, residual),
            (false, true) => recorded::<f32, bf16>(x, filter, sizes, residual),
            (true, false) => recorded::<bf16, f32>(x, filter, sizes, residual),
            (true, true) => recorded::<bf16, bf16>(x, filter, sizes, residual),
        };
    }
    match residual {
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

fn sizes(dims: [usize; 4], filter: Filter<'_>, geometry: Geometry) -> Result<Sizes> {
    let [n, h, w, c_in] = dims;
    let (kernel, kernel_w, weight_c_in, c_out) = filter.weight.value().dims4()?;
    let Geometry { stride, padding } = geometry;
    let fits = kernel == kernel_w
        && weight_c_in == c_in
        && filter.bias.dims() == [c_out]
        && h.min(w) + 2 * padding >= kernel
        && kernel > 0
        && stride > 0;
    if !fits {
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

/// `x weight + bias` on the last axis, plus the residual if there is one.
///
/// # Shapes
/// - `x`: `[.., C_in]`
/// - `filter.weight`: `[C_in, C_out]`
/// - the residual and what is returned: `[.., C_out]`
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Node, filter: Filter<'_>, epilogue: Epilogue<'_>) -> Result<Node> {
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
    let residual = match epilogue.residual() {
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
    let epilogue = residual.as_ref().map_or(epilogue, Epilogue::Onto);
    conv2d(&x, filter, geometry, epilogue)?.reshape(shape)
}

/// The kernel on the tape, from type X to type Y.
fn recorded<X: Number, Y: Number>(
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
    let value = x.tape().forward(name, || {
        let params = [weight.value(), bias.value()];
        forward::<X, Y>(x.value(), params, residual.map(Node::value), sizes, cpu)
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
            let d_x = with_slices::<Y, _, _>([d_y.tensor()], |[d_y]| {
                with_slices([&weight], |[weight]| {
                    let shape = (sizes.n, sizes.h, sizes.w, sizes.c_in);
                    written::<X>(shape, |d_x| sizes.backward_input(d_y, weight, d_x, cpu))
                })
            })?;
            sums.add(slots[0], d_x)?;
        }
        if let Some(saved) = saved {
            let x = saved.get()?;
            let mut d_bias = vec![0.0; sizes.c_out];
            let d_weight = with_slices::<X, _, _>([&x], |[x]| {
                with_slices::<Y, _, _>([d_y.tensor()], |[d_y]| {
                    written(weight.shape(), |d_weight| {
                        sizes.backward_weight(x, d_y, d_weight, &mut d_bias, cpu);
                    })
                })
            })?;
            sums.add(slots[1], d_weight)?;
            sums.add(slots[2], Tensor::from_vec(d_bias, sizes.c_out, x.device())?)?;
        }
        sums.pass(residual, d_y)
    });
    Ok(node)
}

fn forward<X: Number, Y: Number>(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    residual: Option<&Tensor>,
    sizes: Sizes,
    cpu: Cpu,
) -> Result<Tensor> {
    let y_shape = (sizes.n, sizes.out_h(), sizes.out_w(), sizes.c_out);
    let added = residual.unwrap_or(bias); // read as a residual only if there is one
    with_slices::<X, _, _>([x], |[x]| {
        with_slices([weight, bias, added], |[weight, bias, added]| {
            let inputs = Inputs {
                x,
                weight,
                bias,
                residual: residual.map(|_| added),
            };
            written::<Y>(y_shape, |y| sizes.forward(inputs, y, cpu))
        })
    })
}

/// The kernel of two sources on the tape.
fn recorded_joined(
    x: &Joined,
    Filter { weight, bias }: Filter<'_>,
    conv: JoinedConv2d,
    y_dims: [usize; 4],
    residual: Option<&Node>,
) -> Result<Node> {
    let name = "linear and 1x1";
    let cpu = x.tape().cpu();
    let added = residual.unwrap_or(bias).value(); // read as a residual only if there is one
    let value = x.tape().forward(name, || {
        let params = [weight.value(), bias.value(), added];
        x.values().with_slices(|x| {
            with_slices(params, |[weight, bias, added]| {
                let inputs = JoinedInputs {
                    x,
                    weight,
                    bias,
                    residual: residual.map(|_| added),
                };
                written(&y_dims, |y| conv.forward(inputs, y, cpu))
            })
        })
    })?;
    let inputs: Vec<_> = x.iter().chain([weight, bias]).chain(residual).collect();
    let (x_slots, slots) = (x.map(Node::slot), [weight, bias].map(Node::slot));
    let residual = residual.and_then(Node::slot);
    let learns = slots.iter().any(Option::is_some);
    let saved = learns.then(|| x.map(Node::save));
    let x_shapes = x.values().shapes();
    let (weight, bias) = (weight.value().clone(), bias.value().clone());
    let node = x.tape().record(name, &inputs, value, move |d_y, sums| {
        if x_slots.iter().any(Option::is_some) {
            let d_x = with_slices([&weight, d_y.tensor()], |[weight, d_y]| {
                x_shapes.written(|d_x| conv.backward_input(d_y, weight, d_x, cpu))
            })?;
            for (slot, d_x) in x_slots.into_iter().zip(d_x) {
                sums.add(slot, d_x)?;
            }
        }
        if let Some(saved) = saved {
            let x = saved.try_map(Saved::get)?;
            let mut d_bias = vec![0.0; bias.elem_count()];
            let d_weight = x.with_slices(|x| {
                with_slices([d_y.tensor()], |[d_y]| {
                    written(weight.shape(), |d_weight| {
                        conv.backward_weight(x, d_y, d_weight, &mut d_bias, cpu);
                    })
                })
            })?;
            sums.add(slots[0], d_weight)?;
            sums.add(
                slots[1],
                Tensor::from_vec(d_bias, bias.shape(), bias.device())?,
            )?;
        }
        sums.pass(residual, d_y)
    });
    Ok(node)
}
