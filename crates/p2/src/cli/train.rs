//! What the commands that train may be told.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{MAX, minutes, threads};
use crate::config::{Base, Count, Override};
use crate::engine::Device;

/// What `p2 train` may be told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: p2 train --preset emoji-32 --set loss.weighting.gamma=0.5 --out runs/half\n\
    The same command again continues an unfinished run."
)]
pub struct TrainArgs {
    /// What any run may be told.
    #[command(flatten)]
    pub run: RunArgs,
    /// Begin with the weights of a run, a checkpoint or a file, for other images, classes or weights of the loss
    #[arg(long, value_name = "MODEL")]
    pub init_from: Option<PathBuf>,
}

/// What `p2 train-classifier` may be told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: p2 train-classifier --preset classifier-64 --data images --set model.n_classes=10\n\
    The same command again continues an unfinished run."
)]
pub struct TrainClassifierArgs {
    /// What any run may be told.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What any run may be told.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// Folder or .zip of images, or bundled:emoji-32 [default: data.path]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Folder of the run [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Set one value of the configuration; may be given many times
    #[arg(long, value_name = "SECTION.KEY=VALUE", action = ArgAction::Append)]
    set: Vec<String>,
    /// Seed of every random draw [default: train.seed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=MAX))]
    seed: Option<u64>,
    /// Threads to compute with; changes no result [default: one per core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<std::num::NonZeroUsize>,
    /// Where to compute; this build knows cpu
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: Device,
    /// Stop once the run has seen so many images, such as 200k
    #[arg(long, value_name = "IMAGES")]
    pub max_images: Option<Count>,
    /// Stop after so many optimizer steps from now
    #[arg(long, value_name = "STEPS")]
    pub max_steps: Option<u64>,
    /// Stop after so many minutes from now
    #[arg(long, value_name = "MINUTES", value_parser = minutes)]
    pub max_minutes: Option<f64>,
    /// Insist that there is a run to continue
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Insist that there is no run yet
    #[arg(long)]
    fresh: bool,
    /// Print the resolved configuration as TOML, and the memory that it takes; start no run
    #[arg(long)]
    pub dry_run: bool,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

/// Whether a run is begun or continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Continue an unfinished run if there is one.
    Either,
    /// There must be a run to continue.
    Resume,
    /// There must be no run yet.
    Fresh,
}

impl RunArgs {
    /// Where the configuration comes from.
    pub fn base(&self) -> Base {
        self.base.base()
    }

    /// The values set on the command line: `--set` in order, then the flags of their own.
    pub fn overrides(&self) -> Vec<Override> {
        let set = self.set.iter().map(|assignment| Override::set(assignment));
        let data = self
            .data
            .iter()
            .map(|path| Override::flag("--data", "data.path", &path.into()));
        // The range of the parser keeps it within i64.
        let seed = self
            .seed
            .iter()
            .map(|&seed| Override::flag("--seed", "train.seed", &(seed as i64).into()));
        set.chain(data).chain(seed).collect()
    }

    /// The folder of the run.
    pub fn out(&self) -> PathBuf {
        self.out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(self.base().run_name()))
    }

    /// Whether a run is begun or continued.
    pub fn start(&self) -> Start {
        match (self.resume, self.fresh) {
            (true, _) => Start::Resume,
            (_, true) => Start::Fresh,
            _ => Start::Either,
        }
    }
}

/// A configuration: a file or a preset.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct BaseArgs {
    /// Configuration file
    #[arg(value_name = "CONFIG.toml")]
    config: Option<PathBuf>,
    /// Configuration by name; see `p2 presets`
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
}

impl BaseArgs {
    fn base(&self) -> Base {
        match (&self.config, &self.preset) {
            (Some(path), _) => Base::File(path.clone()),
            (None, name) => Base::Preset(name.clone().unwrap_or_default()),
        }
    }
}
