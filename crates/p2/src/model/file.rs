//! Models in files: named as the reference names them, with the configuration beside the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use p2_nn::{Cpu, Params};

use super::Model;
use crate::checkpoint::{self, NamedTensor, Skipped, StoredTensors, TensorFile};
use crate::config::Run;
use crate::config::section::Model as Network;
use crate::problem::Problem;

/// The way out where there is no model.
const MODEL_HINT: &str =
    "give a run folder, a checkpoint folder or a .safetensors file, as p2 train writes them";

/// The name of the averaged weights in a checkpoint, by their half-life.
pub fn ema_file_name(halflife_images: u64) -> String {
    format!("ema-halflife-{halflife_images}.safetensors")
}

/// A model that was read, and where from.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its configuration.
    pub run: Run,
    /// The file of its weights.
    pub path: PathBuf,
    /// Newer checkpoints of its run that are damaged.
    pub skipped: Vec<Skipped>,
}

/// Reads a model from a run folder (its newest checkpoint), a checkpoint, or one file. In a
/// checkpoint the averaged weights are taken.
///
/// # Errors
/// If there is none, or it carries no configuration, or the weights do not fit it.
pub fn load(path: &Path, cpu: Cpu) -> anyhow::Result<Loaded> {
    let (path, skipped) = find(path)?;
    let unusable = || Problem::new(format!("cannot use {}", path.display())).hint(MODEL_HINT);
    let stored = StoredTensors::open(&path).with_context(unusable)?;
    let (model, run) = read(&stored, cpu).with_context(unusable)?;
    Ok(Loaded {
        model,
        run,
        path,
        skipped,
    })
}

/// The model and the configuration that a file holds.
///
/// # Errors
/// If it carries no configuration, or the weights do not fit it.
pub fn read(stored: &StoredTensors, cpu: Cpu) -> anyhow::Result<(Model, Run)> {
    let metadata = stored
        .metadata()
        .context("it carries no configuration of p2")?;
    let run = Run::from_metadata(metadata)?;
    check_network_size(&run.model, stored)?;
    let model = Model::zeros(&run, cpu)?;
    load_params(model.params(), stored, "")?;
    Ok((model, run))
}

/// Opens the weights of a run, a checkpoint or one file, whatever configuration they have, if any.
///
/// # Errors
/// If there are none, or the file cannot be read.
pub fn open_weights(path: &Path) -> anyhow::Result<(PathBuf, StoredTensors)> {
    let (path, _) = find(path)?;
    let unusable = || Problem::new(format!("cannot use {}", path.display())).hint(MODEL_HINT);
    let stored = StoredTensors::open(&path).with_context(unusable)?;
    Ok((path, stored))
}

/// Writes a model and its configuration as one file, which [`load`] reads.
///
/// # Errors
/// If the weights cannot be read, or the disk refuses.
pub fn save(path: &Path, model: &Model, run: &Run) -> anyhow::Result<()> {
    save_params(path, model.params(), &run.to_metadata()?)
}

/// Writes weights and a configuration as one file.
pub(crate) fn save_params(path: &Path, params: &Params, metadata: &str) -> anyhow::Result<()> {
    let values = params
        .iter()
        .map(p2_nn::params::Param::values)
        .collect::<Result<Vec<_>, _>>()?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let values = values.iter().map(Vec::as_slice);
    let file = tensor_file(name, metadata, params, values)?;
    checkpoint::save_file(path, &file)
}

/// Refuses a configuration whose network is larger than what the file holds, before any memory is
/// taken for it: a few bytes of text could ask for all of it.
pub(crate) fn check_network_size(model: &Network, stored: &StoredTensors) -> anyhow::Result<()> {
    let (n_stored, n_least) = (n_stored(stored), least_parameters(model));
    anyhow::ensure!(
        n_least <= n_stored,
        "it holds {n_stored} numbers, its configuration needs more than {n_least}"
    );
    Ok(())
}

/// Numbers in a file.
pub(crate) fn n_stored(stored: &StoredTensors) -> u128 {
    let shapes = stored.names().filter_map(|name| stored.shape(name));
    shapes
        .map(|shape| shape.iter().map(|&extent| extent as u128).product::<u128>())
        .sum()
}

/// Fewer parameters than a network has, though not by far: the embeddings of noise level and class,
/// and one convolution of each residual block of the encoder.
pub(crate) fn least_parameters(model: &Network) -> u128 {
    let channels = model.channels as u128;
    let embed = 4 * channels;
    let blocks = model.channel_mult.iter().map(|&mult| {
        let level = channels * mult as u128;
        model.n_res_blocks as u128 * 9 * level * level
    });
    embed * (channels + embed + model.n_classes as u128) + blocks.sum::<u128>()
}

