//! A classifier's run from its folder to its end: begin or continue, train, finish.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use p2_nn::Cpu;
use serde::Serialize;

use super::Trainer;
use super::held_out::HeldOut;
use super::watch::{Sums, Watch, is_measured};
use crate::cli::Start;
use crate::config::{ClassifierRun, Configuration as _, Count};
use crate::data::{Dataset, Split};
use crate::engine::Device;
use crate::model::precision;
use crate::monitor::progress::{Course, Progress};
use crate::monitor::records::Records;
use crate::print::Printer;
use crate::problem::Problem;
use crate::run_dir::{Engine, RunDir};
use crate::train::opened::{Opened, open_loader};
use crate::train::{Clock, Interval, Limits};

/// What is trained, where, and on what.
#[derive(Debug)]
pub struct ClassifierSetup {
    /// The configuration.
    pub run: ClassifierRun,
    /// The folder of the run.
    pub out: PathBuf,
    /// Whether the run is begun or continued.
    pub start: Start,
    /// Where to compute.
    pub device: Device,
    /// Instructions and threads.
    pub cpu: Cpu,
}

/// How a process ended.
#[derive(Debug, Serialize)]
pub struct ClassifierOutcome {
    /// The folder of the run.
    pub run: PathBuf,
    /// Images that the run has seen.
    pub images_seen: u64,
    /// Its optimizer steps.
    pub step: u64,
    /// Whether all its images have been seen.
    pub finished: bool,
    /// The last held-out losses and accuracies: clean-up, content, coarse.
    pub held_out: Option<[HeldOut; 3]>,
}

/// Trains a classifier, or goes on with it, until it is finished or a limit is reached.
///
/// # Errors
/// If the images, the folder or a checkpoint cannot be used, or the loss is not finite.
///
/// # Source
/// Dhariwal and Nichol 2021, arXiv 2105.05233, section 4: cross-entropy at uniformly drawn levels.
pub fn train_classifier(
    setup: ClassifierSetup,
    limits: impl FnOnce(Clock) -> Limits,
    printer: &Printer,
) -> anyhow::Result<ClassifierOutcome> {
    let run = setup.run;
    run.data_path()?;
    let dataset = Arc::new(open_dataset(&run, printer)?);
    let mut opened = Opened::open((&setup.out, setup.start), &run, &dataset, printer)?;
    let cpu = setup.cpu.with_precision(precision(run.train.precision));
    opened.record(&run, &Engine::of(setup.device, cpu), printer)?;
    let (found, clock) = (opened.found.take(), opened.clock);
    let mut loader = open_loader(run.pace(), &dataset, clock, setup.cpu)?;
    let mut trainer = Trainer::new(run, clock, setup.cpu)?;
    if let Some(found) = &found {
        trainer
            .restore(found)
            .with_context(|| format!("cannot continue {}", found.path.display()))?;
    }
    let limits = limits(clock);
    let saved_at = found.map(|found| found.state.position.images_seen);
    let watched = (&trainer, saved_at);
    let mut watch = Watch::new(watched, &opened.run_dir, &dataset, &limits, printer)?;
    trainer.run(&mut loader, &mut watch, &limits)?;
    finish(&trainer, &mut watch, &limits)?;
    for skipped in dataset.skipped() {
        printer.warn(format_args!("skipped {}: {}", skipped.file, skipped.reason));
    }
    watch.progress.finish();
    Ok(ClassifierOutcome {
        run: opened.run_dir.path().to_owned(),
        images_seen: trainer.clock.images_seen,
        step: trainer.clock.step,
        finished: trainer.is_finished(),
        held_out: watch.held_out,
    })
}

/// Opens the images, which must have classes, and not more than the classifier tells apart.
fn open_dataset(run: &ClassifierRun, printer: &Printer) -> anyhow::Result<Dataset> {
    let dataset = Dataset::open(&run.data)?;
    dataset.check_batch_size(run.train.batch_size)?;
    let (path, n_found) = (&run.data.path, dataset.class_names().len());
    let n_classes = run.model.n_classes;
    if n_found < 2 {
        let message = format!("{path} has {n_found} classes: there is nothing to tell apart");
        return Err(Problem::new(message)
            .hint("sort the images into a folder for each class")
            .into());
    }
    if n_found > n_classes {
        let message = format!("{path} has {n_found} classes, the classifier only {n_classes}");
        return Err(Problem::new(message).hint("raise model.n_classes").into());
    }
    if n_found < n_classes {
        printer.warn(format_args!(
            "{path} has {n_found} sub-folders for the {n_classes} classes of the classifier: it will never name the others"
        ));
    }
    printer.note(format_args!(
        "{path}: {} images of {n_found} classes to train on, {} held out",
        dataset.n_images(Split::Training),
        dataset.n_images(Split::HeldOut),
    ));
    Ok(dataset)
}

/// Leaves the run as it can be continued, and unless a signal ended it, with its last accuracies.
fn finish(trainer: &Trainer, watch: &mut Watch<'_>, limits: &Limits) -> anyhow::Result<()> {
    if watch.saved_at != Some(trainer.clock.images_seen) {
        watch.save(trainer)?;
    }
    let Count(every) = trainer.run.train.held_out_every;
    if limits.stop.requested().is_none() && every > 0 && !trainer.clock.passed(Interval(every)) {
        watch.evaluate(trainer)?;
    }
    Ok(())
}

impl<'a> Watch<'a> {
    fn new(
        (trainer, saved_at): (&Trainer, Option<u64>),
        run_dir: &'a RunDir,
        dataset: &Arc<Dataset>,
        limits: &Limits,
        printer: &'a Printer,
    ) -> anyhow::Result<Self> {
        let (from, total) = (trainer.clock.images_seen, trainer.run.train.total_images.0);
        let to = limits.max_images.map_or(total, |max| max.min(total));
        let deadline = limits.deadline;
        Ok(Self {
            printer,
            run_dir,
            dataset: Arc::clone(dataset),
            records: Records::open(run_dir, from, saved_at)?,
            progress: Progress::new(printer, Course { from, to, deadline }),
            sums: Sums::default(),
            stop: limits.stop.clone(),
            image_secs: 0.0,
            held_out_secs: None,
            held_out: None,
            saved_at,
            is_measured: is_measured(trainer, dataset),
        })
    }
}
