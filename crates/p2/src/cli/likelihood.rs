//! What `p2 likelihood` may be told.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

/// What `p2 likelihood` may be told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: p2 likelihood runs/emoji-32 --data bundled:emoji-32 --n-images 20 --steps 100\n\
    The bound is that of random steps; --exact is for the deterministic flow of the same network, and may lie on \
    either side of it. It is an unbiased estimate of the log-density of pixels with uniform noise added: whole \
    pixels need no more bits than that."
)]
pub struct LikelihoodArgs {
    /// A run, a checkpoint or a .safetensors file
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Folder or .zip of images, or bundled:emoji-32
    #[arg(long, value_name = "PATH")]
    pub data: String,
    /// Bound the images that the model was trained on, not those held out
    #[arg(long)]
    pub training: bool,
    /// How many images [default: all]
    #[arg(long, value_name = "IMAGES")]
    pub n_images: Option<NonZeroUsize>,
    /// Levels of the bound, evenly spaced: fewer are faster and bound worse [default: all]
    #[arg(long, value_name = "STEPS")]
    pub steps: Option<NonZeroUsize>,
    /// Estimate the likelihood under the probability flow instead, without a bound on it
    #[arg(long, conflicts_with_all = ["steps", "batch_size", "csv"])]
    pub exact: bool,
    /// Random probes of the flow for each image: more are less noisy and slower [default: 1]
    #[arg(long, value_name = "PROBES", requires = "exact")]
    pub probes: Option<NonZeroUsize>,
    /// Error that each step of the flow may make [default: 1e-5]
    #[arg(long, value_name = "ERROR", requires = "exact", value_parser = tolerance)]
    pub tolerance: Option<f64>,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=super::MAX))]
    pub seed: u64,
    /// Images computed at once; changes no result [default: 16]
    #[arg(long, value_name = "IMAGES")]
    pub batch_size: Option<NonZeroUsize>,
    /// Threads to compute with; changes no result [default: one per core]
    #[arg(long, value_name = "N", value_parser = super::threads)]
    pub threads: Option<NonZeroUsize>,
    /// Write the terms of all levels into this file
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let tolerance = text
        .parse()
        .ok()
        .filter(|tolerance: &f64| *tolerance > 0.0 && *tolerance < 1.0);
    tolerance.ok_or_else(|| "expected a number above 0 and below 1".to_owned())
}
