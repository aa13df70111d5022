//! `p2 train-classifier`: resolves the configuration, then trains a classifier of noised images.

use std::time::Instant;

use anyhow::Context as _;

use super::train::{limits, tell_end};
use crate::cli::{ExitStatus, TrainClassifierArgs};
use crate::config::ClassifierRun;
use crate::engine;
use crate::print::Printer;
use crate::signal::Stop;
use crate::train::{ClassifierSetup, train_classifier as train};

/// Trains, or with `--dry-run` prints what would be trained.
pub(super) fn train_classifier(
    arguments: &TrainClassifierArgs,
    printer: &Printer,
) -> anyhow::Result<ExitStatus> {
    let (started, arguments) = (Instant::now(), &arguments.run);
    let run = ClassifierRun::resolve(&arguments.base(), &arguments.overrides())?;
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
    let stop = Stop::install().context("cannot watch for Ctrl-C")?;
    let outcome = engine::with_threads(arguments.threads, |cpu| {
        let setup = ClassifierSetup {
            run,
            out: arguments.out(),
            start: arguments.start(),
            device: arguments.device,
            cpu,
        };
        train(setup, limits(arguments, started, &stop), printer)
    })?;
    if arguments.json {
        printer.json(&outcome)?;
    }
    let end = (outcome.images_seen, outcome.finished);
    tell_end(&outcome.run, end, printer);
    Ok(stop
        .requested()
        .map_or(ExitStatus::Done, ExitStatus::Stopped))
}
