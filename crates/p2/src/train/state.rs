//! A run as files: weights, averaged weights and moments, and back.

use super::Trainer;
use crate::checkpoint::{Found, StoredTensors, TensorFile};
use crate::model::file::{
    ema_file_name, load_params, named_tensors, reference_values, tensor_file,
};
use crate::problem::Problem;

/// The files of a checkpoint besides the averaged weights.
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The optimizer's moments, by the names that PyTorch gives them.
const EXP_AVG: &str = "exp_avg.";
const EXP_AVG_SQ: &str = "exp_avg_sq.";

impl Trainer {
    /// Everything that a run needs to go on: all else is a function of configuration and clock.
    pub(super) fn tensor_files(&self) -> anyhow::Result<Vec<TensorFile<'static>>> {
        self.check_finite()?;
        let params = self.model.params();
        let metadata = self.run.to_metadata()?;
        let weights = params
            .iter()
            .map(p2_nn::params::Param::values)
            .collect::<Result<Vec<_>, _>>()?;
        let states: Vec<_> = self.optimizer.states().collect();
        let slices = |of: fn(&p2_nn::adamw::State) -> &[f32]| states.iter().map(move |s| of(s));
        let moments = [
            named_tensors(EXP_AVG, params, slices(|state| &state.exp_avg))?,
            named_tensors(EXP_AVG_SQ, params, slices(|state| &state.exp_avg_sq))?,
        ];
        Ok(vec![
            tensor_file(MODEL, &metadata, params, weights.iter().map(Vec::as_slice))?,
            tensor_file(
                self.ema_file(),
                &metadata,
                params,
                slices(|state| &state.ema),
            )?,
            TensorFile {
                name: OPTIMIZER.into(),
                metadata: None,
                tensors: moments.concat(),
            },
        ])
    }

    /// Takes up a run where a checkpoint left it.
    pub(super) fn restore(&mut self, found: &Found) -> anyhow::Result<()> {
        let open = |name: &str| StoredTensors::open(&found.path.join(name));
        load_params(self.model.params(), &open(MODEL)?, "")?;
        let (averaged, moments) = (open(&self.ema_file())?, open(OPTIMIZER)?);
        let params = self.model.params().clone();
        for (param, state) in params.iter().zip(self.optimizer.states_mut()) {
            let read = |stored, prefix| -> anyhow::Result<Vec<f32>> {
                Ok(param.from_reference(&reference_values(param, stored, prefix)?)?)
            };
            state.exp_avg = read(&moments, EXP_AVG)?;
            state.exp_avg_sq = read(&moments, EXP_AVG_SQ)?;
            state.ema = read(&averaged, "")?;
        }
        Ok(())
    }

    /// Refuses to save what no run could go on from, so that a good checkpoint is not pruned for it.
    fn check_finite(&self) -> anyhow::Result<()> {
        for (param, state) in self.model.params().iter().zip(self.optimizer.states()) {
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

    fn ema_file(&self) -> String {
        ema_file_name(self.run.ema.halflife_images.0)
    }
}
