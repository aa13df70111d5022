//! Weights and moments of any network as the tensors of a checkpoint, and back.

use p2_nn::adamw::State;
use p2_nn::{AdamW, Params};

use crate::checkpoint::{StoredTensors, TensorFile};
use crate::model::file::{named_tensors, reference_values, tensor_file};
use crate::problem::Problem;

/// The file of the optimizer's moments.
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";

/// The moments, by the names that PyTorch gives them.
const EXP_AVG: &str = "exp_avg.";
const EXP_AVG_SQ: &str = "exp_avg_sq.";

/// The weights of a network under their names, with a configuration.
pub(super) fn weights(
    name: &str,
    metadata: &str,
    params: &Params,
) -> anyhow::Result<TensorFile<'static>> {
    let values = params
        .iter()
        .map(p2_nn::params::Param::values)
        .collect::<Result<Vec<_>, _>>()?;
    tensor_file(name, metadata, params, values.iter().map(Vec::as_slice))
}

/// The averaged weights, likewise.
pub(super) fn averaged(
    name: String,
    metadata: &str,
    params: &Params,
    optimizer: &AdamW,
) -> anyhow::Result<TensorFile<'static>> {
    let states: Vec<_> = optimizer.states().collect();
    let values = states.iter().map(|state| state.ema.as_slice());
    tensor_file(name, metadata, params, values)
}

/// The optimizer's moments.
pub(super) fn moments(params: &Params, optimizer: &AdamW) -> anyhow::Result<TensorFile<'static>> {
    let states: Vec<_> = optimizer.states().collect();
    let slices = |of: fn(&State) -> &[f32]| states.iter().map(move |state| of(state));
    let moments = [
        named_tensors(EXP_AVG, params, slices(|state| &state.exp_avg))?,
        named_tensors(EXP_AVG_SQ, params, slices(|state| &state.exp_avg_sq))?,
    ];
    Ok(TensorFile {
        name: OPTIMIZER.into(),
        metadata: None,
        tensors: moments.concat(),
    })
}

/// Takes up the moments, and the averages that were saved with them.
pub(super) fn restore(
    params: &Params,
    optimizer: &mut AdamW,
    moments: &StoredTensors,
    averaged: &StoredTensors,
) -> anyhow::Result<()> {
    for (param, state) in params.iter().zip(optimizer.states_mut()) {
        let read = |stored, prefix| -> anyhow::Result<Vec<f32>> {
            Ok(param.from_reference(&reference_values(param, stored, prefix)?)?)
        };
        state.exp_avg = read(moments, EXP_AVG)?;
        state.exp_avg_sq = read(moments, EXP_AVG_SQ)?;
        state.ema = read(averaged, "")?;
    }
    Ok(())
}

/// Refuses to save what no run could go on from, so that a good checkpoint is not pruned for it.
pub(super) fn check_finite(params: &Params, optimizer: &AdamW) -> anyhow::Result<()> {
    for (param, state) in params.iter().zip(optimizer.states()) {
        let values = param.values()?;
        let parts = [&values, &state.exp_avg, &state.exp_avg_sq, &state.ema];
        if parts.into_iter().flatten().any(|value| !value.is_finite()) {
            let message = format!("`{}` is no longer finite", param.name());
            return Err(Problem::new(message)
                .because("the last steps were too large")
                .hint("the last checkpoint is intact; continue from it with a smaller optim.lr")
                .into());
        }
    }
    Ok(())
}
