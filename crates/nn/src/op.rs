//! The differentiable ops: each with a plain candle composition and a CPU kernel of the same values.
//!
//! An op takes the kernel where tensors are f32 on the CPU, and the composition everywhere else.

pub mod attention;
pub mod conv2d;
pub mod elementwise;
pub mod group_norm;
pub mod resample;

use candle_core::{CpuStorage, DType, Layout, Result, Shape, Tensor};

/// Whether the CPU kernels apply.
fn has_kernel(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The elements of a contiguous f32 tensor on the CPU.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a kernel needs contiguous tensors, not {layout:?}"),
    }
}

/// Calls `f` with the elements of contiguous CPU tensors.
fn with_slices<const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> T,
) -> Result<T> {
    let tensors = tensors.map(Tensor::contiguous);
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor?);
    }
    let guards: Vec<_> = contiguous
        .iter()
        .map(|tensor| tensor.storage_and_layout())
        .collect();
    let mut slices = [&[][..]; N];
    for (into, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            candle_core::Storage::Cpu(storage) => *into = slice(storage, layout)?,
            _ => candle_core::bail!("a CPU kernel was given a tensor of another device"),
        }
    }
    Ok(f(slices))
}

/// The result of a kernel as candle expects it.
fn output(values: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.into())
}

/// A CPU tensor of values that a kernel wrote.
fn tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}
