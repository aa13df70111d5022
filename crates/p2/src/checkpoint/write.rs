//! Writes checkpoints: into a temporary folder, flushed, renamed; then removes the ones out of date.
//!
//! Points at which [`fault`] may strike, in order: `checkpoint.write` (before each file; also as an
//! error), `checkpoint.after-temp-write` (after each file), `checkpoint.before-fsync` and
//! `checkpoint.after-fsync` (of the folder), `checkpoint.before-rename`,
//! `checkpoint.between-renames` and `checkpoint.after-replace` (only where an older checkpoint has
//! the same name), `checkpoint.after-rename`, `checkpoint.before-prune`,
//! `checkpoint.within-prune` (each removal), `checkpoint.after-prune`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use safetensors::{Dtype, View};
use sha2::{Digest as _, Sha256};

use super::{
    FORMAT, FileSum, METADATA_KEY, NamedTensor, OLD_PREFIX, Position, STATE_FILE, State,
    TEMP_PREFIX, TensorFile, folder_name, list,
};
use crate::digest::hex;
use crate::{durable, fault};

/// Which checkpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many, at least 1.
    pub keep_last: usize,
    /// The first at or after each multiple of so many images; 0 for none.
    pub keep_every: u64,
}

/// Writes a checkpoint and removes those that `retention` does not keep.
///
/// A checkpoint of the same `images_seen`, such as a damaged one, is replaced.
/// Returns its folder.
///
/// # Errors
/// If it cannot be written, as on a full disk: nothing of it is left then, and all others stay.
/// If an old one cannot be removed, which says so: the new one is saved then.
pub fn save(
    checkpoints: &Path,
    position: Position,
    files: &[TensorFile<'_>],
    retention: Retention,
) -> anyhow::Result<PathBuf> {
    durable::make_folder(checkpoints)?;
    let name = folder_name(position.images_seen);
    let temp = checkpoints.join(format!("{TEMP_PREFIX}{name}"));
    let written = write_folder(&temp, position, files);
    if let Err(error) = written {
        // What matters is the first error; `clean` removes what is left.
        let _ = fs::remove_dir_all(&temp);
        return Err(error.context("the checkpoint is not saved; earlier ones are intact"));
    }
    let target = checkpoints.join(&name);
    publish(&temp, &target).map_err(|error| durable::explain(error, "write", &target))?;
    fault::point("checkpoint.before-prune");
    prune(checkpoints, position.images_seen, retention).with_context(|| {
        format!(
            "{name} is saved, but older ones cannot be removed from {}",
            checkpoints.display()
        )
    })?;
    fault::point("checkpoint.after-prune");
    Ok(target)
}

/// Writes one tensor file outside of a checkpoint: whole, or not at all. Its name is that of `path`.
///
/// # Errors
/// If a tensor has not as many values as its shape says, or the disk refuses.
pub fn save_file(path: &Path, file: &TensorFile<'_>) -> anyhow::Result<()> {
    let bytes = serialize(file).with_context(|| format!("cannot store {}", path.display()))?;
    durable::write(path, &bytes)
}

fn write_folder(temp: &Path, position: Position, files: &[TensorFile<'_>]) -> anyhow::Result<()> {
    if temp.exists() {
        fs::remove_dir_all(temp).map_err(|error| durable::explain(error, "remove", temp))?;
    }
    durable::make_folder(temp)?;
    let mut sums = BTreeMap::new();
    for file in files {
        let bytes = serialize(file).with_context(|| format!("cannot store {}", file.name))?;
        write_file(&temp.join(&file.name), &bytes)?;
        sums.insert(file.name.clone(), sum(&bytes));
    }
    let state = State {
        format: FORMAT,
        position,
        files: sums,
    };
    let mut json = serde_json::to_vec_pretty(&state)?;
    json.push(b'\n');
    write_file(&temp.join(STATE_FILE), &json)?;
    fault::point("checkpoint.before-fsync");
    durable::sync_folder(temp).map_err(|error| durable::explain(error, "write", temp))?;
    fault::point("checkpoint.after-fsync");
    Ok(())
}

fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fault::io("checkpoint.write")
        .and_then(|()| durable::write_new(path, bytes))
        .map_err(|error| durable::explain(error, "write", path))?;
    fault::point("checkpoint.after-temp-write");
    Ok(())
}

/// The same tensors give the same bytes: safetensors sorts them by name.
fn serialize(file: &TensorFile<'_>) -> anyhow::Result<Vec<u8>> {
    for tensor in &file.tensors {
        let n_values = tensor
            .shape
            .iter()
            .try_fold(1usize, |n, &extent| n.checked_mul(extent));
        anyhow::ensure!(
            n_values == Some(tensor.values.len()),
            "tensor `{}` has {} values for the shape {:?}",
            tensor.name,
            tensor.values.len(),
            tensor.shape
        );
    }
    let metadata = file
        .metadata
        .clone()
        .map(|json| HashMap::from([(METADATA_KEY.to_owned(), json)]));
    let tensors = file
        .tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor));
    Ok(safetensors::serialize(tensors, metadata)?)
}

