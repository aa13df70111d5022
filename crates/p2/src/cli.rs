//! The command line: what may be typed. Nothing is done here.

mod convert;
mod encode;
mod likelihood;
mod train;
mod weights;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};

use crate::config::section::{Sampler, Spacing};
use crate::print::{ColorChoice, Verbosity};
use crate::sample::ClassifierForm;
use crate::signal::Signal;

pub use convert::ConvertArgs;
pub use encode::EncodeArgs;
pub use likelihood::LikelihoodArgs;
pub use train::{RunArgs, Start, TrainArgs, TrainClassifierArgs};
pub use weights::{WeightsCommand, WeightsListArgs, WeightsShowArgs};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Done: 0.
    Done,
    /// The command could not run: 2.
    Failed,
    /// Stopped on request, with everything saved: 130 after Ctrl-C, 143 after a termination.
    Stopped(Signal),
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Done => Self::SUCCESS,
            ExitStatus::Failed => Self::from(2),
            ExitStatus::Stopped(signal) => Self::from(signal.exit_code()),
        }
    }
}

/// Train and sample image diffusion models with perception-prioritized (P2) loss weighting
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_flag = true,
    disable_help_subcommand = true,
    after_help = "Example: p2 train --preset smoke"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Tell only warnings and errors
    #[arg(
        short,
        long,
        global = true,
        display_order = 100,
        conflicts_with = "verbose"
    )]
    quiet: bool,
    /// Tell more
    #[arg(short, long, global = true, display_order = 101)]
    verbose: bool,
    /// When to color text for people
    #[arg(
        long,
        global = true,
        display_order = 102,
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub color: ColorChoice,
    /// Print help
    // The short form for both flags: one line per option.
    #[arg(short, long, global = true, display_order = 103, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

impl Cli {
    /// How much people are told.
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model, or continue to train it
    Train(TrainArgs),
    /// Train a classifier of noised images, to guide a model with
    TrainClassifier(TrainClassifierArgs),
    /// Draw images from a trained model
    Sample(SampleArgs),
    /// Turn images into the noise that a model draws them from
    Encode(EncodeArgs),
    /// Bound how many bits a model needs for images
    Likelihood(LikelihoodArgs),
    /// Turn weights of PyTorch into a model, or back
    Convert(ConvertArgs),
    /// List the configurations that need no file
    Presets(PresetsArgs),
    /// Say what a model or a preset is
    Info(InfoArgs),
    /// Measure how fast this machine trains and draws
    Bench(BenchArgs),
    /// Show loss weightings and what they minimize
    #[command(
        subcommand,
        after_help = "Example: p2 weights show simple p2:gamma=1,k=1 --png weights.png"
    )]
    Weights(WeightsCommand),
}

/// Seeds and counts end where TOML's integers do.
const MAX: u64 = i64::MAX as u64;

