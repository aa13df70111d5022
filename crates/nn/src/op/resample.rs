//! 2×2 average pooling and 2× nearest-neighbour upsampling.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use p2_kernels::resample::Resample as Sizes;

use super::{has_kernel, output, slice, tensor, with_slices};
use crate::Cpu;

/// The mean of each 2×2 square: `[N, H, W, C]` to `[N, H/2, W/2, C]`.
///
/// # Errors
/// If H or W is odd.
pub fn avg_pool2(x: &Tensor, cpu: Cpu) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    if h % 2 != 0 || w % 2 != 0 {
        candle_core::bail!("cannot halve the odd size of {:?}", x.dims());
    }
    if !has_kernel(x) {
        return avg_pool2_reference(x);
    }
    x.contiguous()?.apply_op1(AvgPool2 {
        sizes: Sizes { n, h, w, c },
        cpu,
    })
}

/// [`avg_pool2`] in plain candle operations.
///
/// # Errors
/// If H or W is odd.
pub fn avg_pool2_reference(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.reshape((n, h / 2, 2, w / 2, 2 * c))?
        .sum(2)? // [N, H/2, W/2, 2 C]
        .reshape((n, h / 2, w / 2, 2, c))?
        .sum(3)?
        .affine(0.25, 0.0)
}

/// Each element four times: `[N, H, W, C]` to `[N, 2 H, 2 W, C]`.
///
/// # Errors
/// If `x` is no image tensor.
pub fn upsample2(x: &Tensor, cpu: Cpu) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    if !has_kernel(x) {
        return upsample2_reference(x);
    }
    x.contiguous()?.apply_op1(Upsample2 {
        sizes: Sizes {
            n,
            h: 2 * h,
            w: 2 * w,
            c,
        },
        cpu,
    })
}

/// [`upsample2`] in plain candle operations.
///
/// # Errors
/// If `x` is no image tensor.
pub fn upsample2_reference(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.reshape((n, h, 1, w, 1, c))?
        .broadcast_as((n, h, 2, w, 2, c))?
        .reshape((n, 2 * h, 2 * w, c))
}

struct AvgPool2 {
    sizes: Sizes,
    cpu: Cpu,
}

impl CustomOp1 for AvgPool2 {
    fn name(&self) -> &'static str {
        "avg_pool2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len() / 4];
        self.sizes.gather(x, 0.25, &mut y, self.cpu);
        let Sizes { n, h, w, c } = self.sizes;
        Ok(output(y, (n, h / 2, w / 2, c)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, d_y: &Tensor) -> Result<Option<Tensor>> {
        let mut d_x = vec![0.0; x.elem_count()];
        with_slices([d_y], |[d_y]| {
            self.sizes.spread(d_y, 0.25, &mut d_x, self.cpu);
        })?;
        Ok(Some(tensor(d_x, x)?))
    }
}

struct Upsample2 {
    sizes: Sizes,
    cpu: Cpu,
}

impl CustomOp1 for Upsample2 {
    fn name(&self) -> &'static str {
        "upsample2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len() * 4];
        self.sizes.spread(x, 1.0, &mut y, self.cpu);
        let Sizes { n, h, w, c } = self.sizes;
        Ok(output(y, (n, h, w, c)))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, d_y: &Tensor) -> Result<Option<Tensor>> {
        let mut d_x = vec![0.0; x.elem_count()];
        with_slices([d_y], |[d_y]| {
            self.sizes.gather(d_y, 1.0, &mut d_x, self.cpu);
        })?;
        Ok(Some(tensor(d_x, x)?))
    }
}
