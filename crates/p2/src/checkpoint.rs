//! Checkpoints: folders of named tensors that are complete or do not exist.
//!
//! ```text
//! checkpoints/images-0000128000/
//!   model.safetensors  optimizer.safetensors  ...   named f32 tensors
//!   state.json         images_seen, step, size and SHA-256 of each file; no times
//! ```
//! A checkpoint is written into `.tmp-images-N`, every file and the folder are flushed to the disk,
//! and the folder is renamed: a crash leaves the previous checkpoints as they were.

mod read;
mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use read::{Found, Skipped, StoredTensors, is_checkpoint, newest, verify};
pub use write::{Retention, clean, save, save_file};

/// The version of `state.json` and of the names in the tensor files.
const FORMAT: u32 = 1;
/// The only metadata key of a tensor file: several are written in random order.
const METADATA_KEY: &str = "p2";
const STATE_FILE: &str = "state.json";
/// Checkpoints that are being written.
const TEMP_PREFIX: &str = ".tmp-";
/// A checkpoint that is being replaced by one of the same name.
const OLD_PREFIX: &str = ".old-";

/// Where in a run a checkpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Images seen so far: the run's clock.
    pub images_seen: u64,
    /// Optimizer steps so far.
    pub step: u64,
}

/// A file of named tensors, to be written.
#[derive(Debug, Clone)]
pub struct TensorFile<'a> {
    /// Its name, such as `model.safetensors`.
    pub name: String,
    /// JSON stored with it, such as [`crate::config::Run::to_metadata`].
    pub metadata: Option<String>,
    /// The tensors, in any order.
    pub tensors: Vec<NamedTensor<'a>>,
}

/// A tensor, to be written.
#[derive(Debug, Clone)]
pub struct NamedTensor<'a> {
    /// Its name, unique in the file.
    pub name: String,
    /// Its extents; their product is the number of values.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: Cow<'a, [f32]>,
}

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// Where in the run the checkpoint stands.
    #[serde(flatten)]
    pub position: Position,
    files: BTreeMap<String, FileSum>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSum {
    n_bytes: u64,
    sha256: String,
}

impl State {
    /// The names of the tensor files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

/// The folder of a checkpoint among its siblings.
fn folder_name(images_seen: u64) -> String {
    format!("images-{images_seen:010}")
}

/// All checkpoint folders with their images, oldest first, whether complete or not.
fn list(checkpoints: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(checkpoints)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let digits = name
            .strip_prefix("images-")
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        if let Some(images_seen) = digits.and_then(|digits| digits.parse().ok())
            && name == folder_name(images_seen)
        {
            found.push((images_seen, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests;
