//! Multi-head self-attention over the positions of an image.

use candle_core::{D, Tensor};
use p2_kernels::attention::Attention as Sizes;
pub use p2_kernels::attention::Order;
use p2_kernels::element::bf16;

use super::{Number, Output, composed, is_bf16, is_f32_or_bf16, shape_error, with_slices, written};
use crate::Result;
use crate::tape::Node;

/// How the channels of the input are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Heads.
    pub n_heads: usize,
    /// Layout of queries, keys and values.
    pub order: Order,
    /// In which type the result is written.
    pub output: Output,
}

/// `softmax(q k^T / sqrt(D)) v` per head.
///
/// # Shapes
/// - `qkv`: `[N, T, 3 C]`, f32 or bf16, laid out as `options.order` says; T positions, C = heads times D
/// - returns: `[N, T, C]`, head by head, in the type that [`Output`] says
///
/// # Errors
/// If the channels cannot be divided so.
///
/// # Source
/// Vaswani et al. 2017, arXiv 1706.03762, eq. 1.
pub fn attention(qkv: &Node, options: Options) -> Result<Node> {
    let (n, n_positions, width) = qkv.value().dims3()?;
    let Options {
        n_heads,
        order,
        output,
    } = options;
    if n_heads == 0 || n_positions == 0 || width == 0 || width % (3 * n_heads) != 0 {
        let dims = qkv.dims();
        return Err(shape_error(format_args!(
            "attention of {dims:?} with {n_heads} heads"
        )));
    }
    if !is_f32_or_bf16(qkv) {
        return composed("attention", [qkv], |[qkv]| {
            attention_reference(qkv, options)
        });
    }
    let sizes = Sizes {
        n,
        n_positions,
        n_heads,
        head_channels: width / 3 / n_heads,
        order,
    };
    match (is_bf16(qkv.value()), output.is_bf16(qkv.tape().cpu())) {
        (false, false) => recorded::<f32, f32>(qkv, sizes),
        (false, true) => recorded::<f32, bf16>(qkv, sizes),
        (true, false) => recorded::<bf16, f32>(qkv, sizes),
        (true, true) => recorded::<bf16, bf16>(qkv, sizes),
    }
}

/// [`attention`] in plain candle operations.
///
/// # Errors
/// If the channels cannot be divided so.
pub fn attention_reference(qkv: &Tensor, options: Options) -> candle_core::Result<Tensor> {
    let (n, t, width) = qkv.dims3()?;
    let heads = options.n_heads;
    let d = width / 3 / heads;
    let parts = match options.order {
        Order::HeadMajor => qkv.reshape((n, t, heads, 3, d))?.permute((3, 0, 2, 1, 4))?,
        Order::KindMajor => qkv.reshape((n, t, 3, heads, d))?.permute((2, 0, 3, 1, 4))?,
    }; // [3, N, heads, T, D]
    let part = |i: usize| parts.narrow(0, i, 1)?.squeeze(0)?.contiguous();
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let scores = (q.matmul(&k.t()?.contiguous()?)? * (1.0 / (d as f64).sqrt()))?; // [N, heads, T, T]
    let scores = scores
        .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
        .exp()?;
    let weights = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
    weights
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((n, t, heads * d)) // [N, T, C]
}

/// The kernel on the tape, from type X to type Y.
fn recorded<X: Number, Y: Number>(qkv: &Node, sizes: Sizes) -> Result<Node> {
    let cpu = qkv.tape().cpu();
    let shape = (sizes.n, sizes.n_positions, sizes.channels());
    let value = qkv.tape().forward("attention", || {
        with_slices::<X, _, _>([qkv.value()], |[qkv]| {
            written::<Y>(shape, |y| sizes.forward(qkv, y, cpu))
        })
    })?;
    let (slot, saved) = (qkv.slot(), qkv.save());
    Ok(qkv
        .tape()
        .record("attention", &[qkv], value, move |d_y, sums| {
            let qkv = saved.get()?;
            let d_qkv = with_slices::<X, _, _>([&qkv], |[qkv_values]| {
                with_slices::<Y, _, _>([d_y.tensor()], |[d_y]| {
                    written(qkv.shape(), |d_qkv| {
                        sizes.backward(qkv_values, d_y, d_qkv, cpu);
                    })
                })
            })?;
            sums.add(slot, d_qkv)
        }))
}
