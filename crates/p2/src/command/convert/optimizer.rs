//! The state of an optimizer: PyTorch's, counted by parameter, and p2's, named by it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use p2_nn::Params;
use serde::{Deserialize, Serialize};

use super::{cpu, network};
use crate::checkpoint::{self, NamedTensor, StoredTensors, TensorFile};
use crate::classifier::file::WEIGHTS;
use crate::classifier::{self, Classifier};
use crate::cli::ConvertArgs;
use crate::config::Run;
use crate::config::section::Optim;
use crate::model::Model;
use crate::model::file::{load, reference_values};
use crate::print::Printer;
use crate::problem::Problem;
use crate::torch::{self, Adam, Moment, TorchFile};

/// What a converted file remembers beside the moments.
#[derive(Debug, Deserialize, Serialize)]
struct Metadata {
    step: u64,
}

/// What an optimizer moves, and how it is set.
struct Network {
    params: Params,
    optim: Optim,
}

impl Network {
    /// That of a model, or of a classifier.
    fn load(path: &Path) -> anyhow::Result<Self> {
        let model = match load(path, cpu()) {
            Ok(loaded) => return Ok(Self::of(loaded.model.params(), &loaded.run.optim)),
            Err(error) => error,
        };
        match classifier::file::load(path, cpu()) {
            Ok(loaded) => Ok(Self::of(loaded.classifier.params(), &loaded.run.optim)),
            Err(_) => Err(model),
        }
    }

    fn of(params: &Params, optim: &Optim) -> Self {
        Self {
            params: params.clone(),
            optim: optim.clone(),
        }
    }
}

/// The network that the user names, if one is named.
fn named(arguments: &ConvertArgs) -> anyhow::Result<Option<Network>> {
    if let Some(path) = &arguments.like {
        return Network::load(path).map(Some);
    }
    if let Some(run) = super::classifier::given(arguments)? {
        let classifier = Classifier::zeros(&run, cpu())?;
        return Ok(Some(Network::of(classifier.params(), &run.optim)));
    }
    let run = network::given(arguments)?;
    let of = |run: Run| Ok(Network::of(Model::zeros(&run, cpu())?.params(), &run.optim));
    run.map(of).transpose()
}

/// The start of the names of a moment in p2's files.
fn prefix(moment: Moment) -> String {
    format!("{}.", moment.name())
}

/// Whether a file of p2 holds moments.
pub(super) fn is_optimizer(stored: &StoredTensors) -> bool {
    stored
        .names()
        .any(|name| name.starts_with(&prefix(Moment::First)))
}

/// PyTorch's state as the `optimizer.safetensors` of a checkpoint.
pub(super) fn from_torch(
    file: &mut TorchFile,
    adam: &Adam,
    arguments: &ConvertArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let network = named(arguments)?.ok_or_else(|| {
        Problem::new("the state of an optimizer does not say which network it is of")
            .because("parameters are counted in it, not named")
            .hint(
                "add --like MODEL, such as the converted weights of the same run, or --preset NAME",
            )
    })?;
    let place = arguments.key.as_deref().unwrap_or_default();
    check_count(file, adam, place, network.params.len())?;
    let mut tensors = Vec::new();
    for (k, param) in network.params.iter().enumerate() {
        for moment in Moment::BOTH {
            let name = moment.tensor_name(place, k);
            let found = file.tensors().get(&name);
            let found =
                found.with_context(|| format!("the optimizer has no `{name}`, as Adam has"))?;
            let (found, shape) = (&found.shape, param.reference_shape());
            if *found != shape {
                let message = format!(
                    "`{name}` has shape {found:?}, `{}` has {shape:?}",
                    param.name()
                );
                return Err(unlike(message).into());
            }
            tensors.push(NamedTensor {
                name: format!("{}{}", prefix(moment), param.name()),
                values: file.values(&name)?.into(),
                shape,
            });
        }
    }
    let output = &arguments.output;
    let metadata = Metadata { step: adam.step };
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let file = TensorFile {
        name: name.into_owned(),
        metadata: Some(serde_json::to_string(&metadata)?),
        tensors,
    };
    checkpoint::save_file(output, &file)?;
    tell(adam, &network.optim, printer);
    Ok(())
}

