//! The folder of a run, opened for a start of the program: what was there, where it stands, what may change.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use p2_nn::Cpu;

use super::Clock;
use crate::checkpoint::{self, Found};
use crate::cli::Start;
use crate::config::{Change, Checked, Configuration, Count, Pace, changes};
use crate::data::{BUNDLED, Dataset, Loader, LoaderOptions};
use crate::print::Printer;
use crate::problem::Problem;
use crate::run_dir::{Before, Engine, Manifest, RunDir, StartRecord};

/// A run that is about to begin or go on.
pub(crate) struct Opened {
    pub(crate) run_dir: RunDir,
    pub(crate) manifest: Manifest,
    /// The checkpoint to go on from.
    pub(crate) found: Option<Found>,
    pub(crate) clock: Clock,
    changed: Vec<Change>,
    is_new: bool,
}

impl Opened {
    /// Opens the folder, and refuses what would make it another run.
    pub(crate) fn open<C: Configuration>(
        (path, start): (&Path, Start),
        run: &Checked<C>,
        dataset: &Dataset,
        printer: &Printer,
    ) -> anyhow::Result<Self> {
        let (run_dir, before) = RunDir::open::<C>(path, start)?;
        let (changed, is_new) = match before {
            Before::Nothing => (Vec::new(), true),
            Before::Run(old) => {
                let changes = changes(old.config(), run.config())?;
                (changes.into_allowed()?, false)
            }
        };
        let manifest = manifest(&run_dir, run.pace().seed, dataset, is_new)?;
        let found = find_checkpoint(&run_dir, printer)?;
        let clock = found.as_ref().map_or(Clock::at(0, 0), |found| {
            Clock::at(found.state.position.images_seen, found.state.position.step)
        });
        Ok(Self {
            run_dir,
            manifest,
            found,
            clock,
            changed,
            is_new,
        })
    }

    /// Writes down that the run was started, and says so.
    pub(crate) fn record<C: Configuration>(
        &mut self,
        run: &Checked<C>,
        engine: &Engine,
        printer: &Printer,
    ) -> anyhow::Result<()> {
        let changed = std::mem::take(&mut self.changed);
        self.manifest.starts.push(StartRecord {
            data_path: Some(full_path(&run.data().path)),
            ..StartRecord::now(self.clock.images_seen, engine.clone(), changed)
        });
        self.run_dir.write_manifest(&self.manifest)?;
        self.run_dir.write_config(run)?;
        self.tell_start(run.pace().total_images, printer);
        tell_engine(&self.manifest, self.clock, engine, printer);
        Ok(())
    }

    fn tell_start(&self, total_images: u64, printer: &Printer) {
        let (path, total) = (self.run_dir.path().display(), Count(total_images));
        if self.is_new {
            printer.note(format_args!("new run in {path}, of {total} images"));
        } else {
            let seen = self.clock.images_seen;
            printer.note(format_args!(
                "continuing {path} at {seen} of {total} images"
            ));
        }
    }
}

/// The manifest so far. A run is only continued with the images it was begun with.
fn manifest(
    run_dir: &RunDir,
    seed: u64,
    dataset: &Dataset,
    is_new: bool,
) -> anyhow::Result<Manifest> {
    let fingerprint = dataset.fingerprint();
    if is_new {
        return Ok(Manifest::new(seed, fingerprint.to_owned()));
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

fn find_checkpoint(run_dir: &RunDir, printer: &Printer) -> anyhow::Result<Option<Found>> {
    checkpoint::clean(&run_dir.checkpoints())?;
    let found = checkpoint::newest(&run_dir.checkpoints())?;
    for skipped in found.iter().flat_map(|found| &found.skipped) {
        printer.warn(skipped);
    }
    Ok(found)
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

/// The images from where the run stands, in its order.
pub(crate) fn open_loader(
    pace: Pace,
    dataset: &Arc<Dataset>,
    clock: Clock,
    cpu: Cpu,
) -> anyhow::Result<Loader> {
    let options = LoaderOptions {
        seed: pace.seed,
        first_image_idx: clock.images_seen,
        batch_size: NonZeroUsize::new(pace.batch_size).unwrap_or(NonZeroUsize::MIN),
        total_images: pace.total_images,
        n_workers: NonZeroUsize::new(cpu.threads.count()).unwrap_or(NonZeroUsize::MIN),
    };
    Loader::new(dataset, &options)
}

/// Where the images are, from whatever folder one looks. Those inside the binary are everywhere.
pub(super) fn full_path(path: &str) -> String {
    let is_file = !path.starts_with(BUNDLED);
    let full = is_file.then(|| std::path::absolute(path).ok()).flatten();
    full.map_or_else(|| path.to_owned(), |full| full.display().to_string())
}
