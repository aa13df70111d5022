//! A run as files: weights, averaged weights and moments, and back.

use anyhow::Context as _;
use p2_diffusion::{LossHistory, StateTensor, StatefulWeighting};
use p2_nn::params::Kind;

use super::Trainer;
use super::tensors::{self, OPTIMIZER};
use crate::checkpoint::{Found, NamedTensor, StoredTensors, TensorFile};
use crate::model::file::{ema_file_name, load_params, reference_values};
use crate::problem::Problem;

/// The files of a checkpoint besides the averaged weights.
const MODEL: &str = "model.safetensors";
/// What the loss has learned; only of a run whose loss learns.
const LOSS: &str = "loss.safetensors";

/// Prefixes there.
const WEIGHTING: &str = "weighting.";
const DENSITY: &str = "density.";

impl Trainer {
    /// Everything that a run needs to go on: all else is a function of configuration and clock.
    pub(super) fn tensor_files(&self) -> anyhow::Result<Vec<TensorFile<'static>>> {
        let (params, optimizer) = (self.model.params(), &self.optimizer);
        tensors::check_finite(params, optimizer)?;
        let metadata = self.run.to_metadata()?;
        let mut files = vec![
            tensors::weights(MODEL, &metadata, params)?,
            tensors::averaged(self.ema_file(), &metadata, params, optimizer)?,
            tensors::moments(params, optimizer)?,
        ];
        files.extend(self.loss_file()?);
        Ok(files)
    }

    /// What the loss has learned, and by which weighting.
    fn loss_file(&self) -> anyhow::Result<Option<TensorFile<'static>>> {
        let weighting = self.objective.stateful().map(StatefulWeighting::state);
        let weighting = weighting.transpose()?;
        let learned = weighting.iter().flatten().flat_map(|part| &part.values);
        if learned.into_iter().any(|value| !value.is_finite()) {
            return Err(Problem::new("what loss.weighting learned is no longer finite")
                .because("its last steps were too large")
                .hint("the last checkpoint is intact; continue from it with another loss.weighting")
                .into());
        }
        let density = self.levels.history().map(LossHistory::state);
        let parts = [(WEIGHTING, weighting), (DENSITY, density)];
        let tensors: Vec<_> = parts
            .into_iter()
            .flat_map(|(prefix, state)| {
                let parts = state.into_iter().flatten();
                parts.map(move |part| NamedTensor {
                    name: format!("{prefix}{}", part.name),
                    shape: vec![part.values.len()],
                    values: part.values.into(),
                })
            })
            .collect();
        if tensors.is_empty() {
            return Ok(None);
        }
        Ok(Some(TensorFile {
            name: LOSS.into(),
            metadata: Some(serde_json::to_string(&self.run.loss.weighting)?),
            tensors,
        }))
    }

    /// Takes up a run where a checkpoint left it; says what had to be left behind.
    pub(super) fn restore(&mut self, found: &Found) -> anyhow::Result<Vec<String>> {
        let open = |name: &str| StoredTensors::open(&found.path.join(name));
        load_params(self.model.params(), &open(MODEL)?, "")?;
        let (averaged, moments) = (open(&self.ema_file())?, open(OPTIMIZER)?);
        tensors::restore(
            self.model.params(),
            &mut self.optimizer,
            &moments,
            &averaged,
        )?;
        self.restore_loss(found)
    }

    /// Begins a run with the weights of a model instead of random ones, averaged weights included; says which it has not.
    ///
    /// Embeddings of classes stay as they are where the model has others: its classes are not ours.
    pub(super) fn begin_with(&mut self, stored: &StoredTensors) -> anyhow::Result<Vec<String>> {
        let mut fresh = Vec::new();
        let params = self.model.params().clone();
        for (param, state) in params.iter().zip(self.optimizer.states_mut()) {
            let is_embedding = param.kind() == Kind::Embedding;
            if is_embedding && stored.shape(param.name()) != Some(&param.reference_shape()) {
                fresh.push(param.name().to_owned());
                continue;
            }
            let values = param.from_reference(&reference_values(param, stored, "")?)?;
            param.set_values(&values)?;
            state.ema = values;
        }
        Ok(fresh)
    }

    /// What the loss had learned. A weighting that took over from another starts afresh.
    fn restore_loss(&mut self, found: &Found) -> anyhow::Result<Vec<String>> {
        let path = found.path.join(LOSS);
        let stored = path
            .exists()
            .then(|| StoredTensors::open(&path))
            .transpose()?;
        let mut afresh = Vec::new();
        if let Some(stateful) = self.objective.stateful_mut() {
            let weighting = serde_json::to_string(&self.run.loss.weighting)?;
            let same = stored
                .as_ref()
                .filter(|stored| stored.metadata() == Some(&weighting));
            match same {
                Some(stored) => stateful.restore(&parts(stored, WEIGHTING)?)?,
                None => afresh.push(format!(
                    "{weighting} has learned nothing yet: it starts afresh"
                )),
            }
        }
        if self.levels.history().is_some() {
            let stored = stored.with_context(|| format!("{} is missing", path.display()))?;
            self.levels.restore(&parts(&stored, DENSITY)?)?;
        }
        Ok(afresh)
    }

    fn ema_file(&self) -> String {
        ema_file_name(self.run.ema.halflife_images.0)
    }
}

/// The tensors under a prefix.
fn parts(stored: &StoredTensors, prefix: &str) -> anyhow::Result<Vec<StateTensor>> {
    let names = stored.names().filter_map(|name| name.strip_prefix(prefix));
    names
        .map(|name| {
            Ok(StateTensor {
                name: name.to_owned(),
                values: stored.values(&format!("{prefix}{name}"))?,
            })
        })
        .collect()
}
