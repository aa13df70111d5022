//! A run from its folder to its end: begin or continue, train, finish.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use p2_nn::Cpu;
use serde::Serialize;

use super::held_out::StageErrors;
use super::linear_denoiser::Fitting;
use super::observer::{Means, Observer};
use super::opened::{Opened, full_path, open_loader};
use super::{Clock, Limits, Trainer};
use crate::checkpoint::{Found, StoredTensors};
use crate::cli::Start;
use crate::config::{Configuration as _, Run};
use crate::data::{Dataset, Split};
use crate::engine::Device;
use crate::model::file::open_weights;
use crate::model::{Model, precision};
use crate::monitor::progress::{Course, Progress};
use crate::monitor::records::Records;
use crate::print::Printer;
use crate::problem::Problem;
use crate::run_dir::{Engine, Manifest, RunDir};

/// What is trained, where, and on what.
#[derive(Debug)]
pub struct Setup {
    /// The configuration.
    pub run: Run,
    /// The folder of the run.
    pub out: PathBuf,
    /// Whether the run is begun or continued.
    pub start: Start,
    /// A model to begin with, in place of random weights.
    pub init_from: Option<PathBuf>,
    /// Where to compute.
    pub device: Device,
    /// Instructions and threads.
    pub cpu: Cpu,
}

/// How a process ended.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The folder of the run.
    pub run: PathBuf,
    /// Images that the run has seen.
    pub images_seen: u64,
    /// Its optimizer steps.
    pub step: u64,
    /// Whether all its images have been seen.
    pub finished: bool,
    /// The last held-out error on the noise, per stage.
    pub held_out_mse_eps: Option<StageErrors>,
}

/// Trains a run, or goes on with it, until it is finished or a limit is reached.
///
/// # Errors
/// If the images, the folder or a checkpoint cannot be used, or the loss is not finite.
pub fn train(
    setup: Setup,
    limits: impl FnOnce(Clock) -> Limits,
    printer: &Printer,
) -> anyhow::Result<Outcome> {
    let run = setup.run;
    run.data_path()?;
    let dataset = Arc::new(open_dataset(&run, printer)?);
    let mut opened = Opened::open((&setup.out, setup.start), &run, &dataset, printer)?;
    let init = match &opened.found {
        Some(_) => None,
        None => open_init(setup.init_from.as_deref(), &mut opened.manifest)?,
    };
    let cpu = setup.cpu.with_precision(precision(run.train.precision));
    opened.record(&run, &Engine::of(setup.device, cpu), printer)?;
    let Opened {
        run_dir,
        found,
        clock,
        ..
    } = opened;
    let mut loader = open_loader(run.pace(), &dataset, clock, setup.cpu)?;
    let mut trainer = Trainer::new(run, clock, setup.cpu)?;
    take_up(&mut trainer, found.as_ref(), init.as_ref(), printer)?;
    let limits = limits(clock);
    let saved_at = found.map(|found| found.state.position.images_seen);
    let watched = (&trainer, saved_at);
    let mut observer = Observer::new(watched, &run_dir, &dataset, setup.cpu, &limits, printer)?;
    observer.tell_skipped();
    if init.is_some() {
        // From here on the run needs its model no longer.
        observer.save(&trainer)?;
    }
    trainer.run(&mut loader, &mut observer, &limits)?;
    finish(&trainer, &mut observer, &limits)?;
    observer.tell_skipped();
    observer.progress.finish();
    let Clock {
        images_seen, step, ..
    } = trainer.clock;
    Ok(Outcome {
        run: run_dir.path().to_owned(),
        images_seen,
        step,
        finished: trainer.is_finished(),
        held_out_mse_eps: observer.held_out,
    })
}

/// Opens the images and says what they are.
fn open_dataset(run: &Run, printer: &Printer) -> anyhow::Result<Dataset> {
    let dataset = Dataset::open(&run.data)?;
    dataset.check_batch_size(run.train.batch_size)?;
    let n_classes = run.model.n_classes;
    if n_classes > 0 && dataset.class_names().len() > n_classes {
        let message = format!(
            "{} has {} classes, the model only {n_classes}",
            run.data.path,
            dataset.class_names().len()
        );
        return Err(Problem::new(message).hint("raise model.n_classes").into());
    }
    if n_classes > dataset.class_names().len() {
        printer.warn(format_args!(
            "{} has {} sub-folders for the {n_classes} classes of the model: the others learn nothing",
            run.data.path,
            dataset.class_names().len()
        ));
    }
    printer.note(format_args!(
        "{}: {} images to train on, {} held out",
        run.data.path,
        dataset.n_images(Split::Training),
        dataset.n_images(Split::HeldOut),
    ));
    Ok(dataset)
}

