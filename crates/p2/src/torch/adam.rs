//! The state of `torch.optim.Adam` and `AdamW`, as a file of PyTorch has it.
//!
//! `{state: {0: {step, exp_avg, exp_avg_sq}, ..}, param_groups: [{lr, betas, eps, .., params: [0, ..]}]}`: parameters
//! have no names there, they are counted in the order of the model.

use std::io::{Read, Seek};

use anyhow::{Context as _, Result, bail, ensure};

use super::TorchFile;
use super::value::{Name, Value};

/// What the optimizer keeps beside two moments for each parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adam {
    /// Steps taken.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment, and of the second.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// How many parameters it moves.
    pub n_params: usize,
}

/// A moment of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Moving average of the gradient.
    First,
    /// Moving average of its square.
    Second,
}

impl Moment {
    /// Both, in the order of PyTorch.
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    /// PyTorch's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::First => "exp_avg",
            Self::Second => "exp_avg_sq",
        }
    }

    /// The name of the tensor that it is of the k-th parameter, where the optimizer lies at a path of names.
    pub fn tensor_name(self, path: &str, k: usize) -> String {
        join(path, &format!("state.{k}.{}", self.name()))
    }
}

impl<R: Read + Seek> TorchFile<R> {
    /// The optimizer's state at a path of names (empty: at the top); `None` if something else is there.
    ///
    /// # Errors
    /// If it is not that of an Adam with one group of parameters, all of which have taken equally many steps.
    pub fn adam(&mut self, path: &str) -> Result<Option<Adam>> {
        let root = self.root.at(path).unwrap_or(Value::None);
        let (Some(Value::Dict(states)), Some(groups)) =
            (root.get("state"), root.get("param_groups"))
        else {
            return Ok(None);
        };
        let group = groups.get("0").context("it has no group of parameters")?;
        ensure!(
            groups.get("1").is_none(),
            "it has several groups of parameters, p2 has one"
        );
        for unlike in ["amsgrad", "maximize"] {
            ensure!(
                !matches!(group.get(unlike), Some(Value::Bool(true))),
                "it has {unlike} = True, which p2 has not"
            );
        }
        let n_params = n_params(&group)?;
        let place = join(path, "param_groups.0");
        let mut number = |key: &str| -> Result<f64> {
            let value = group.at(key);
            let value = value.with_context(|| format!("its group has no {key}, as Adam has"))?;
            self.number(&value, &join(&place, key))
        };
        let adam = Adam {
            step: 0,
            lr: number("lr")?,
            betas: [number("betas.0")?, number("betas.1")?],
            eps: number("eps")?,
            weight_decay: number("weight_decay")?,
            n_params,
        };
        let is_coupled = matches!(group.at("decoupled_weight_decay"), Some(Value::Bool(false)));
        ensure!(
            !is_coupled || adam.weight_decay == 0.0,
            "it adds weight decay to gradients, as Adam and not as AdamW"
        );
        let states = states.items.borrow();
        ensure!(!states.is_empty(), "it has taken no step");
        ensure!(
            states.len() == n_params,
            "it has moments of {} of its {n_params} parameters",
            states.len()
        );
        let step = self.step(&states, path)?;
        Ok(Some(Adam { step, ..adam }))
    }

    /// The steps that all parameters have taken.
    fn step(&mut self, states: &[(Value, Value)], path: &str) -> Result<u64> {
        let mut steps = Vec::with_capacity(states.len());
        for (key, state) in states {
            let Value::Int(k) = key else {
                bail!("a parameter is not counted but named, as by optimizers of whole programs");
            };
            let value = state.get("step");
            let value = value.with_context(|| format!("parameter {k} has no step, as Adam has"))?;
            steps.push(self.number(&value, &join(path, &format!("state.{k}.step")))?);
        }
        let step = steps.first().copied().unwrap_or(0.0);
        if let Some(other) = steps.iter().find(|other| **other != step) {
            bail!("its parameters have taken {step} and {other} steps, p2 counts once for all");
        }
        // Counted in f32, whole numbers end where steps of 1 are lost.
        let is_count = step >= 1.0 && step <= f64::from(1_u32 << 31) && step.fract() == 0.0;
        ensure!(is_count, "{step} is no number of steps");
        Ok(step as u64)
    }

    /// A number, or the only number of a tensor of this name.
    fn number(&mut self, value: &Value, name: &str) -> Result<f64> {
        match value {
            Value::Int(value) => Ok(*value as f64),
            Value::Float(value) => Ok(*value),
            Value::Call(Name::RebuildTensor, ..) => {
                let tensor = self.tensors().get(name);
                let tensor = tensor.with_context(|| format!("there is no tensor `{name}`"))?;
                ensure!(tensor.n_elements() == 1, "`{name}` is not one number");
                let values = self.values(name)?;
                Ok(f64::from(values.first().copied().unwrap_or(f32::NAN)))
            }
            _ => bail!("`{name}` is no number"),
        }
    }
}

/// How many parameters a group has; they are counted from 0.
fn n_params(group: &Value) -> Result<usize> {
    let Some(Value::List(params)) = group.get("params") else {
        bail!("its group has no list of parameters");
    };
    let params = params.items.borrow();
    let is_counted = (0_i128..)
        .zip(params.iter())
        .all(|(k, param)| matches!(param, Value::Int(i) if *i == k));
    ensure!(is_counted, "its parameters are not counted from 0");
    Ok(params.len())
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}
