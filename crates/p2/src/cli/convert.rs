//! What `p2 convert` may be told.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use crate::config::{Base, Override};

/// What `p2 convert` may be told.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples: p2 convert ffhq_p2.pt ffhq.safetensors --preset paper-256\n          \
                  p2 convert ema_0.9999_010000.pt ema.safetensors\n          \
                  p2 convert opt010000.pt optimizer.safetensors --like ema.safetensors\n          \
                  p2 convert runs/emoji-32 emoji.pt"
)]
#[command(group = ArgGroup::new("what").args(["preset", "like"]))]
pub struct ConvertArgs {
    /// A .pt or .pth file of PyTorch, or a run, a checkpoint or a .safetensors file
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// A .safetensors file, or a .pt or .pth file
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// What the weights of a PyTorch file are: a configuration by name [default: what they say, and --set]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// What the weights of a PyTorch file are: the same as in another model
    #[arg(long, value_name = "MODEL")]
    pub like: Option<PathBuf>,
    /// Set one value of the preset, or one that the weights do not say; may be given many times
    #[arg(long, value_name = "SECTION.KEY=VALUE", action = clap::ArgAction::Append, conflicts_with = "like")]
    set: Vec<String>,
    /// Where in the file the weights lie, such as `ema` or `state_dict` [default: at its top]
    #[arg(long, value_name = "NAME")]
    pub key: Option<String>,
}

impl ConvertArgs {
    /// The configuration of the weights, if it is given by name.
    pub fn base(&self) -> Option<Base> {
        self.preset.clone().map(Base::Preset)
    }

    /// Values set on the command line.
    pub fn overrides(&self) -> Vec<Override> {
        self.set.iter().map(|text| Override::set(text)).collect()
    }
}
