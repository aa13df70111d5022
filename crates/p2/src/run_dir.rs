//! The folder of a run: its layout, its manifest, and the lock that keeps a second process out.
//!
//! ```text
//! runs/NAME/
//!   config.toml    everything, resolved
//!   manifest.json  seed, data, binary, machine, every start with what it changed
//!   metrics.jsonl  tensorboard/  checkpoints/  samples/
//! ```

mod manifest;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

pub use manifest::{Engine, Machine, Manifest, StartRecord};

use crate::cli::Start;
use crate::config::{Base, Checked, Configuration};
use crate::durable;
use crate::problem::Problem;

const CONFIG: &str = "config.toml";
const MANIFEST: &str = "manifest.json";
const LOCK: &str = ".lock";

/// The folder of a run, locked while this value lives.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// The system releases the lock when the file is closed, even by a crash.
    _lock: File,
}

/// What was in the folder.
#[derive(Debug)]
pub enum Before<C> {
    /// Nothing: a new run.
    Nothing,
    /// A run with this configuration.
    Run(Box<Checked<C>>),
}

impl RunDir {
    /// Opens or makes the folder of a run and locks it.
    ///
    /// # Errors
    /// If another process trains there; if `start` insists on what is not so; if the folder holds
    /// something else than a run; if its configuration cannot be read.
    pub fn open<C: Configuration>(path: &Path, start: Start) -> anyhow::Result<(Self, Before<C>)> {
        let config = path.join(CONFIG);
        match (start, config.exists()) {
            (Start::Resume, false) => return Err(no_run(path).into()),
            (Start::Fresh, true) => return Err(is_run(path).into()),
            (_, false) => refuse_foreign(path)?,
            (_, true) => {}
        }
        durable::make_folder(path)?;
        let lock = lock(path)?;
        let run_dir = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        // Looked at again: before the lock was ours, another process may have made the run.
        let before = match (start, config.exists()) {
            (Start::Fresh, true) => return Err(is_run(path).into()),
            (_, true) => Before::Run(Box::new(Checked::resolve(&Base::File(config), &[])?)),
            (_, false) => Before::Nothing,
        };
        for folder in [
            run_dir.checkpoints(),
            run_dir.samples(),
            run_dir.tensorboard(),
        ] {
            durable::make_folder(&folder)?;
        }
        Ok((run_dir, before))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Where sample grids are.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// Where TensorBoard looks.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// One JSON record per interval.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Saves the resolved configuration. From then on the folder holds a run, so the manifest is
    /// saved first.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config<C: Configuration>(&self, run: &Checked<C>) -> anyhow::Result<()> {
        let text = format!(
            "# Everything of this run, resolved: `p2 train FILE` on a copy of this file repeats it.\n\n{}",
            run.to_toml()?
        );
        durable::write(&self.path.join(CONFIG), text.as_bytes())
    }

    /// Saves the manifest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_manifest(&self, manifest: &Manifest) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(manifest)?;
        json.push(b'\n');
        durable::write(&self.path.join(MANIFEST), &json)
    }

    /// Reads the manifest.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_manifest(&self) -> anyhow::Result<Manifest> {
        let path = self.path.join(MANIFEST);
        let text = durable::read_text(&path)?;
        let manifest = serde_json::from_str(&text);
        Ok(manifest.map_err(|error| {
            Problem::new(format!("damaged manifest: {}", path.display()))
                .caused_by(error)
                .hint("train anew into another folder with --out DIR")
        })?)
    }
}

fn no_run(path: &Path) -> Problem {
    Problem::new(format!("there is no run to continue in {}", path.display()))
        .hint("leave --resume away to begin one, or give the folder of the run with --out DIR")
}

fn is_run(path: &Path) -> Problem {
    Problem::new(format!("there is a run already in {}", path.display()))
        .hint("leave --fresh away to continue it, or choose another folder with --out DIR")
}

/// A folder that holds something, but no run, is not ours to write to.
fn refuse_foreign(path: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| durable::explain(error, "use", path))?,
    };
    // What a first start makes before it has a configuration.
    let ours = [
        LOCK,
        MANIFEST,
        "checkpoints",
        "samples",
        "tensorboard",
        "metrics.jsonl",
    ];
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !ours.contains(&&*name) && !name.ends_with(".tmp") {
            let message = format!(
                "{} holds no run, but other things, such as {name}",
                path.display()
            );
            return Err(Problem::new(message)
                .hint("choose another folder with --out DIR")
                .into());
        }
    }
    Ok(())
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let lock_path = path.join(LOCK);
    let file = File::options().create(true).append(true).open(&lock_path);
    let file = file.map_err(|error| durable::explain(error, "write", &lock_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another process is training in {}", path.display());
            Err(Problem::new(message)
                .hint("wait for it, or choose another folder with --out DIR")
                .into())
        }
        Err(TryLockError::Error(error)) => Err(durable::explain(error, "lock", &lock_path)),
    }
}

#[cfg(test)]
mod tests;
