//! What `p2 weights` may be told.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::Override;

/// What `p2 weights` can do.
#[derive(Debug, Subcommand)]
pub enum WeightsCommand {
    /// List the weightings, with formula and source
    List(WeightsListArgs),
    /// Show weightings level by level, and what they minimize
    Show(WeightsShowArgs),
}

/// What `p2 weights list` may be told.
#[derive(Debug, Args)]
#[command(after_help = "Example: p2 weights list")]
pub struct WeightsListArgs {
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

/// What `p2 weights show` may be told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: p2 weights show simple p2:gamma=1,k=1 min-snr:gamma=5 --schedule cosine --png weights.png"
)]
pub struct WeightsShowArgs {
    /// Weightings as KIND or KIND:KEY=VALUE,...; see `p2 weights list`
    #[arg(value_name = "WEIGHTING", required = true)]
    pub weightings: Vec<String>,
    /// Noise schedule, as in diffusion.schedule [default: linear]
    #[arg(long, value_name = "SCHEDULE")]
    schedule: Option<String>,
    /// What the network predicts: eps, x0, v or x-prev [default: eps]
    #[arg(long, value_name = "TARGET")]
    prediction: Option<String>,
    /// How often levels are drawn, as in loss.density [default: uniform]
    #[arg(long, value_name = "DENSITY")]
    density: Option<String>,
    /// Number of noise levels [default: 1000]
    #[arg(long, value_name = "LEVELS")]
    timesteps: Option<u32>,
    /// Draw the weights against the SNR into this file
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// Write all levels into this file
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
}

impl WeightsShowArgs {
    /// What differs from the paper's configuration.
    pub fn overrides(&self) -> Vec<Override> {
        let timesteps = self.timesteps.map(|n| n.to_string());
        [
            ("--schedule", "diffusion.schedule", &self.schedule),
            ("--prediction", "diffusion.prediction", &self.prediction),
            ("--density", "loss.density", &self.density),
            ("--timesteps", "diffusion.n_timesteps", &timesteps),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some(Override::text(flag, key, value.as_ref()?)))
        .collect()
    }
}
