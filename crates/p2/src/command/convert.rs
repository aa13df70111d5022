//! `p2 convert`: weights of PyTorch to a model file, and back.

use std::path::Path;

use anyhow::Context as _;
use p2_nn::{Cpu, Threads};

use crate::checkpoint::NamedTensor;
use crate::cli::{ConvertArgs, ExitStatus};
use crate::config::{Run, resolve};
use crate::model::Model;
use crate::model::file::{load, named_tensors, save};
use crate::print::Printer;
use crate::problem::Problem;
use crate::torch::{self, TorchFile};

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

/// The weights of a PyTorch file as a model of the configuration that is given.
fn from_torch(arguments: &ConvertArgs, printer: &Printer) -> anyhow::Result<()> {
    let run = configuration(arguments)?;
    let mut file = TorchFile::open(&arguments.input)?;
    let prefix = match &arguments.key {
        None => String::new(),
        Some(key) => format!("{key}."),
    };
    let model = Model::zeros(&run, cpu())?;
    check_names(&file, &prefix, &model, arguments)?;
    for param in model.params().iter() {
        let name = format!("{prefix}{}", param.name());
        let (found, expected) = (&file.tensors()[&name].shape, param.reference_shape());
        if *found != expected {
            let message = format!("`{name}` has shape {found:?}, the network needs {expected:?}");
            return Err(unlike(message).into());
        }
        let values = param.from_reference(&file.values(&name)?)?;
        param.set_values(&values)?;
    }
    save(&arguments.output, &model, &run)?;
    printer.note(format_args!(
        "{} numbers in {} tensors",
        model.params().n_elements(),
        model.params().len()
    ));
    Ok(())
}

/// What the weights are: the names and shapes of a file leave open how many heads, which schedule, which prediction.
fn configuration(arguments: &ConvertArgs) -> anyhow::Result<Run> {
    if let Some(path) = &arguments.like {
        return Ok(load(path, cpu())?.run);
    }
    let Some(base) = arguments.base() else {
        return Err(
            Problem::new("a PyTorch file does not say what its weights are")
                .because("heads, noise schedule and prediction stand nowhere in it")
                .hint("add --preset NAME, with --set for what differs, or --like MODEL")
                .into(),
        );
    };
    Ok(resolve(&base, &arguments.overrides())?)
}

/// Every tensor has its place, and every place its tensor.
fn check_names(
    file: &TorchFile,
    prefix: &str,
    model: &Model,
    arguments: &ConvertArgs,
) -> Result<(), Problem> {
    let names: std::collections::BTreeSet<String> = model
        .params()
        .iter()
        .map(|param| format!("{prefix}{}", param.name()))
        .collect();
    let found = file.tensors().keys();
    let mut here = found.filter(|name| name.starts_with(prefix));
    if let Some(unknown) = here.find(|name| !names.contains(*name)) {
        let mut problem = unlike(format!("the network has no `{unknown}`"));
        let first = unknown.split('.').next().unwrap_or_default();
        if arguments.key.is_none()
            && ["ema", "model", "state_dict", "model_state_dict"].contains(&first)
        {
            problem = problem.hint(format!("the weights lie deeper: add --key {first}"));
        }
        return Err(problem);
    }
    match names
        .iter()
        .find(|name| !file.tensors().contains_key(*name))
    {
        None => Ok(()),
        Some(missing) => Err(unlike(format!("the file has no `{missing}`"))),
    }
}

fn unlike(message: String) -> Problem {
    Problem::new(message)
        .because("the weights are of another network than the configuration says")
        .hint("set what differs with --set, such as --set model.n_res_blocks=2; `p2 info --preset NAME` shows all")
}

/// A model as a state dictionary of PyTorch, by the reference's names and in its order.
fn to_torch(arguments: &ConvertArgs, printer: &Printer) -> anyhow::Result<()> {
    if arguments.key.is_some() || arguments.like.is_some() || arguments.base().is_some() {
        return Err(Problem::new("a model file says itself what it is")
            .hint("leave --preset, --like and --key away")
            .into());
    }
    let loaded = load(&arguments.input, cpu())?;
    for skipped in &loaded.skipped {
        printer.warn(skipped);
    }
    let params = loaded.model.params();
    let values = params
        .iter()
        .map(p2_nn::params::Param::values)
        .collect::<Result<Vec<_>, _>>()?;
    let tensors: Vec<NamedTensor<'_>> =
        named_tensors("", params, values.iter().map(Vec::as_slice))?;
    torch::save(&arguments.output, &tensors)
        .with_context(|| format!("cannot write {}", arguments.output.display()))
}
