//! Group normalization with a scale and shift per image and channel, and the activation after it.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
pub use p2_kernels::group_norm::Activation;
use p2_kernels::group_norm::{Gradients, GroupNorm as Sizes, Inputs};

use super::{has_kernel, output, slice, tensor, with_slices};
use crate::Cpu;

/// How channels are grouped and what follows the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Groups of channels.
    pub n_groups: usize,
    /// What follows.
    pub activation: Activation,
}

/// `act(scale * (x - mean) / sqrt(variance + 1e-5) + shift)`, moments over each image's groups.
///
/// # Shapes
/// - `x`: `[N, H, W, C]`
/// - `scale`, `shift`: `[N, C]`
/// - returns: like `x`
///
/// # Errors
/// If the shapes do not fit.
///
/// # Source
/// Wu and He 2018, arXiv 1803.08494, eq. 7; with the conditioning of Dhariwal and Nichol 2021,
/// arXiv 2105.05233, section 3.1 (AdaGN).
pub fn group_norm(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    options: Options,
    cpu: Cpu,
) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let Options {
        n_groups,
        activation,
    } = options;
    if n_groups == 0
        || c == 0
        || c % n_groups != 0
        || scale.dims() != [n, c]
        || shift.dims() != [n, c]
    {
        candle_core::bail!(
            "group_norm of {:?} in {n_groups} groups with scale {:?} and shift {:?}",
            x.dims(),
            scale.dims(),
            shift.dims()
        );
    }
    if !has_kernel(x) {
        return group_norm_reference(x, scale, shift, options);
    }
    let sizes = Sizes {
        n,
        n_positions: h * w,
        c,
        n_groups,
        activation,
    };
    let op = GroupNorm {
        sizes,
        cpu,
        moments: OnceLock::new(),
    };
    x.contiguous()?
        .apply_op3(&scale.contiguous()?, &shift.contiguous()?, op)
}

/// [`group_norm`] in plain candle operations.
///
/// # Errors
/// If the shapes do not fit.
pub fn group_norm_reference(
    x: &Tensor,
    scale: &Tensor,
    shift: &Tensor,
    options: Options,
) -> Result<Tensor> {
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
    let per_channel = |t: &Tensor| t.reshape((n, 1, 1, c));
    let u = x_hat
        .broadcast_mul(&per_channel(scale)?)?
        .broadcast_add(&per_channel(shift)?)?;
    match options.activation {
        Activation::Identity => Ok(u),
        Activation::Silu => u.silu(),
    }
}

struct GroupNorm {
    sizes: Sizes,
    cpu: Cpu,
    /// What the forward pass found and the backward pass needs again.
    moments: OnceLock<Vec<f32>>,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (scale, shift) = (slice(scale, scale_layout)?, slice(shift, shift_layout)?);
        let inputs = Inputs {
            x: slice(x, x_layout)?,
            scale,
            shift,
        };
        let mut y = vec![0.0; inputs.x.len()];
        let moments = self.sizes.forward(inputs, &mut y, self.cpu);
        self.moments.get_or_init(|| moments);
        Ok(output(y, x_layout.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        scale: &Tensor,
        shift: &Tensor,
        _y: &Tensor,
        d_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(moments) = self.moments.get() else {
            candle_core::bail!("group_norm has no moments before its forward pass");
        };
        let [mut d_x, mut d_scale, mut d_shift] =
            [x, scale, shift].map(|t| vec![0.0; t.elem_count()]);
        with_slices([x, scale, shift, d_y], |[x, scale, shift, d_y]| {
            let gradients = Gradients {
                d_x: &mut d_x,
                d_scale: &mut d_scale,
                d_shift: &mut d_shift,
            };
            self.sizes.backward(
                Inputs { x, scale, shift },
                moments,
                d_y,
                gradients,
                self.cpu,
            );
        })?;
        Ok((
            Some(tensor(d_x, x)?),
            Some(tensor(d_scale, scale)?),
            Some(tensor(d_shift, shift)?),
        ))
    }
}
