//! Gradients while they are being added up, and after.

use std::collections::HashMap;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, TensorId, Var};
use p2_kernels::elementwise;

use super::{Node, Tape, has_kernel};
use crate::{Cpu, Error, Params, Result};

/// Where the gradient of one value is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Slot(pub(super) usize);

/// A gradient, and whether its memory is used by nothing else.
pub(crate) struct Gradient {
    tensor: Tensor,
    exclusive: bool,
}

/// The gradients of one backward pass, per slot.
pub(crate) struct Sums<'a> {
    tape: &'a Tape,
    slots: Vec<Option<Gradient>>,
}

impl<'a> Sums<'a> {
    pub(super) fn new(tape: &'a Tape) -> Self {
        let slots = (0..tape.0.n_slots.get()).map(|_| None).collect();
        Self { tape, slots }
    }

    /// Adds a gradient that nothing else refers to.
    pub(crate) fn add(&mut self, slot: Option<Slot>, gradient: Tensor) -> Result<()> {
        self.pass(slot, Gradient::new(gradient))
    }

    /// Adds a gradient that something else refers to, too.
    pub(crate) fn add_shared(&mut self, slot: Option<Slot>, gradient: &Tensor) -> Result<()> {
        let tensor = gradient.clone();
        let exclusive = false;
        self.pass(slot, Gradient { tensor, exclusive })
    }

    /// Hands on the gradient of a parameter.
    pub(super) fn pass_param(&mut self, param: TensorId, gradient: Gradient) -> Result<()> {
        let slot = self.tape.param_slot(param);
        while self.slots.len() <= slot.0 {
            self.slots.push(None);
        }
        self.pass(Some(slot), gradient)
    }

    /// Hands on a gradient as it is, shared or not.
    pub(crate) fn pass(&mut self, slot: Option<Slot>, gradient: Gradient) -> Result<()> {
        let Some(Slot(slot)) = slot else {
            return Ok(());
        };
        let sum = &mut self.slots[slot];
        *sum = Some(match sum.take() {
            None => gradient,
            Some(first) => first.plus(gradient, self.tape.cpu())?,
        });
        Ok(())
    }

    pub(super) fn take(&mut self, slot: Slot) -> Option<Gradient> {
        self.slots[slot.0].take()
    }

    pub(super) fn into_gradients(self, params: HashMap<TensorId, Slot>) -> Gradients {
        let mut slots = self.slots;
        let params = params
            .into_iter()
            .filter_map(|(id, slot)| Some((id, slots[slot.0].take()?)))
            .collect();
        Gradients { slots, params }
    }
}

impl Gradient {
    pub(crate) fn new(tensor: Tensor) -> Self {
        let exclusive = true;
        Self { tensor, exclusive }
    }

    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The same elements in another shape.
    pub(crate) fn reshape(self, dims: &[usize]) -> Result<Self> {
        let tensor = self.tensor.reshape(dims)?;
        // A reshape of strided elements copies them.
        Ok(Self { tensor, ..self })
    }

    /// `self + other`, in the memory of one of them if that is free.
    fn plus(self, other: Self, cpu: Cpu) -> Result<Self> {
        let (into, from) = if self.exclusive || !other.exclusive {
            (self, other)
        } else {
            (other, self)
        };
        if !into.exclusive || !has_kernel(&into.tensor) || !into.tensor.is_contiguous() {
            let tensor = (&into.tensor + &from.tensor)?;
            return Ok(Self {
                tensor,
                exclusive: true,
            });
        }
        let from = from.tensor.contiguous()?;
        into.tensor.inplace_op2(&from, &AddAssign { cpu })?;
        Ok(into)
    }
}

struct AddAssign {
    cpu: Cpu,
}

impl InplaceOp2 for AddAssign {
    fn name(&self) -> &'static str {
        "add_assign"
    }

    fn cpu_fwd(
        &self,
        into: &mut CpuStorage,
        into_layout: &Layout,
        from: &CpuStorage,
        from_layout: &Layout,
    ) -> candle_core::Result<()> {
        let from = crate::op::slice(from, from_layout)?;
        let (CpuStorage::F32(into), Some((start, end))) = (into, into_layout.contiguous_offsets())
        else {
            candle_core::bail!("sums of gradients need contiguous f32 tensors");
        };
        elementwise::add_assign(&mut into[start..end], from, self.cpu);
        Ok(())
    }
}

/// The gradients of a computation, with respect to what went into it.
pub struct Gradients {
    slots: Vec<Option<Gradient>>,
    params: HashMap<TensorId, Gradient>,
}

impl Gradients {
    /// The gradient of a [`Tape::input`]; `None` if the result does not depend on it.
    pub fn of(&self, input: &Node) -> Option<&Tensor> {
        let gradient = self.slots.get(input.slot()?.0)?.as_ref();
        gradient.map(Gradient::tensor)
    }

    /// The gradient of a parameter; `None` if the result does not depend on it.
    pub fn of_param(&self, var: &Var) -> Option<&Tensor> {
        self.params.get(&var.id()).map(Gradient::tensor)
    }

    /// The gradients of parameters, in their order, as an optimizer wants them.
    ///
    /// # Errors
    /// [`Error::NoGradient`] with the first parameter that the result does not depend on.
    pub fn into_tensors(mut self, params: &Params) -> Result<Vec<Tensor>> {
        let gradients = params.iter().map(|param| {
            let gradient = self.params.remove(&param.var().id());
            let gradient = gradient.ok_or_else(|| Error::NoGradient(param.name().to_owned()))?;
            Ok(gradient.tensor)
        });
        gradients.collect()
    }

    pub(super) fn take(&mut self, input: &Node) -> Option<Gradient> {
        self.slots.get_mut(input.slot()?.0)?.take()
    }

    pub(super) fn into_params(self) -> impl Iterator<Item = (TensorId, Gradient)> {
        self.params.into_iter()
    }
}

impl std::fmt::Debug for Gradients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gradients")
            .field("n_params", &self.params.len())
            .finish_non_exhaustive()
    }
}
