//! Reads checkpoints: the newest one whose checksums hold. Reading never runs code, and never
//! allocates more than the files' own size.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest as _, Sha256};

use super::{FORMAT, METADATA_KEY, STATE_FILE, State, list};
use crate::digest::hex;
use crate::problem::Problem;

/// `state.json` lists a handful of files; a larger one is not ours.
const MAX_STATE_BYTES: u64 = 1 << 20;

/// The checkpoint to continue from.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub path: PathBuf,
    /// Where it stands, and its files.
    pub state: State,
    /// Newer ones that are damaged: left in place, to be told to the user.
    pub skipped: Vec<Skipped>,
}

/// A damaged checkpoint.
#[derive(Debug)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "{path} is damaged and left alone: {}", self.reason)
    }
}

/// The newest checkpoint that is complete and undamaged; `None` if there is none at all.
///
/// # Errors
/// If there are checkpoints, but every one is damaged; or if the folder cannot be read.
pub fn newest(checkpoints: &Path) -> anyhow::Result<Option<Found>> {
    let all = match list(checkpoints) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        all => all.with_context(|| format!("cannot read {}", checkpoints.display()))?,
    };
    let mut skipped = Vec::new();
    for (images_seen, path) in all.into_iter().rev() {
        let verified = verify(&path).and_then(|state| {
            let written = state.position.images_seen;
            anyhow::ensure!(written == images_seen, "{STATE_FILE} says {written} images");
            Ok(state)
        });
        match verified {
            Ok(state) => {
                return Ok(Some(Found {
                    path,
                    state,
                    skipped,
                }));
            }
            Err(error) => skipped.push(Skipped {
                path,
                reason: format!("{:#}", error.root_cause()),
            }),
        }
    }
    let Some(first) = skipped.first() else {
        return Ok(None);
    };
    let message = format!("no checkpoint in {} is usable", checkpoints.display());
    Err(Problem::new(message)
        .because(format!(
            "the newest, {}, is damaged: {}",
            first.path.display(),
            first.reason
        ))
        .hint("train anew into another folder with --out DIR")
        .into())
}

/// Whether a folder says of itself that it is a checkpoint.
pub fn is_checkpoint(path: &Path) -> bool {
    path.join(STATE_FILE).exists()
}

/// Checks that a checkpoint is complete: every file has the size and the checksum of `state.json`.
///
/// # Errors
/// Names the checkpoint, the file and what is wrong with it.
pub fn verify(checkpoint: &Path) -> anyhow::Result<State> {
    let check = || -> anyhow::Result<State> {
        let state = read_state(&checkpoint.join(STATE_FILE))?;
        for (name, expected) in &state.files {
            let is_plain = matches!(
                Path::new(name).components().collect::<Vec<_>>().as_slice(),
                [Component::Normal(_)]
            );
            anyhow::ensure!(
                is_plain,
                "{STATE_FILE} names a file outside the checkpoint: {name:?}"
            );
            let (n_bytes, sha256) = digest(&checkpoint.join(name))
                .map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
            let n_expected = expected.n_bytes;
            anyhow::ensure!(
                n_bytes == n_expected,
                "{name} has {n_bytes} bytes instead of {n_expected}"
            );
            anyhow::ensure!(
                sha256 == expected.sha256,
                "the checksum of {name} does not hold"
            );
        }
        Ok(state)
    };
    check().with_context(|| format!("damaged checkpoint: {}", checkpoint.display()))
}

fn read_state(path: &Path) -> anyhow::Result<State> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_STATE_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| anyhow::anyhow!("{STATE_FILE}: {error}"))?;
    let state: State =
        serde_json::from_slice(&bytes).map_err(|error| anyhow::anyhow!("{STATE_FILE}: {error}"))?;
    let format = state.format;
    anyhow::ensure!(
        format == FORMAT,
        "format {format} is not the {FORMAT} that this p2 reads"
    );
    Ok(state)
}

/// Size and SHA-256 of a file.
fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut n_bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((n_bytes, hex(&hasher.finalize())));
        }
        hasher.update(&buffer[..n]);
        n_bytes += n as u64;
    }
}

/// A tensor file in memory.
#[derive(Debug)]
pub struct StoredTensors {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: Option<String>,
    index: BTreeMap<String, Stored>,
}

/// Where a tensor lies in the file.
#[derive(Debug)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl StoredTensors {
    /// Reads a `.safetensors` file; its header is checked against the file's size.
    ///
    /// # Errors
    /// If it cannot be read, or its header is damaged.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::of_bytes(bytes, path)
    }

    /// The same for the bytes of a file that messages call `path`.
    ///
    /// # Errors
    /// If their header is damaged.
    pub fn of_bytes(bytes: Vec<u8>, path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot read {}", path.display());
        let (n_header, header) = SafeTensors::read_metadata(&bytes).with_context(context)?;
        let start = size_of::<u64>() + n_header;
        let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let (begin, end) = info.data_offsets;
            let range = start + begin..start + end;
            (
                name,
                Stored {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    range,
                },
            )
        };
        let index = header.tensors().into_iter().map(stored).collect();
        let metadata = header
            .metadata()
            .as_ref()
            .and_then(|all| all.get(METADATA_KEY).cloned());
        Ok(Self {
            path: path.to_owned(),
            bytes,
            metadata,
            index,
        })
    }

    /// The JSON stored with the tensors, if p2 wrote the file.
    pub fn metadata(&self) -> Option<&str> {
        self.metadata.as_deref()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// The extents of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|stored| stored.shape.as_slice())
    }

    /// The values of a tensor in row-major order; shape as in [`StoredTensors::shape`].
    ///
    /// # Errors
    /// If there is no such tensor, or it is not f32.
    pub fn values(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        let at = self.path.display();
        let stored = self
            .index
            .get(name)
            .with_context(|| format!("{at} has no tensor `{name}`"))?;
        let dtype = stored.dtype;
        anyhow::ensure!(
            dtype == Dtype::F32,
            "tensor `{name}` of {at} is {dtype:?}, not F32"
        );
        let bytes = self
            .bytes
            .get(stored.range.clone())
            .context("the header was checked")?;
        let (values, _) = bytes.as_chunks::<4>();
        Ok(values
            .iter()
            .map(|&value| f32::from_le_bytes(value))
            .collect())
    }
}
