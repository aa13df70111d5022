//! What `p2 encode` may be told.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

/// What `p2 encode` may be told.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: p2 encode runs/emoji-32 --data bundled:emoji-32 --n-images 8 --out codes.safetensors\n\
    p2 sample MODEL --codes FILE draws the images again, and with --interpolate those between them."
)]
pub struct EncodeArgs {
    /// A run, a checkpoint or a .safetensors file
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Folder or .zip of images, or bundled:emoji-32
    #[arg(long, value_name = "PATH")]
    pub data: String,
    /// How many images, in the order of their names [default: all]
    #[arg(long, value_name = "IMAGES")]
    pub n_images: Option<NonZeroUsize>,
    /// Steps from image to noise: more are more exact [default: 100]
    #[arg(long, value_name = "STEPS")]
    pub steps: Option<NonZeroUsize>,
    /// Class of the images, counted from 0 [default: that of their folder]
    #[arg(long, value_name = "CLASS")]
    pub class: Option<u32>,
    /// Images computed at once; changes no result [default: 16]
    #[arg(long, value_name = "IMAGES")]
    pub batch_size: Option<NonZeroUsize>,
    /// Threads to compute with; changes no result [default: one per core]
    #[arg(long, value_name = "N", value_parser = super::threads)]
    pub threads: Option<NonZeroUsize>,
    /// Draw the images again, and say how far they are off
    #[arg(long)]
    pub check: bool,
    /// Print the results as JSON
    #[arg(long)]
    pub json: bool,
    /// File of the codes
    #[arg(long, value_name = "FILE.safetensors")]
    pub out: PathBuf,
}
