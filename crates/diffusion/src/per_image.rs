//! Numbers that differ from image to image, applied to all elements of an image.
//!
//! Only elementwise operations and sums within an image: the bits of one image depend neither on the
//! batch size nor on its place in the batch.

use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor};

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
///
/// In one pass, if nobody asks for gradients and the elements lie in order; the bits are the same.
pub(crate) fn sum(a: Term<'_>, b: Term<'_>) -> Result<Tensor> {
    if let Some(sum) = sum_in_one_pass(&a, &b)? {
        return Ok(sum);
    }
    Ok((scale(a.tensor, a.factor)? + scale(b.tensor, b.factor)?)?)
}

fn sum_in_one_pass(a: &Term<'_>, b: &Term<'_>) -> Result<Option<Tensor>> {
    let n_images = a.tensor.dims().first().copied();
    let fits = a.tensor.dims() == b.tensor.dims()
        && [a, b].map(|term| Some(term.factor.len())) == [n_images; 2];
    if !fits || a.tensor.track_op() || b.tensor.track_op() {
        return Ok(None);
    }
    let (a_storage, a_layout) = a.tensor.storage_and_layout();
    let (b_storage, b_layout) = b.tensor.storage_and_layout();
    let (Some(a_values), Some(b_values)) = (f32s(&a_storage, a_layout), f32s(&b_storage, b_layout))
    else {
        return Ok(None);
    };
    let image_len = (a_values.len() / a.factor.len().max(1)).max(1);
    let images = a_values.chunks_exact(image_len);
    let images = images.zip(b_values.chunks_exact(image_len));
    let mut sum = Vec::with_capacity(a_values.len());
    for ((a_values, b_values), (a, b)) in images.zip(a.factor.iter().zip(&b.factor)) {
        let (a, b) = (*a as f32, *b as f32);
        let pairs = a_values.iter().zip(b_values);
        sum.extend(pairs.map(|(a_value, b_value)| a_value * a + b_value * b));
    }
    Ok(Some(Tensor::from_vec(sum, a.tensor.dims(), &Device::Cpu)?))
}

/// The elements of a tensor, if they are f32, on the CPU and in order.
fn f32s<'a>(storage: &'a Storage, layout: &Layout) -> Option<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Some(&values[start..end]),
        _ => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_in_one_pass_have_the_bits_of_candle() {
        for dims in [vec![0, 2, 3], vec![1, 1], vec![3, 5, 7, 3], vec![4]] {
            let n: usize = dims.iter().product();
            let values = |phase: f64| {
                let values = (0..n).map(|i| (1.7 * i as f64 + phase).sin() as f32);
                Tensor::from_vec(values.collect(), dims.as_slice(), &Device::Cpu).unwrap()
            };
            let (a, b) = (values(0.3), values(1.9));
            let term = |tensor, phase: f64| Term {
                tensor,
                factor: (0..dims[0]).map(|i| (i as f64 + phase).cos()).collect(),
            };
            let fast = sum_in_one_pass(&term(&a, 0.1), &term(&b, 0.7)).unwrap();
            let slow = scale(&a, term(&a, 0.1).factor).unwrap();
            let slow = (slow + scale(&b, term(&b, 0.7).factor).unwrap()).unwrap();
            let bits = |x: Tensor| {
                let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            assert_eq!(bits(fast.unwrap()), bits(slow), "{dims:?}");
        }
    }

    #[test]
    fn a_factor_too_few_is_an_error() {
        let x = Tensor::zeros((4, 3), DType::F32, &Device::Cpu).unwrap();
        let term = |n| Term {
            tensor: &x,
            factor: vec![1.0; n],
        };
        assert!(sum(term(4), term(4)).is_ok());
        assert!(sum(term(4), term(2)).is_err());
        assert!(sum(term(2), term(2)).is_err());
    }

    #[test]
    fn sums_that_are_differentiated_are_left_to_candle() {
        let x = candle_core::Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let term = || Term {
            tensor: x.as_tensor(),
            factor: vec![1.0, 2.0],
        };
        assert!(sum_in_one_pass(&term(), &term()).unwrap().is_none());
        let grads = sum(term(), term()).unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap(), [2.0, 4.0]);
    }
}