/// Sets the parameters from the tensors of their names under `prefix`.
pub(crate) fn load_params(
    params: &Params,
    stored: &StoredTensors,
    prefix: &str,
) -> anyhow::Result<()> {
    for param in params.iter() {
        let values = reference_values(param, stored, prefix)?;
        param.set_values(&param.from_reference(&values)?)?;
    }
    Ok(())
}

/// The stored values of a parameter, checked for their shape, as the reference lays them out.
pub(crate) fn reference_values(
    param: &p2_nn::params::Param,
    stored: &StoredTensors,
    prefix: &str,
) -> anyhow::Result<Vec<f32>> {
    let name = format!("{prefix}{}", param.name());
    let values = stored.values(&name)?;
    let (actual, expected) = (stored.shape(&name), param.reference_shape());
    if actual != Some(&expected) {
        bail!("`{name}` has shape {actual:?}, the network needs {expected:?}");
    }
    Ok(values)
}

/// Parameters as a file to be written: `values` in the engine's layout, one list per parameter.
pub(crate) fn tensor_file<'a>(
    name: impl Into<String>,
    metadata: &str,
    params: &Params,
    values: impl Iterator<Item = &'a [f32]>,
) -> anyhow::Result<TensorFile<'static>> {
    Ok(TensorFile {
        name: name.into(),
        metadata: Some(metadata.to_owned()),
        tensors: named_tensors("", params, values)?,
    })
}

/// Parameters, or numbers shaped like them, under a prefix.
pub(crate) fn named_tensors<'a>(
    prefix: &str,
    params: &Params,
    values: impl Iterator<Item = &'a [f32]>,
) -> anyhow::Result<Vec<NamedTensor<'static>>> {
    params
        .iter()
        .zip(values)
        .map(|(param, values)| {
            Ok(NamedTensor {
                name: format!("{prefix}{}", param.name()),
                shape: param.reference_shape(),
                values: param.to_reference(values)?.into(),
            })
        })
        .collect()
}

/// The file of weights that a path means, and newer checkpoints that are damaged.
fn find(path: &Path) -> anyhow::Result<(PathBuf, Vec<Skipped>)> {
    if path.is_file() {
        return Ok((path.to_owned(), Vec::new()));
    }
    let not_found =
        || Problem::new(format!("there is no model at {}", path.display())).hint(MODEL_HINT);
    if !path.is_dir() {
        return Err(not_found().into());
    }
    let (checkpoint, skipped) = match checkpoint::newest(&path.join("checkpoints"))? {
        Some(found) => (found.path, found.skipped),
        None => {
            if checkpoint::is_checkpoint(path) {
                checkpoint::verify(path)?;
            }
            (path.to_owned(), Vec::new())
        }
    };
    let mut averages: Vec<PathBuf> = std::fs::read_dir(&checkpoint)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ema-") && name.ends_with(".safetensors")
        })
        .collect();
    averages.sort_unstable();
    Ok((averages.pop().ok_or_else(not_found)?, skipped))
}

#[cfg(test)]
mod tests {
    use p2_nn::Threads;

    use super::*;
    use crate::config::{Base, Override, resolve};

    #[test]
    fn a_file_cannot_ask_for_a_network_larger_than_itself() {
        let cpu = Cpu::best(Threads::new(1));
        let smoke = resolve(&Base::Preset("smoke".into()), &[]).unwrap();
        let model = Model::new(&smoke, cpu).unwrap();
        let n_parameters = model.params().n_elements() as u128;
        let n_least = least_parameters(&smoke.model);
        assert!(n_least <= n_parameters && n_parameters < 20 * n_least);
        let overrides = ["model.channels=32768", "model.channel_mult=[1,2]"].map(Override::set);
        let large = resolve(&Base::Preset("smoke".into()), &overrides).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save(&path, &model, &large).unwrap();
        let error = format!("{:#}", load(&path, cpu).unwrap_err());
        assert!(
            error.contains("its configuration needs more than"),
            "{error}"
        );
    }

    #[test]
    fn a_saved_model_comes_back_with_its_weights_and_its_configuration() {
        let run = resolve(&Base::Preset("smoke".into()), &[]).unwrap();
        let cpu = Cpu::best(Threads::new(1));
        let model = Model::new(&run, cpu).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save(&path, &model, &run).unwrap();

        let loaded = load(&path, cpu).unwrap();
        assert_eq!(
            loaded.run.to_metadata().unwrap(),
            run.to_metadata().unwrap()
        );
        let pairs = model.params().iter().zip(loaded.model.params().iter());
        for (saved, loaded) in pairs {
            assert_eq!(
                saved.values().unwrap(),
                loaded.values().unwrap(),
                "{}",
                saved.name()
            );
        }
    }
}
