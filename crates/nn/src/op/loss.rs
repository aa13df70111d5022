//! The loss of noised images and its gradient, in one pass.

use candle_core::Tensor;
use p2_kernels::loss::{Inputs, Loss, Output};

pub use p2_kernels::loss::{Bound, Image, Means, Term};

use super::{shape_error, with_slices};
use crate::Result;
use crate::tape::{Node, has_kernel};

/// The loss of some images in its parts, and what their network learns from it.
#[derive(Debug, Clone)]
pub struct ImageLosses {
    /// `[N]`.
    pub means: Vec<Means>,
    /// The derivative of what is minimized by the output, like it: for [`Node::backward`].
    pub d_output: Tensor,
}

/// The loss of a network's output. Where the engine has to differentiate a loss, start from [`Node::leaf`].
///
/// # Shapes and units
/// - `output`: `[N, .., C]`, or `[N, .., 2C]` if the network says something of the variance; f32, on the CPU
/// - `x0`, `eps`: `[N, .., C]`, the clean images and the noise that was added
/// - `images`: `[N]`, what their losses are made of
///
/// # Errors
/// If the shapes do not fit, or there is no kernel for such tensors.
pub fn loss(output: &Node, x0: &Tensor, eps: &Tensor, images: &[Image]) -> Result<ImageLosses> {
    if ![output.value(), x0, eps].into_iter().all(has_kernel) {
        return Err(shape_error("this loss needs f32 tensors on the CPU"));
    }
    let sizes = sizes(output.dims(), x0.dims(), eps.dims(), images.len())?;
    let (tape, value) = (output.tape(), output.value());
    tape.forward("loss", || {
        with_slices([value, x0, eps], |[output, x0, eps]| {
            let inputs = Inputs { output, x0, eps };
            let mut d_output = p2_kernels::memory::unfilled(output.len());
            let means = sizes.with_gradient(images, inputs, &mut d_output, tape.cpu());
            let d_output = Tensor::from_vec(d_output, value.shape(), value.device())?;
            Ok(ImageLosses { means, d_output })
        })
    })
}

/// The sizes of n images, if the shapes of output, images and noise fit.
fn sizes(output: &[usize], x0: &[usize], eps: &[usize], n: usize) -> Result<Loss> {
    let misfit = || {
        shape_error(format_args!(
            "loss of {n} images: output {output:?}, images {x0:?}, noise {eps:?}"
        ))
    };
    let (Some((&width, rest)), Some((&c, positions))) = (output.split_last(), x0.split_last())
    else {
        return Err(misfit());
    };
    let holds = match width {
        _ if width == c => Output::Prediction,
        _ if width == 2 * c => Output::PredictionAndVariance,
        _ => return Err(misfit()),
    };
    if x0 != eps || rest != positions || positions.first() != Some(&n) {
        return Err(misfit());
    }
    Ok(Loss {
        n_positions: positions[1..].iter().product(),
        c,
        output: holds,
    })
}
