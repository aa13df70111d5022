//! `p2 train`: resolves the configuration, then trains.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::bench::expected_peak_memory;
use crate::cli::{ExitStatus, RunArgs, TrainArgs};
use crate::config::{Run, resolve};
use crate::engine;
use crate::print::Printer;
use crate::signal::Stop;
use crate::train::{self, Clock, Limits, Setup};

/// Trains, or with `--dry-run` prints what would be trained.
pub(super) fn train(arguments: &TrainArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let (started, init_from) = (Instant::now(), arguments.init_from.clone());
    let arguments = &arguments.run;
    let run = resolve(&arguments.base(), &arguments.overrides())?;
    for warning in run.warnings() {
        printer.warn(warning);
    }
    if arguments.dry_run {
        return plan(arguments, &run, printer);
    }
    let stop = Stop::install().context("cannot watch for Ctrl-C")?;
    let outcome = engine::with_threads(arguments.threads, |cpu| {
        let setup = Setup {
            run,
            out: arguments.out(),
            start: arguments.start(),
            init_from,
            device: arguments.device,
            cpu,
        };
        train::train(setup, limits(arguments, started, &stop), printer)
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

/// What ends the process before its run is finished.
pub(super) fn limits(
    arguments: &RunArgs,
    started: Instant,
    stop: &Stop,
) -> impl FnOnce(Clock) -> Limits {
    let (max_images, max_steps) = (arguments.max_images, arguments.max_steps);
    let minutes = arguments.max_minutes;
    let stop = stop.clone();
    move |clock| Limits {
        max_images: max_images.map(|count| count.0),
        max_step: max_steps.map(|n_steps| clock.step.saturating_add(n_steps)),
        deadline: minutes
            .and_then(|minutes| Duration::try_from_secs_f64(60.0 * minutes).ok())
            .and_then(|time| started.checked_add(time)),
        stop,
    }
}

/// Says how far the run has come.
pub(super) fn tell_end(run: &Path, (images_seen, finished): (u64, bool), printer: &Printer) {
    let path = run.display();
    if finished {
        printer.note(format_args!("finished: {path}, {images_seen} images"));
    } else {
        printer.note(format_args!(
            "stopped at {images_seen} images; the same command continues {path}"
        ));
    }
}

/// Prints the resolved configuration, then how much memory it takes: for that a few images are tried.
fn plan(arguments: &RunArgs, run: &Run, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if arguments.json {
        printer.json(run.config())?;
    } else {
        printer.data(run.to_toml()?.trim_end())?;
    }
    let expected = engine::with_threads(arguments.threads, |cpu| expected_peak_memory(run, cpu))?;
    if let Some(bytes) = expected {
        let gigabytes = bytes as f64 / 1e9;
        printer.note(format_args!("peak memory: about {gigabytes:.2} GB"));
    }
    Ok(ExitStatus::Done)
}
