//! The differentiable ops: each with a plain candle composition and a CPU kernel of the same values.
//!
//! An op takes the kernel where tensors are f32 on the CPU, and the composition everywhere else. What
//! stands between a norm and the product that reads it may be bf16, too ([`Output::ForProducts`]).

pub mod attention;
pub mod conv2d;
pub mod dropout;
pub mod elementwise;
pub mod group_norm;
mod joined;
pub mod loss;
pub mod resample;

use candle_core::{CpuStorage, DType, Layout, Tensor, Var, WithDType};
pub use joined::Joined;
use p2_kernels::Element;

use crate::tape::{Node, has_kernel};
use crate::{Cpu, Result};

/// The type of what an op writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// f32.
    #[default]
    Whole,
    /// For linear layers, attention and convolutions that keep the size of images alone, perhaps after
    /// resampling or dropout: bf16 where those round to it ([`Cpu::multiplies_bf16`]), f32 elsewhere.
    /// It moves and keeps half the bytes. What else reads it sees it rounded.
    ForProducts,
}

impl Output {
    fn is_bf16(self, cpu: Cpu) -> bool {
        self == Self::ForProducts && cpu.multiplies_bf16()
    }
}

/// A type of elements that tensors and kernels have.
trait Number: Element + WithDType {}

impl<T: Element + WithDType> Number for T {}

/// The elements of a contiguous tensor on the CPU.
pub(crate) fn slice<'a, E: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [E]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<E>()?[start..end]),
        None => candle_core::bail!("a kernel needs contiguous tensors, not {layout:?}"),
    }
}

/// Calls `f` with the elements of CPU tensors.
fn with_slices<E: Number, const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[E]; N]) -> Result<T>,
) -> Result<T> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = contiguous
        .iter()
        .map(|tensor| tensor.storage_and_layout())
        .collect();
    let mut slices = [&[][..]; N];
    for (into, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            candle_core::Storage::Cpu(storage) => *into = slice(storage, layout)?,
            _ => {
                return Err(shape_error(
                    "a CPU kernel was given a tensor of another device",
                ));
            }
        }
    }
    f(slices)
}

/// A CPU tensor whose elements `write` sets, all of them.
fn written<E: Number>(
    shape: impl Into<candle_core::Shape>,
    write: impl FnOnce(&mut [E]),
) -> Result<Tensor> {
    let shape = shape.into();
    let mut values = p2_kernels::memory::unfilled(shape.elem_count());
    write(&mut values);
    Ok(Tensor::from_vec(values, shape, &candle_core::Device::Cpu)?)
}

/// An error about sizes, from the engine.
fn shape_error(message: impl std::fmt::Display) -> crate::Error {
    candle_core::Error::Msg(message.to_string()).into()
}

/// An op in plain candle operations, differentiated by candle.
pub(crate) fn composed<const N: usize>(
    name: &'static str,
    inputs: [&Node; N],
    composition: impl FnOnce([&Tensor; N]) -> candle_core::Result<Tensor>,
) -> Result<Node> {
    let [first, ..] = inputs.as_slice() else {
        return Err(shape_error("an op needs an input"));
    };
    let tape = first.tape();
    if !tape.tracks(&inputs) {
        let value = tape.forward(name, || Ok(composition(inputs.map(Node::value))?))?;
        return Ok(tape.record(name, &inputs, value, |_, _| Ok(())));
    }
    let mut vars = Vec::with_capacity(N);
    for input in inputs {
        vars.push(Var::from_tensor(&input.value().detach())?);
    }
    let mut leaves = [inputs[0].value(); N];
    for (leaf, var) in leaves.iter_mut().zip(&vars) {
        *leaf = var.as_tensor();
    }
    let y = tape.forward(name, || Ok(composition(leaves)?))?;
    let value = y.detach();
    let slots = inputs.map(Node::slot);
    Ok(tape.record(name, &inputs, value, move |d_y, sums| {
        let gradients = (&y * d_y.tensor())?.sum_all()?.backward()?;
        for (var, slot) in vars.iter().zip(slots) {
            if let Some(gradient) = gradients.get(var) {
                sums.add_shared(slot, gradient)?;
            }
        }
        Ok(())
    }))
}

/// Whether all inputs can go to any CPU kernel.
fn on_kernels(inputs: &[&Node]) -> bool {
    inputs.iter().copied().all(is_f32)
}

/// Whether an input can go to any CPU kernel.
fn is_f32(input: &Node) -> bool {
    has_kernel(input.value())
}

/// Whether an input can go to a CPU kernel that takes bf16, too.
fn is_f32_or_bf16(input: &Node) -> bool {
    is_f32(input) || is_bf16(input.value()) && input.value().device().is_cpu()
}

fn is_bf16(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::BF16
}
