//! 2-D convolution and, as its 1×1 case, the linear layer.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use p2_kernels::conv2d::{Conv2d as Sizes, Groups, Inputs};

use super::{has_kernel, output, slice, tensor, with_slices};
use crate::Cpu;

/// Distance of output positions and width of the zeros around the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Distance of two output positions in the input.
    pub stride: usize,
    /// Rows and columns of zeros around the input.
    pub padding: usize,
}

/// `x * weight + bias`.
///
/// # Shapes
/// - `x`: `[N, H, W, C_in]`
/// - `weight`: `[K, K, C_in, C_out]`
/// - `bias`: `[C_out]`
/// - returns: `[N, H', W', C_out]` with `H' = (H + 2 padding - K) / stride + 1`
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    geometry: Geometry,
    cpu: Cpu,
) -> Result<Tensor> {
    if !has_kernel(x) {
        return conv2d_reference(x, weight, bias, geometry);
    }
    let (n, h, w, c_in) = x.dims4()?;
    let (kernel, kernel_w, weight_c_in, c_out) = weight.dims4()?;
    let Geometry { stride, padding } = geometry;
    if kernel != kernel_w || weight_c_in != c_in || bias.dims() != [c_out] {
        candle_core::bail!(
            "conv2d of {:?} with weights {:?} and bias {:?}",
            x.dims(),
            weight.dims(),
            bias.dims()
        );
    }
    if h.min(w) + 2 * padding < kernel || stride == 0 {
        candle_core::bail!(
            "conv2d of {:?} with kernel {kernel} and {geometry:?}",
            x.dims()
        );
    }
    let sizes = Sizes {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel: [kernel; 2],
        stride,
        padding: [padding; 2],
        groups: Groups::One,
    };
    x.contiguous()?.apply_op3(
        &weight.contiguous()?,
        &bias.contiguous()?,
        Conv2d { sizes, cpu },
    )
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
) -> Result<Tensor> {
    let x = x.permute((0, 3, 1, 2))?.contiguous()?; // [N, C_in, H, W]
    let weight = weight.permute((3, 2, 0, 1))?.contiguous()?; // [C_out, C_in, K, K]
    let y = x.conv2d(&weight, geometry.padding, geometry.stride, 1, 1)?;
    y.permute((0, 2, 3, 1))?.contiguous()?.broadcast_add(bias) // [N, H', W', C_out]
}

/// `x * weight + bias` on the last axis.
///
/// # Shapes
/// - `x`: `[.., C_in]`
/// - `weight`: `[C_in, C_out]`
/// - `bias`: `[C_out]`
/// - returns: `[.., C_out]`
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, cpu: Cpu) -> Result<Tensor> {
    let (c_in, c_out) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if shape.pop() != Some(c_in) {
        candle_core::bail!("linear of {:?} with weights {:?}", x.dims(), weight.dims());
    }
    let n = shape.iter().product::<usize>();
    let x = x.contiguous()?.reshape((n, 1, 1, c_in))?;
    let weight = weight.reshape((1, 1, c_in, c_out))?;
    let y = conv2d(
        &x,
        &weight,
        bias,
        Geometry {
            stride: 1,
            padding: 0,
        },
        cpu,
    )?;
    shape.push(c_out);
    y.reshape(shape)
}

struct Conv2d {
    sizes: Sizes,
    cpu: Cpu,
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice(x, x_layout)?, slice(weight, weight_layout)?);
        let bias = slice(bias, bias_layout)?;
        let mut y = vec![0.0; self.sizes.y_len()];
        let inputs = Inputs {
            x,
            weight,
            bias,
            residual: None,
        };
        self.sizes.forward(inputs, &mut y, self.cpu);
        let Sizes { n, c_out, .. } = self.sizes;
        Ok(output(
            y,
            (n, self.sizes.out_h(), self.sizes.out_w(), c_out),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        d_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut d_weight = vec![0.0; self.sizes.weight_len()];
        let mut d_bias = vec![0.0; self.sizes.c_out];
        // The image itself, and other constants, need no gradient.
        let mut d_x = x.track_op().then(|| vec![0.0; self.sizes.x_len()]);
        with_slices([x, weight, d_y], |[x, weight, d_y]| {
            if let Some(d_x) = &mut d_x {
                self.sizes.backward_input(d_y, weight, d_x, self.cpu);
            }
            self.sizes
                .backward_weight(x, d_y, &mut d_weight, &mut d_bias, self.cpu);
        })?;
        let d_x = d_x.map(|d_x| tensor(d_x, x)).transpose()?;
        Ok((
            d_x,
            Some(tensor(d_weight, weight)?),
            Some(tensor(d_bias, bias)?),
        ))
    }
}
