//! A first look at every file: cheap enough for all, enough to drop what cannot be an image.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::dataset::SkippedFile;
use super::decode;
use super::source::{Entry, Source};
use crate::digest::hex;

/// So much of each file is looked at, and enters the fingerprint.
const START_BYTES: u64 = 64 << 10;

/// What the first look at all files found.
#[derive(Debug)]
pub(super) struct Checked {
    /// Files whose header is that of an image.
    pub(super) entries: Vec<Entry>,
    /// The others.
    pub(super) skipped: Vec<SkippedFile>,
    /// SHA-256, in hexadecimal, of all names, lengths and first 64 KiB, skipped files included.
    pub(super) fingerprint: String,
}

/// Reads the start of every file, on all threads of the pool.
///
/// # Errors
/// If a file cannot be read for a reason that lies not in it.
pub(super) fn check(source: &Source, entries: Vec<Entry>) -> Result<Checked> {
    let looks = entries
        .par_iter()
        .map(|entry| look_at(source, entry))
        .collect::<Result<Vec<_>>>()?;
    let mut hash = Sha256::new_with_prefix(b"p2 data 1\n");
    let mut checked = Checked {
        entries: Vec::new(),
        skipped: Vec::new(),
        fingerprint: String::new(),
    };
    for (entry, look) in entries.into_iter().zip(looks) {
        hash.update((entry.name.len() as u64).to_le_bytes());
        hash.update(entry.name.as_bytes());
        hash.update(entry.n_bytes.to_le_bytes());
        hash.update(look.start_hash);
        match look.verdict {
            Ok(()) => checked.entries.push(entry),
            Err(error) => checked.skipped.push(skipped(&entry.name, &error)),
        }
    }
    checked.fingerprint = hex(&hash.finalize());
    Ok(checked)
}

/// The record of a file that cannot be used.
pub(super) fn skipped(file: &Arc<str>, error: &anyhow::Error) -> SkippedFile {
    SkippedFile {
        file: Arc::clone(file),
        reason: format!("{error:#}"),
    }
}

struct Look {
    start_hash: [u8; 32],
    verdict: Result<()>,
}

fn look_at(source: &Source, entry: &Entry) -> Result<Look> {
    Ok(match source.read_start(entry, START_BYTES) {
        Ok(start) => Look {
            start_hash: Sha256::digest(&start).into(),
            verdict: check_header(source, entry, &start)?,
        },
        Err(failure) => Look {
            start_hash: [0; 32],
            verdict: Err(failure.at_first_look(entry)?),
        },
    })
}

/// What is wrong with the header of a file, if anything; an error if that cannot be told.
fn check_header(source: &Source, entry: &Entry, start: &[u8]) -> Result<Result<()>> {
    if start.is_empty() {
        return Ok(Err(anyhow!("the file is empty")));
    }
    let mut dimensions = decode::dimensions(start);
    // Large metadata can push the size of the image beyond the start of the file.
    if dimensions.is_err() && entry.n_bytes > START_BYTES {
        dimensions = match source.read(entry) {
            Ok(bytes) => decode::dimensions(&bytes),
            Err(failure) => Err(failure.at_first_look(entry)?),
        };
    }
    Ok(dimensions.map(|_| ()))
}