/// The weights that a run begins with, if it begins with any; the manifest remembers which.
fn open_init(
    path: Option<&Path>,
    manifest: &mut Manifest,
) -> anyhow::Result<Option<(PathBuf, StoredTensors)>> {
    let Some(path) = path else {
        let Some(before) = &manifest.init_from else {
            return Ok(None);
        };
        return Err(
            Problem::new(format!("the run was to begin with the weights of {before}"))
                .because("it ended before they were saved with it")
                .hint("give them again with --init-from FILE")
                .into(),
        );
    };
    let (path, stored) = open_weights(path)?;
    manifest.init_from = Some(full_path(&path.display().to_string()));
    Ok(Some((path, stored)))
}

/// Puts a run where its checkpoint left it, or gives it the weights that it begins with.
fn take_up(
    trainer: &mut Trainer,
    found: Option<&Found>,
    init: Option<&(PathBuf, StoredTensors)>,
    printer: &Printer,
) -> anyhow::Result<()> {
    if let Some(found) = found {
        let afresh = trainer
            .restore(found)
            .with_context(|| format!("cannot continue {}", found.path.display()))?;
        afresh.iter().for_each(|text| printer.note(text));
    }
    let Some((path, stored)) = init else {
        return Ok(());
    };
    let path = path.display();
    let fresh = trainer.begin_with(stored).with_context(|| {
        Problem::new(format!("cannot begin with the weights of {path}"))
            .hint("the [model] section must be that of the model, but for its classes; `p2 info` shows it")
    })?;
    printer.note(format_args!("beginning with the weights of {path}"));
    for name in fresh {
        printer.note(format_args!(
            "`{name}` starts afresh: the model has other classes"
        ));
    }
    Ok(())
}

/// Leaves the run as it can be looked at and continued. After a signal only the latter.
fn finish(trainer: &Trainer, observer: &mut Observer<'_>, limits: &Limits) -> anyhow::Result<()> {
    if observer.saved_at != Some(trainer.clock.images_seen) {
        observer.save(trainer)?;
    }
    let train = &trainer.run.train;
    if limits.stop.requested().is_none() {
        let passed = |count: crate::config::Count| trainer.clock.passed(super::Interval(count.0));
        if train.held_out_every.0 > 0 && !passed(train.held_out_every) {
            observer.evaluate(trainer)?;
        }
        if train.sample_every.0 > 0 && !passed(train.sample_every) {
            observer.draw_grid(trainer)?;
        }
    }
    Ok(())
}

impl Trainer {
    fn is_finished(&self) -> bool {
        self.clock.images_seen >= self.run.train.total_images.0
    }
}

impl<'a> Observer<'a> {
    fn new(
        (trainer, saved_at): (&Trainer, Option<u64>),
        run_dir: &'a RunDir,
        dataset: &Arc<Dataset>,
        cpu: Cpu,
        limits: &Limits,
        printer: &'a Printer,
    ) -> anyhow::Result<Self> {
        let averaged = Model::zeros(&trainer.run, cpu)?;
        let is_measured =
            trainer.run.train.held_out_every.0 > 0 && dataset.n_images(Split::HeldOut) > 0;
        let from = trainer.clock.images_seen;
        let total = trainer.run.train.total_images.0;
        let to = limits.max_images.map_or(total, |max| max.min(total));
        let deadline = limits.deadline;
        Ok(Self {
            printer,
            run_dir,
            dataset: Arc::clone(dataset),
            objective: averaged.unweighted()?,
            averaged,
            linear: is_measured.then(|| Fitting::start(dataset)).transpose()?,
            records: Records::open(run_dir, from, saved_at)?,
            progress: Progress::new(printer, Course { from, to, deadline }),
            interval: Means::new(),
            n_skipped: 0,
            stop: limits.stop.clone(),
            image_secs: 0.0,
            held_out_secs: None,
            grid_secs: None,
            held_out: None,
            saved_at,
        })
    }
}
