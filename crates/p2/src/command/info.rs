//! `p2 info`: what a model, a classifier or a preset is.

use p2_nn::{Cpu, Params, Threads};
use serde_json::json;

use crate::classifier::{self, Classifier};
use crate::cli::{ExitStatus, InfoArgs};
use crate::config::{Base, CLASSIFIER_PRESETS, Checked, ClassifierRun, Configuration, resolve};
use crate::model::Model;
use crate::model::file::load;
use crate::print::Printer;

/// Prints the size of the network and its configuration.
pub(super) fn info(arguments: &InfoArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let cpu = Cpu::best(Threads::new(1));
    let is_classifier = |name: &str| CLASSIFIER_PRESETS.iter().any(|preset| preset.name == name);
    match (&arguments.model, arguments.preset.as_deref()) {
        (Some(path), _) => match (load(path, cpu), classifier::file::load(path, cpu)) {
            (Err(_), Ok(loaded)) => {
                print(&loaded.run, loaded.classifier.params(), arguments, printer)?;
            }
            (loaded, _) => {
                let loaded = loaded?;
                print(&loaded.run, loaded.model.params(), arguments, printer)?;
            }
        },
        (None, Some(name)) if is_classifier(name) => {
            let run = ClassifierRun::resolve(&Base::Preset(name.to_owned()), &[])?;
            let classifier = Classifier::zeros(&run, cpu)?;
            print(&run, classifier.params(), arguments, printer)?;
        }
        (None, preset) => {
            let run = resolve(&Base::Preset(preset.unwrap_or_default().to_owned()), &[])?;
            print(&run, Model::zeros(&run, cpu)?.params(), arguments, printer)?;
        }
    }
    Ok(ExitStatus::Done)
}

fn print<C: Configuration>(
    run: &Checked<C>,
    params: &Params,
    arguments: &InfoArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let (n_parameters, n_tensors) = (params.n_elements(), params.len());
    if arguments.json {
        return printer.json(&json!({
            "kind": C::WHAT,
            "n_parameters": n_parameters,
            "n_tensors": n_tensors,
            "config": run.config(),
        }));
    }
    printer.data(format_args!(
        "# {n_parameters} parameters in {n_tensors} tensors\n"
    ))?;
    Ok(printer.data(run.to_toml()?.trim_end())?)
}