impl View for &NamedTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(bytemuck::cast_slice(&self.values));
        }
        Cow::Owned(
            self.values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )
    }

    fn data_len(&self) -> usize {
        size_of_val::<[f32]>(&self.values)
    }
}

fn sum(bytes: &[u8]) -> FileSum {
    FileSum {
        n_bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(bytes)),
    }
}

/// Gives the finished folder its name.
fn publish(temp: &Path, target: &Path) -> io::Result<()> {
    let checkpoints = target.parent().unwrap_or(Path::new("."));
    fault::point("checkpoint.before-rename");
    if target.exists() {
        // A folder cannot be renamed onto another one. Between the two renames the old one is
        // found by `clean`, which puts it back.
        let old = old_path(target);
        if old.exists() {
            fs::remove_dir_all(&old)?;
        }
        fs::rename(target, &old)?;
        fault::point("checkpoint.between-renames");
        fs::rename(temp, target)?;
        durable::sync_folder(checkpoints)?;
        fault::point("checkpoint.after-replace");
        fs::remove_dir_all(&old)?;
    } else {
        fs::rename(temp, target)?;
    }
    durable::sync_folder(checkpoints)?;
    fault::point("checkpoint.after-rename");
    Ok(())
}

fn old_path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{OLD_PREFIX}{name}"))
}

/// Removes all checkpoints before `newest` that are not kept. Later ones belong to another course
/// of the run (a damaged one, say) and are left alone.
fn prune(checkpoints: &Path, newest: u64, retention: Retention) -> io::Result<()> {
    let mut so_far = list(checkpoints)?;
    so_far.retain(|(images_seen, _)| *images_seen <= newest);
    let n_older = so_far.len().saturating_sub(retention.keep_last.max(1));
    let mut last_multiple = 0;
    for (i, (images_seen, path)) in so_far.iter().enumerate() {
        let multiple = images_seen.checked_div(retention.keep_every).unwrap_or(0);
        let is_first = multiple > last_multiple;
        last_multiple = multiple;
        if i < n_older && !is_first {
            remove(checkpoints, path)?;
        }
    }
    durable::sync_folder(checkpoints)
}

/// Renames before it removes, so that a crash never leaves half a checkpoint under its name.
fn remove(checkpoints: &Path, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let condemned = checkpoints.join(format!("{TEMP_PREFIX}removed-{name}"));
    if condemned.exists() {
        fs::remove_dir_all(&condemned)?;
    }
    fs::rename(path, &condemned)?;
    fault::point("checkpoint.within-prune");
    fs::remove_dir_all(&condemned)
}

/// Tidies up after a crash; call it before a run reads or writes its checkpoints.
///
/// Removes what was being written or removed, and puts back what was being replaced.
///
/// # Errors
/// If the system refuses.
pub fn clean(checkpoints: &Path) -> anyhow::Result<()> {
    let tidy = || -> io::Result<()> {
        if !checkpoints.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(checkpoints)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let replaced = name
                .strip_prefix(OLD_PREFIX)
                .map(|name| checkpoints.join(name));
            match replaced {
                Some(target) if !target.exists() => fs::rename(&path, target)?,
                Some(_) => fs::remove_dir_all(&path)?,
                None if name.starts_with(TEMP_PREFIX) => fs::remove_dir_all(&path)?,
                None => {}
            }
        }
        durable::sync_folder(checkpoints)
    };
    tidy().map_err(|error| durable::explain(error, "tidy up", checkpoints))
}
