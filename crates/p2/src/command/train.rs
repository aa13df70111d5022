//! `p2 train`: resolves the configuration, then trains.

use crate::cli::{ExitStatus, TrainArgs};
use crate::config::resolve;
use crate::print::Printer;

/// Trains, or with `--dry-run` prints what would be trained.
pub(super) fn train(arguments: &TrainArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let run = resolve(&arguments.base(), &arguments.overrides())?;
    for warning in run.warnings() {
        printer.warn(warning);
    }
    if arguments.dry_run {
        if arguments.json {
            printer.json(run.config())?;
        } else {
            printer.data(run.to_toml()?.trim_end())?;
        }
        return Ok(ExitStatus::Done);
    }
    run.data_path()?;
    anyhow::bail!("training is not wired yet")
}
