//! SiLU, sums and joined channels.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Layout, Result, Shape, Tensor};
use p2_kernels::elementwise as kernel;

use super::{has_kernel, output, slice, tensor, with_slices};
use crate::Cpu;

/// `x sigmoid(x)`.
///
/// Candle has it too, but its vectorized part and its tail may round differently, so that a value
/// would depend on its place.
///
/// # Errors
/// If the engine fails.
pub fn silu(x: &Tensor, cpu: Cpu) -> Result<Tensor> {
    if !has_kernel(x) {
        return x.silu();
    }
    x.contiguous()?.apply_op1(Silu { cpu })
}

/// `a + b` of two tensors of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Tensor, b: &Tensor, cpu: Cpu) -> Result<Tensor> {
    if !has_kernel(a) {
        return a.add(b);
    }
    if a.dims() != b.dims() {
        candle_core::bail!("add of {:?} and {:?}", a.dims(), b.dims());
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, Add { cpu })
}

/// Joins the channels of two images: `[.., C_a]` and `[.., C_b]` to `[.., C_a + C_b]`.
///
/// # Errors
/// If the other axes differ.
pub fn concat(a: &Tensor, b: &Tensor, cpu: Cpu) -> Result<Tensor> {
    if !has_kernel(a) {
        return Tensor::cat(&[a, b], D::Minus1);
    }
    let ((rest_a, c_a), (rest_b, c_b)) = (split_last(a), split_last(b));
    if rest_a != rest_b {
        candle_core::bail!("concat of {:?} and {:?}", a.dims(), b.dims());
    }
    a.contiguous()?.apply_op2(
        &b.contiguous()?,
        Concat {
            channels: [c_a, c_b],
            cpu,
        },
    )
}

fn split_last(x: &Tensor) -> (&[usize], usize) {
    x.dims()
        .split_last()
        .map_or((&[], 0), |(last, rest)| (rest, *last))
}

struct Silu {
    cpu: Cpu,
}

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len()];
        kernel::silu(x, &mut y, self.cpu);
        Ok(output(y, layout.shape()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, d_y: &Tensor) -> Result<Option<Tensor>> {
        let mut d_x = vec![0.0; x.elem_count()];
        with_slices([x, d_y], |[x, d_y]| {
            kernel::silu_backward(x, d_y, &mut d_x, self.cpu);
        })?;
        Ok(Some(tensor(d_x, x)?))
    }
}

struct Add {
    cpu: Cpu,
}

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slice(a, a_layout)?, slice(b, b_layout)?);
        let mut y = vec![0.0; a.len()];
        kernel::add(a, b, &mut y, self.cpu);
        Ok(output(y, a_layout.shape()))
    }

    fn bwd(
        &self,
        _a: &Tensor,
        _b: &Tensor,
        _y: &Tensor,
        d_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(d_y.clone()), Some(d_y.clone())))
    }
}

struct Concat {
    channels: [usize; 2],
    cpu: Cpu,
}

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (a, b) = (slice(a, a_layout)?, slice(b, b_layout)?);
        let mut y = vec![0.0; a.len() + b.len()];
        kernel::concat(a, b, self.channels, &mut y, self.cpu);
        let mut shape = a_layout.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.channels[0] + self.channels[1];
        }
        Ok(output(y, shape))
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        d_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [mut d_a, mut d_b] = [a, b].map(|t| vec![0.0; t.elem_count()]);
        with_slices([d_y], |[d_y]| {
            kernel::split(d_y, self.channels, &mut d_a, &mut d_b, self.cpu);
        })?;
        Ok((Some(tensor(d_a, a)?), Some(tensor(d_b, b)?)))
    }
}