/// What `p2 sample` may be told.
#[derive(Debug, Args)]
#[command(after_help = "Example: p2 sample runs/emoji-32 --n-images 64 --steps 50 --out samples")]
#[command(group = ArgGroup::new("of_what").required(true).multiple(true).args(["n_images", "codes"]))]
pub struct SampleArgs {
    /// A run, a checkpoint or a .safetensors file
    #[arg(value_name = "MODEL", required_unless_present = "cascade")]
    model: Option<PathBuf>,
    /// Draw with the first of these models and enlarge with the others, in place of MODEL
    #[arg(
        long,
        value_name = "BASE,SR",
        value_delimiter = ',',
        conflicts_with = "model"
    )]
    cascade: Vec<PathBuf>,
    /// Folder or .zip of images that a super-resolution model enlarges, in turn
    #[arg(long, value_name = "PATH")]
    pub low_res: Option<String>,
    /// How many images [default with --codes: all]
    #[arg(long, value_name = "IMAGES")]
    pub n_images: Option<std::num::NonZeroUsize>,
    /// How to sample [default: sample.sampler of the model]
    #[arg(long, value_name = "SAMPLER")]
    pub sampler: Option<Sampler>,
    /// Steps from noise to image [default: sample.n_steps of the model]
    #[arg(long, value_name = "STEPS")]
    pub steps: Option<std::num::NonZeroUsize>,
    /// Which noise levels the steps lead through [default: sample.spacing of the model]
    #[arg(long, value_name = "SPACING")]
    pub spacing: Option<Spacing>,
    /// The same by name, as the reference code has it: 250, ddim50, or the steps of equal sections, 10,15,25
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["steps", "spacing"])]
    pub respacing: Option<String>,
    /// Share of fresh noise per step, 0 to 1 [default: sample.eta for the model's own sampler, else 0,
    /// euler-ancestral 1]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub eta: Option<f64>,
    /// Seed of the noise; image i of a seed is always the same
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX))]
    pub seed: u64,
    /// Class of the images, counted from 0 [default: all in turn]
    #[arg(long, value_name = "CLASS")]
    pub class: Option<u32>,
    /// How far to go from the guess without a class through the one with it; 1 is not at all [default:
    /// sample.guidance of the model]
    #[arg(long, value_name = "SCALE", allow_negative_numbers = true)]
    pub guidance_scale: Option<f64>,
    /// Guide only between these amounts of noise per unit of data
    #[arg(long, value_name = "SIGMA", num_args = 2, value_names = ["LEAST", "MOST"])]
    pub guidance_sigmas: Option<Vec<f64>>,
    /// Guide away from the guess of another model, such as a smaller one
    #[arg(long, value_name = "MODEL")]
    pub guide: Option<PathBuf>,
    /// Guide along the gradient of a classifier, as p2 train-classifier makes them
    #[arg(long, value_name = "CLASSIFIER")]
    pub classifier: Option<PathBuf>,
    /// How far the classifier guides
    #[arg(
        long,
        value_name = "SCALE",
        default_value_t = 1.0,
        requires = "classifier",
        allow_negative_numbers = true
    )]
    pub classifier_scale: f64,
    /// What the classifier's gradient moves [default: mean for ancestral, else score]
    #[arg(long, value_name = "FORM", requires = "classifier")]
    pub classifier_form: Option<ClassifierForm>,
    /// Draw the images of these codes again, by the deterministic steps of p2 encode
    #[arg(long, value_name = "FILE.safetensors", conflicts_with_all = ["sampler", "spacing", "respacing", "eta", "seed",
        "guidance_scale", "guidance_sigmas", "guide", "classifier", "cascade", "low_res"])]
    pub codes: Option<PathBuf>,
    /// Draw so many images between each code and the next as well
    #[arg(long, value_name = "IMAGES", requires = "codes")]
    pub interpolate: Option<std::num::NonZeroUsize>,
    /// Images computed at once; changes no result [default: 16]
    #[arg(long, value_name = "IMAGES")]
    pub batch_size: Option<std::num::NonZeroUsize>,
    /// Threads to compute with; changes no result [default: one per core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<std::num::NonZeroUsize>,
    /// Save the unrounded pixels as well, in [-1, 1] and [N, H, W, C]
    #[arg(long, value_name = "FILE.safetensors")]
    pub raw: Option<PathBuf>,
    /// Save all images in one file as well, as the evaluator of guided-diffusion reads them
    #[arg(long, value_name = "FILE.npz")]
    pub npz: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
    /// Folder of the images
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

impl SampleArgs {
    /// The models that draw, in their order.
    pub fn models(&self) -> impl Iterator<Item = &PathBuf> {
        self.model.iter().chain(&self.cascade)
    }
}

