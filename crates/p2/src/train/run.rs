//! A run from its folder to its end: begin or continue, train, finish.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use p2_nn::Cpu;
use serde::Serialize;

use super::held_out::StageErrors;
use super::linear_denoiser::Fitting;
use super::observer::{Means, Observer};
use super::{Clock, Limits, Trainer};
use crate::checkpoint::{self, Found, StoredTensors};
use crate::cli::Start;
use crate::config::{Run, changes};
use crate::data::{BUNDLED, Dataset, Loader, LoaderOptions, Split};
use crate::engine::Device;
use crate::model::Model;
use crate::model::file::open_weights;
use crate::monitor::metrics::Metrics;
use crate::monitor::progress::{Course, Progress};
use crate::monitor::tensorboard::EventWriter;
use crate::print::Printer;
use crate::problem::Problem;
use crate::run_dir::{Before, Engine, Manifest, RunDir, StartRecord};

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
    let (run_dir, before) = RunDir::open(&setup.out, setup.start)?;
    let (changed, is_new) = match before {
        Before::Nothing => (Vec::new(), true),
        Before::Run(old) => (changes(&old, &run)?.into_allowed()?, false),
    };
    let mut manifest = manifest(&run_dir, &run, &dataset, is_new)?;
    let found = find_checkpoint(&run_dir, printer)?;
    let init = match &found {
        Some(_) => None,
        None => open_init(setup.init_from.as_deref(), &mut manifest)?,
    };
    let clock = found.as_ref().map_or(Clock::at(0, 0), |found| {
        Clock::at(found.state.position.images_seen, found.state.position.step)
    });
    let engine = Engine::of(setup.device, setup.cpu);
    manifest.starts.push(StartRecord {
        data_path: Some(full_path(&run.data.path)),
        ..StartRecord::now(clock.images_seen, engine.clone(), changed)
    });
    run_dir.write_manifest(&manifest)?;
    run_dir.write_config(&run)?;
    tell_start(&run_dir, &run, clock, is_new, printer);
    tell_engine(&manifest, clock, &engine, printer);
    let mut loader = open_loader(&run, &dataset, clock, setup.cpu)?;
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

/// The images from where the run stands, in its order.
fn open_loader(
    run: &Run,
    dataset: &Arc<Dataset>,
    clock: Clock,
    cpu: Cpu,
) -> anyhow::Result<Loader> {
    let options = LoaderOptions {
        seed: run.train.seed,
        first_image_idx: clock.images_seen,
        batch_size: NonZeroUsize::new(run.train.batch_size).unwrap_or(NonZeroUsize::MIN),
        total_images: run.train.total_images.0,
        n_workers: NonZeroUsize::new(cpu.threads.count()).unwrap_or(NonZeroUsize::MIN),
    };
    Loader::new(dataset, &options)
}

/// The manifest so far. A run is only continued with the images it was begun with.
fn manifest(
    run_dir: &RunDir,
    run: &Run,
    dataset: &Dataset,
    is_new: bool,
) -> anyhow::Result<Manifest> {
    let fingerprint = dataset.fingerprint();
    if is_new {
        return Ok(Manifest::new(run.train.seed, fingerprint.to_owned()));
    }
    let manifest = run_dir.read_manifest()?;
    if manifest.data_fingerprint == fingerprint {
        return Ok(manifest);
    }
    let message = format!(
        "the images are not those that {} was begun with",
        run_dir.path().display()
    );
    Err(Problem::new(message)
        .because("the same place in the run would mean another image")
        .hint("restore the images, or begin another run with --out DIR")
        .into())
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

/// Where the images are, from whatever folder one looks. Those inside the binary are everywhere.
fn full_path(path: &str) -> String {
    let is_file = !path.starts_with(BUNDLED);
    let full = is_file.then(|| std::path::absolute(path).ok()).flatten();
    full.map_or_else(|| path.to_owned(), |full| full.display().to_string())
}

fn find_checkpoint(run_dir: &RunDir, printer: &Printer) -> anyhow::Result<Option<Found>> {
    checkpoint::clean(&run_dir.checkpoints())?;
    let found = checkpoint::newest(&run_dir.checkpoints())?;
    for skipped in found.iter().flat_map(|found| &found.skipped) {
        printer.warn(skipped);
    }
    Ok(found)
}

fn tell_start(run_dir: &RunDir, run: &Run, clock: Clock, is_new: bool, printer: &Printer) {
    let (path, total) = (run_dir.path().display(), run.train.total_images);
    if is_new {
        printer.note(format_args!("new run in {path}, of {total} images"));
    } else {
        let seen = clock.images_seen;
        printer.note(format_args!(
            "continuing {path} at {seen} of {total} images"
        ));
    }
}

/// Says so if the bits will not be those of a run that stays with one instruction set.
fn tell_engine(manifest: &Manifest, clock: Clock, now: &Engine, printer: &Printer) {
    let before = manifest.last_engine(clock.images_seen);
    let before = before.map(|engine| engine.instruction_set.as_str());
    let now = now.instruction_set.as_str();
    if let Some(before) = before.filter(|before| *before != now) {
        printer.note(format_args!(
            "so far computed with {before}, from here on with {now}: \
             the last bits will differ from those of a run with one of them"
        ));
    }
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
            metrics: Metrics::open(&run_dir.metrics(), from)?,
            events: EventWriter::create(&run_dir.tensorboard(), saved_at)?,
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