/// Refuses an optimizer of another network, or of one in half precision.
fn check_count(file: &TorchFile, adam: &Adam, place: &str, n_params: usize) -> Result<(), Problem> {
    if adam.n_params == n_params {
        return Ok(());
    }
    let shape = |k| {
        let tensor = file.tensors().get(&Moment::First.tensor_name(place, k));
        tensor.map(|tensor| tensor.shape.as_slice())
    };
    if let (2, Some([_]), Some([1, _])) = (adam.n_params, shape(0), shape(1)) {
        return Err(Problem::new("this is the optimizer of a run in half precision")
            .because("it has the moments of all vectors in one long tensor, of all others in a second")
            .hint("p2 trains in f32: begin with the weights alone, by p2 train --init-from"));
    }
    let n = adam.n_params;
    Err(unlike(format!(
        "the optimizer moves {n} parameters, the network has {n_params}"
    )))
}

fn unlike(message: String) -> Problem {
    Problem::new(message)
        .because("the optimizer is of another network than the configuration says")
        .hint("give the network with --like MODEL, or set what differs with --set")
}

/// What the optimizer was set to, and where the configuration has something else.
fn tell(adam: &Adam, optim: &Optim, printer: &Printer) {
    printer.note(format_args!(
        "moments of {} parameters after {} steps",
        adam.n_params, adam.step
    ));
    let pairs = [
        ("lr", adam.lr, optim.lr),
        ("beta1", adam.betas[0], optim.beta1),
        ("beta2", adam.betas[1], optim.beta2),
        ("eps", adam.eps, optim.eps),
        ("weight_decay", adam.weight_decay, optim.weight_decay),
    ];
    for (key, was, is) in pairs.into_iter().filter(|(_, was, is)| was != is) {
        printer.warn(format_args!(
            "the optimizer had {key} = {was}, the configuration has {is}: to go on as before, train with --set \
             optim.{key}={was}"
        ));
    }
}

/// The `optimizer.safetensors` of a checkpoint as PyTorch's state.
pub(super) fn to_torch(
    stored: &StoredTensors,
    arguments: &ConvertArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let Network { params, optim } = network_of(arguments)?;
    let n_stored = stored.names().count();
    ensure!(
        n_stored == 2 * params.len(),
        unlike(format!(
            "the optimizer has {n_stored} moments, the network {} parameters",
            params.len()
        ))
    );
    let moments = params.iter().map(|param| -> anyhow::Result<_> {
        let tensor = |moment| -> anyhow::Result<_> {
            Ok(NamedTensor {
                name: param.name().to_owned(),
                shape: param.reference_shape(),
                values: reference_values(param, stored, &prefix(moment))?.into(),
            })
        };
        Ok([tensor(Moment::First)?, tensor(Moment::Second)?])
    });
    let moments = moments.collect::<anyhow::Result<Vec<_>>>()?;
    let adam = Adam {
        step: step(stored, &arguments.input)?,
        lr: optim.lr,
        betas: [optim.beta1, optim.beta2],
        eps: optim.eps,
        weight_decay: optim.weight_decay,
        n_params: params.len(),
    };
    torch::save_adam(&arguments.output, &adam, &moments)
        .with_context(|| format!("cannot write {}", arguments.output.display()))?;
    tell(&adam, &optim, printer);
    Ok(())
}

/// The network of an optimizer: as the user says, or that of the weights beside it.
fn network_of(arguments: &ConvertArgs) -> anyhow::Result<Network> {
    if let Some(network) = named(arguments)? {
        return Ok(network);
    }
    let weights = ["model.safetensors", WEIGHTS].map(|name| beside(&arguments.input, name));
    let Some(weights) = weights.into_iter().find(|path| path.is_file()) else {
        return Err(Problem::new("which network the optimizer is of stands beside it in a checkpoint, and nothing does here")
            .hint("give the file in its checkpoint, or add --like MODEL or --preset NAME")
            .into());
    };
    Network::load(&weights)
}

/// The steps that an optimizer has taken: a converted file says it, of a checkpoint its state does.
fn step(stored: &StoredTensors, path: &Path) -> anyhow::Result<u64> {
    if let Some(metadata) = stored.metadata() {
        let metadata: Metadata = serde_json::from_str(metadata)?;
        return Ok(metadata.step);
    }
    let folder = beside(path, "");
    if !checkpoint::is_checkpoint(&folder) {
        return Err(Problem::new("how many steps the optimizer has taken stands beside it in a checkpoint, and nothing does here")
            .hint("give the file in its checkpoint")
            .into());
    }
    Ok(checkpoint::verify(&folder)?.position.step)
}

fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}
