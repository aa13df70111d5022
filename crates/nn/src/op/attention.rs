//! Multi-head self-attention over the positions of an image.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use p2_kernels::attention::Attention as Sizes;
pub use p2_kernels::attention::Order;

use super::{has_kernel, output, slice, tensor, with_slices};
use crate::Cpu;

/// How the channels of the input are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Heads.
    pub n_heads: usize,
    /// Layout of queries, keys and values.
    pub order: Order,
}

/// `softmax(q k^T / sqrt(D)) v` per head.
///
/// # Shapes
/// - `qkv`: `[N, T, 3 C]`, laid out as `options.order` says; T positions, C = heads times D
/// - returns: `[N, T, C]`, head by head
///
/// # Errors
/// If the channels cannot be divided so.
///
/// # Source
/// Vaswani et al. 2017, arXiv 1706.03762, eq. 1.
pub fn attention(qkv: &Tensor, options: Options, cpu: Cpu) -> Result<Tensor> {
    let (n, n_positions, width) = qkv.dims3()?;
    let Options { n_heads, order } = options;
    if n_heads == 0 || n_positions == 0 || width == 0 || width % (3 * n_heads) != 0 {
        candle_core::bail!("attention of {:?} with {n_heads} heads", qkv.dims());
    }
    if !has_kernel(qkv) {
        return attention_reference(qkv, options);
    }
    let sizes = Sizes {
        n,
        n_positions,
        n_heads,
        head_channels: width / 3 / n_heads,
        order,
    };
    qkv.contiguous()?.apply_op1(Attention { sizes, cpu })
}

/// [`attention`] in plain candle operations.
///
/// # Errors
/// If the channels cannot be divided so.
pub fn attention_reference(qkv: &Tensor, options: Options) -> Result<Tensor> {
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

struct Attention {
    sizes: Sizes,
    cpu: Cpu,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = slice(qkv, layout)?;
        let mut y = vec![0.0; qkv.len() / 3];
        self.sizes.forward(qkv, &mut y, self.cpu);
        Ok(output(
            y,
            (self.sizes.n, self.sizes.n_positions, self.sizes.channels()),
        ))
    }

    fn bwd(&self, qkv: &Tensor, _y: &Tensor, d_y: &Tensor) -> Result<Option<Tensor>> {
        let mut d_qkv = vec![0.0; qkv.elem_count()];
        with_slices([qkv, d_y], |[qkv, d_y]| {
            self.sizes.backward(qkv, d_y, &mut d_qkv, self.cpu);
        })?;
        Ok(Some(tensor(d_qkv, qkv)?))
    }
}
