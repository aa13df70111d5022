//! `p2 info`: what a model or a preset is.

use p2_nn::{Cpu, Threads};
use serde_json::json;

use crate::cli::{ExitStatus, InfoArgs};
use crate::config::{Base, Run, resolve};
use crate::model::Model;
use crate::model::file::load;
use crate::print::Printer;

/// Prints the size of the network and its configuration.
pub(super) fn info(arguments: &InfoArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let cpu = Cpu::best(Threads::new(1));
    let (run, model) = match (&arguments.model, &arguments.preset) {
        (Some(path), _) => {
            let loaded = load(path, cpu)?;
            (loaded.run, loaded.model)
        }
        (None, preset) => {
            let run = resolve(&Base::Preset(preset.clone().unwrap_or_default()), &[])?;
            let model = Model::zeros(&run, cpu)?;
            (run, model)
        }
    };
    print(&run, &model, arguments, printer)?;
    Ok(ExitStatus::Done)
}

fn print(run: &Run, model: &Model, arguments: &InfoArgs, printer: &Printer) -> anyhow::Result<()> {
    let (n_parameters, n_tensors) = (model.params().n_elements(), model.params().len());
    if arguments.json {
        return printer.json(&json!({
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
