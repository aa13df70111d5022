//! `p2 convert`: weights and optimizers of PyTorch to files of p2, and back.

mod classifier;
mod network;
mod optimizer;

use std::path::Path;

use anyhow::Context as _;
use p2_nn::{Cpu, Params, Threads};

use crate::checkpoint::{NamedTensor, StoredTensors};
use crate::cli::{ConvertArgs, ExitStatus};
use crate::model::Model;
use crate::model::file::{load, named_tensors, save};
use crate::print::Printer;
use crate::problem::Problem;
use crate::torch::{self, TorchFile};
use network::Weights;

/// Converts in the direction that the endings of the files say.
pub(super) fn convert(arguments: &ConvertArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let (input, output) = (&arguments.input, &arguments.output);
    match (is_torch(input), is_torch(output)) {
        (true, false) => from_torch(arguments, printer)?,
        (false, true) => to_torch(arguments, printer)?,
        _ => {
            let message = format!(
                "{} and {} are of one kind",
                input.display(),
                output.display()
            );
            return Err(Problem::new(message)
                .hint("one of them must end in .pt or .pth, the other not")
                .into());
        }
    }
    printer.note(format_args!("written: {}", output.display()));
    Ok(ExitStatus::Done)
}

fn is_torch(path: &Path) -> bool {
    let ending = path.extension().map(std::ffi::OsStr::to_ascii_lowercase);
    ending.is_some_and(|ending| ending == "pt" || ending == "pth")
}

fn cpu() -> Cpu {
    Cpu::best(Threads::new(1))
}

/// What a PyTorch file holds, as a file of p2.
fn from_torch(arguments: &ConvertArgs, printer: &Printer) -> anyhow::Result<()> {
    let mut file = TorchFile::open(&arguments.input)?;
    let path = arguments.key.as_deref().unwrap_or_default();
    let adam = file.adam(path).with_context(|| {
        let message = format!(
            "cannot convert the optimizer in {}",
            arguments.input.display()
        );
        Problem::new(message)
            .hint("p2 goes on from AdamW alone, or from weights without an optimizer")
    })?;
    match adam {
        Some(adam) => optimizer::from_torch(&mut file, &adam, arguments, printer),
        None => weights_from_torch(file, arguments, printer),
    }
}

/// The weights of a PyTorch file as a model.
fn weights_from_torch(
    file: TorchFile,
    arguments: &ConvertArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let mut weights = Weights::of(file, arguments);
    if weights.are_of_a_classifier() {
        return classifier::from_torch(&mut weights, arguments, printer);
    }
    let run = weights.configuration(printer)?;
    let model = Model::zeros(&run, cpu())?;
    weights.check(&model, &run)?;
    weights.fill(model.params())?;
    save(&arguments.output, &model, &run)?;
    printer.note(format_args!(
        "{} numbers in {} tensors",
        model.params().n_elements(),
        model.params().len()
    ));
    Ok(())
}

/// A model, or an optimizer of a checkpoint, as a file of PyTorch.
fn to_torch(arguments: &ConvertArgs, printer: &Printer) -> anyhow::Result<()> {
    let input = &arguments.input;
    if arguments.key.is_some() {
        return Err(Problem::new("--key is a place in a PyTorch file")
            .hint("leave it away to write one")
            .into());
    }
    let stored = input
        .is_file()
        .then(|| StoredTensors::open(input))
        .transpose()?;
    if let Some(stored) = stored.filter(optimizer::is_optimizer) {
        return optimizer::to_torch(&stored, arguments, printer);
    }
    if arguments.like.is_some() || arguments.base().is_some() {
        return Err(Problem::new("a model file says itself what it is")
            .hint("leave --preset and --like away")
            .into());
    }
    match load(input, cpu()) {
        Ok(loaded) => {
            for skipped in &loaded.skipped {
                printer.warn(skipped);
            }
            save_weights(&arguments.output, loaded.model.params())
        }
        Err(error) => match crate::classifier::file::load(input, cpu()) {
            Ok(loaded) => save_weights(&arguments.output, loaded.classifier.params()),
            Err(_) => Err(error),
        },
    }
}

/// Weights as a state dictionary of PyTorch, by the reference's names and in its order.
fn save_weights(output: &Path, params: &Params) -> anyhow::Result<()> {
    let values = params
        .iter()
        .map(p2_nn::params::Param::values)
        .collect::<Result<Vec<_>, _>>()?;
    let tensors: Vec<NamedTensor<'_>> =
        named_tensors("", params, values.iter().map(Vec::as_slice))?;
    torch::save(output, &tensors).with_context(|| format!("cannot write {}", output.display()))
}