/// What `p2 presets` may be told.
#[derive(Debug, Args)]
#[command(after_help = "Example: p2 train --preset emoji-32 --dry-run > my.toml")]
pub struct PresetsArgs {
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `p2 info` may be told.
#[derive(Debug, Args)]
#[command(after_help = "Example: p2 info --preset paper-256")]
#[command(group = ArgGroup::new("which").required(true).args(["model", "preset"]))]
pub struct InfoArgs {
    /// A run, a checkpoint or a .safetensors file
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// Configuration by name; see `p2 presets`
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `p2 bench` may be told.
#[derive(Debug, Args)]
#[command(after_help = "Example: p2 bench --preset emoji-32\n\
    Times vary: let the machine do nothing else, and measure more than once.")]
pub struct BenchArgs {
    /// Configuration by name; see `p2 presets`
    #[arg(long, value_name = "NAME", default_value = "bench-small")]
    pub preset: String,
    /// Set one value of the configuration; may be given many times
    #[arg(long, value_name = "SECTION.KEY=VALUE", action = ArgAction::Append)]
    pub set: Vec<String>,
    /// Images computed at once [default: train.micro_batch_size]
    #[arg(long, value_name = "IMAGES")]
    pub batch_size: Option<std::num::NonZeroUsize>,
    /// Timed steps, after two that warm up
    #[arg(long, value_name = "STEPS", default_value = "5")]
    pub steps: std::num::NonZeroUsize,
    /// Draw images as the preset says, do not train; a step is one drawing
    #[arg(long)]
    pub sampling: bool,
    /// Threads to compute with [default: one per core]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<std::num::NonZeroUsize>,
    /// Print the results as JSON, with the seconds of every step
    #[arg(long)]
    pub json: bool,
}

/// More threads than any machine runs at once would only exhaust what the system gives to one user.
const MAX_THREADS: usize = 1024;

fn threads(text: &str) -> Result<std::num::NonZeroUsize, String> {
    let threads = text
        .parse()
        .ok()
        .filter(|threads: &std::num::NonZeroUsize| threads.get() <= MAX_THREADS);
    threads.ok_or_else(|| format!("expected a number from 1 to {MAX_THREADS}"))
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text
        .parse()
        .ok()
        .filter(|minutes: &f64| minutes.is_finite() && *minutes >= 0.0);
    minutes.ok_or_else(|| "expected a number of minutes, 0 or more".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::{Base, Count};

    fn train(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let arguments = ["p2", "train"].iter().chain(arguments);
        Cli::try_parse_from(arguments).map(|cli| match cli.command {
            Command::Train(arguments) => arguments.run,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains(&format!("p2 {}", command.get_name())) || help.contains("p2 train")
            );
        }
    }

    #[test]
    fn exactly_one_configuration_is_needed() {
        assert!(train(&[]).is_err());
        assert!(train(&["a.toml", "--preset", "smoke"]).is_err());
        assert_eq!(
            train(&["a.toml"]).unwrap().base(),
            Base::File("a.toml".into())
        );
        assert_eq!(
            train(&["--preset", "smoke"]).unwrap().base(),
            Base::Preset("smoke".to_owned())
        );
    }

    #[test]
    fn flags_of_their_own_win_over_set() {
        let arguments =
            train(&["--preset", "smoke", "--seed", "7", "--set", "train.seed=1"]).unwrap();
        let run = crate::config::resolve(&arguments.base(), &arguments.overrides()).unwrap();
        assert_eq!(run.train.seed, 7);
    }

    #[test]
    fn a_run_has_a_folder_and_a_start() {
        let arguments = train(&["--preset", "smoke"]).unwrap();
        assert_eq!(
            (arguments.out(), arguments.start()),
            ("runs/smoke".into(), Start::Either)
        );
        let arguments = train(&["--preset", "smoke", "--out", "x", "--resume"]).unwrap();
        assert_eq!(
            (arguments.out(), arguments.start()),
            ("x".into(), Start::Resume)
        );
        assert_eq!(train(&["a.toml", "--fresh"]).unwrap().start(), Start::Fresh);
    }

    #[test]
    fn numbers_outside_their_range_are_refused() {
        for arguments in [
            &["a.toml", "--threads", "0"][..],
            &["a.toml", "--threads", "1025"],
            &["a.toml", "--max-minutes", "-1"],
            &["a.toml", "--max-minutes", "nan"],
            &["a.toml", "--seed", "9223372036854775808"],
            &["a.toml", "--max-images", "2.5"],
            &["a.toml", "--device", "cuda:0"],
        ] {
            assert!(train(arguments).is_err(), "{arguments:?}");
        }
        let most = train(&[
            "a.toml",
            "--seed",
            "9223372036854775807",
            "--max-images",
            "2.5k",
        ])
        .unwrap();
        assert_eq!(most.max_images, Some(Count(2500)));
    }
}
