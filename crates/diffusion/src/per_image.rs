//! Numbers that differ from image to image, applied to all elements of an image.
//!
//! Only elementwise operations and sums within an image: the bits of one image depend neither on the
//! batch size nor on its place in the batch.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// The entries of a table at timesteps that were checked, mapped: `[N]`.
pub(crate) fn gather(table: &[f64], t: &[u32], f: impl Fn(f64) -> f64) -> Vec<f64> {
    t.iter().map(|&t| f(table[t as usize])).collect()
}

/// The tensor `[N, 1, .., 1]` of `values`, with the rank, type and device of `like` `[N, ..]`.
///
/// The one place where tables in f64 become numbers in the type of the images.
pub(crate) fn column(values: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    if let Some(first) = shape.first_mut() {
        *first = values.len();
    }
    if like.dtype() == DType::F64 {
        return Ok(Tensor::from_vec(values, shape, like.device())?);
    }
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    Ok(Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())?)
}

/// `factor[n] x[n]`, like `x`.
pub(crate) fn scale(x: &Tensor, factor: Vec<f64>) -> Result<Tensor> {
    Ok(x.broadcast_mul(&column(factor, x)?)?)
}

/// A tensor and the number that each of its images is multiplied by.
pub(crate) struct Term<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) factor: Vec<f64>,
}

/// `a.factor[n] a[n] + b.factor[n] b[n]`, like both tensors.
pub(crate) fn sum(a: Term<'_>, b: Term<'_>) -> Result<Tensor> {
    Ok((scale(a.tensor, a.factor)? + scale(b.tensor, b.factor)?)?)
}

/// Mean over all elements of each image: `[N, ..]` to `[N]`.
///
/// Sums rows first and then the row sums, so that large images lose fewer digits than in one long sum.
pub(crate) fn mean(x: &Tensor) -> Result<Tensor> {
    let n_images = x.dims().first().copied().unwrap_or(1);
    let n_elements = x.elem_count() / n_images.max(1);
    let sum = match x.rank() {
        0 | 1 => x.clone(),
        2 => x.sum(1)?,
        _ => x.flatten_from(2)?.sum(2)?.sum(1)?, // [N, H, W*C] -> [N, H] -> [N]
    };
    Ok((sum / n_elements as f64)?) // [N]
}

/// Refuses a tensor that is not shaped like `like`.
pub(crate) fn check_shape(name: &'static str, x: &Tensor, like: &Tensor) -> Result<()> {
    if x.dims() == like.dims() {
        return Ok(());
    }
    Err(Error::Shape {
        name,
        shape: x.dims().to_vec(),
        expected: like.dims().to_vec(),
    })
}
