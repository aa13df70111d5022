//! Classifiers in files: named as the reference names them, with the configuration beside the weights.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use p2_nn::Cpu;

use super::Classifier;
use crate::checkpoint::{self, StoredTensors};
use crate::config::ClassifierRun;
use crate::model::file::{check_network_size, load_params, n_stored, save_params};
use crate::problem::Problem;

/// The file of the weights in a checkpoint.
pub(crate) const WEIGHTS: &str = "classifier.safetensors";

/// The way out where there is no classifier.
const HINT: &str = "give a run folder, a checkpoint folder or a .safetensors file, as p2 train-classifier writes them";

/// A classifier that was read, and where from.
#[derive(Debug)]
pub struct Loaded {
    /// The classifier.
    pub classifier: Classifier,
    /// Its configuration.
    pub run: ClassifierRun,
    /// The file of its weights.
    pub path: PathBuf,
}

/// Reads a classifier from a run folder (its newest checkpoint), a checkpoint, or one file.
///
/// # Errors
/// If there is none, or it carries no configuration, or the weights do not fit it.
pub fn load(path: &Path, cpu: Cpu) -> anyhow::Result<Loaded> {
    let path = find(path)?;
    let unusable = || Problem::new(format!("cannot use {}", path.display())).hint(HINT);
    let stored = StoredTensors::open(&path).with_context(unusable)?;
    let metadata = stored
        .metadata()
        .context("it carries no configuration of p2");
    let run = metadata
        .and_then(ClassifierRun::from_metadata)
        .with_context(unusable)?;
    check_size(&run, &stored).with_context(unusable)?;
    let classifier = Classifier::zeros(&run, cpu)?;
    load_params(classifier.params(), &stored, "").with_context(unusable)?;
    Ok(Loaded {
        classifier,
        run,
        path,
    })
}

/// Writes a classifier and its configuration as one file, which [`load`] reads.
///
/// # Errors
/// If the weights cannot be read, or the disk refuses.
pub fn save(path: &Path, classifier: &Classifier, run: &ClassifierRun) -> anyhow::Result<()> {
    save_params(path, classifier.params(), &run.to_metadata()?)
}

/// Refuses a configuration whose network is larger than what the file holds, before any memory is taken for it.
fn check_size(run: &ClassifierRun, stored: &StoredTensors) -> anyhow::Result<()> {
    check_network_size(&run.model.to_unet(), stored)?;
    let n_scores = run.model.n_classes as u128 * run.model.channels as u128;
    anyhow::ensure!(
        n_scores <= n_stored(stored),
        "its configuration has more classes than it has numbers for"
    );
    Ok(())
}

/// The file of weights that a path means.
fn find(path: &Path) -> anyhow::Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let not_found = || Problem::new(format!("there is no classifier at {}", path.display()));
    let folder = match checkpoint::newest(&path.join("checkpoints"))? {
        Some(found) => found.path,
        None => path.to_owned(),
    };
    let weights = folder.join(WEIGHTS);
    if !weights.is_file() {
        return Err(not_found().hint(HINT).into());
    }
    Ok(weights)
}
