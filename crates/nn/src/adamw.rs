//! AdamW with a moving average of the weights, both in one pass.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use p2_kernels::adamw as kernel;

use crate::params::Params;
use crate::{Cpu, Error, Result};

/// The numbers of one step.
pub use p2_kernels::adamw::AdamW as Step;

/// What the optimizer remembers of one parameter, in the engine's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Moving average of the gradient.
    pub exp_avg: Vec<f32>,
    /// Moving average of its square.
    pub exp_avg_sq: Vec<f32>,
    /// Moving average of the weights.
    pub ema: Vec<f32>,
}

/// The optimizer of some parameters.
#[derive(Debug)]
pub struct AdamW {
    params: Params,
    states: Vec<Mutex<State>>,
    cpu: Cpu,
}

impl AdamW {
    /// A fresh optimizer: no moments, and an average equal to the weights.
    ///
    /// # Errors
    /// If the parameters cannot be read.
    pub fn new(params: &Params, cpu: Cpu) -> Result<Self> {
        let states = params
            .iter()
            .map(|param| {
                let ema = param.values()?;
                let zeros = vec![0.0; ema.len()];
                Ok(Mutex::new(State {
                    exp_avg: zeros.clone(),
                    exp_avg_sq: zeros,
                    ema,
                }))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            params: params.clone(),
            states,
            cpu,
        })
    }

    /// The parameters that it moves.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What it runs on.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// What is remembered of each parameter, in their order; not to be held over a step.
    pub fn states(&self) -> impl Iterator<Item = MutexGuard<'_, State>> {
        self.states
            .iter()
            .map(|state| state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The same, to be replaced.
    pub fn states_mut(&mut self) -> impl Iterator<Item = &mut State> {
        self.states
            .iter_mut()
            .map(|state| state.get_mut().unwrap_or_else(PoisonError::into_inner))
    }

    /// Moves the parameters against `gradients`, one for each in order.
    ///
    /// # Errors
    /// If the gradients do not fit the parameters.
    pub fn step(&mut self, gradients: &[Tensor], step: Step) -> Result<()> {
        if gradients.len() != self.params.len() {
            let (given, needed) = (gradients.len(), self.params.len());
            return Err(Error::Gradients { given, needed });
        }
        for ((param, gradient), state) in self.params.iter().zip(gradients).zip(&self.states) {
            let op = Update {
                step,
                state,
                cpu: self.cpu,
            };
            param
                .var()
                .as_tensor()
                .inplace_op2(&gradient.contiguous()?, &op)?;
        }
        Ok(())
    }
}

struct Update<'a> {
    step: Step,
    state: &'a Mutex<State>,
    cpu: Cpu,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        param: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let gradient = crate::op::slice(gradient, gradient_layout)?;
        let CpuStorage::F32(param) = param else {
            candle_core::bail!("adamw needs f32 weights")
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw needs contiguous weights");
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State {
            exp_avg,
            exp_avg_sq,
            ema,
        } = &mut *state;
        let state = kernel::State {
            param: &mut param[start..end],
            exp_avg,
            exp_avg_sq,
            ema,
        };
        self.step.step(gradient, state, self.cpu);
        Ok(())
    }
}
