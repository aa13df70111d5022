//! `metrics.jsonl`: one JSON record per line, each with the `images_seen` it belongs to.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::durable;

/// The open file of records.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Records of the moment at which the run goes on.
    last: Vec<Vec<u8>>,
}

/// What every record holds.
#[derive(Deserialize)]
struct Clock {
    images_seen: u64,
}

impl Metrics {
    /// Opens the records of a run that stands at `images_seen`, 0 for a new one.
    ///
    /// Later records belong to images that will be seen again; they are dropped, and so is a line
    /// that a crash cut off. The file then equals that of a run that was never interrupted if all
    /// checkpoints fall on log intervals, apart from measured speeds and from the held-out records
    /// that a limit adds.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, images_seen: u64) -> anyhow::Result<Self> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let kept = records_until(&text, images_seen);
        if kept != text {
            durable::write(path, &kept)?;
        }
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|error| durable::explain(error, "write", path))?;
        let is_last = |line: &&[u8]| clock(line).is_some_and(|clock| clock == images_seen);
        let last = lines(&kept).filter(is_last).map(<[u8]>::to_vec).collect();
        Ok(Self {
            path: path.to_owned(),
            file,
            last,
        })
    }

    /// Adds a record, which must be a JSON object with `images_seen`.
    ///
    /// One that stands there already is not added again: a finished run that is started once more
    /// measures its last held-out loss once more. Returns whether it was added.
    ///
    /// # Errors
    /// If it cannot be written, as on a full disk.
    pub fn append(&mut self, record: &impl Serialize) -> anyhow::Result<bool> {
        let mut line = serde_json::to_vec(record)?;
        anyhow::ensure!(
            clock(&line).is_some(),
            "a record needs `images_seen`: {}",
            String::from_utf8_lossy(&line)
        );
        line.push(b'\n');
        if self.last.contains(&line) {
            return Ok(false);
        }
        // One write per line, so that a crash cuts off at most the last one.
        self.file
            .write_all(&line)
            .map_err(|error| durable::explain(error, "write", &self.path))?;
        Ok(true)
    }

    /// Flushes the records to the disk; call it before a checkpoint is saved, which they must not
    /// fall behind.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn sync(&self) -> anyhow::Result<()> {
        self.file
            .sync_all()
            .map_err(|error| durable::explain(error, "write", &self.path))
    }
}

/// The whole lines whose clock is at most `images_seen`.
fn records_until(text: &[u8], images_seen: u64) -> Vec<u8> {
    let belongs = |line: &&[u8]| {
        line.ends_with(b"\n") && clock(line).is_some_and(|clock| clock <= images_seen)
    };
    lines(text).filter(belongs).collect::<Vec<_>>().concat()
}

/// The lines with their ends.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&byte| byte == b'\n')
}

/// The `images_seen` of a record.
fn clock(line: &[u8]) -> Option<u64> {
    let clock = serde_json::from_slice::<Clock>(line).ok()?;
    Some(clock.images_seen)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(path: &Path, from: u64, images: impl IntoIterator<Item = u64>) {
        let mut metrics = Metrics::open(path, from).unwrap();
        for images_seen in images {
            metrics
                .append(&json!({ "images_seen": images_seen, "mse": 0.5 }))
                .unwrap();
        }
        metrics.sync().unwrap();
    }

    #[test]
    fn an_interrupted_run_ends_with_the_same_records() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, resumed) = (folder.path().join("whole"), folder.path().join("resumed"));
        record(&whole, 0, [32, 64, 96, 128]);
        record(&resumed, 0, [32, 64, 96]);
        // The last checkpoint was at 64, and the crash cut off a line.
        let mut file = File::options().append(true).open(&resumed).unwrap();
        file.write_all(b"{\"images_seen\":9").unwrap();
        record(&resumed, 64, [96, 128]);
        assert_eq!(fs::read(&resumed).unwrap(), fs::read(&whole).unwrap());
        record(&resumed, 0, []);
        assert_eq!(fs::read(&resumed).unwrap(), b"");
    }

    #[test]
    fn a_cut_off_line_is_dropped_even_where_it_is_valid() {
        assert_eq!(
            records_until(b"{\"images_seen\":1}\n{\"images_seen\":1}", 5),
            b"{\"images_seen\":1}\n"
        );
        assert_eq!(
            records_until(b"\xff\xfe\n{\"images_seen\":1}\n[]\n", 5),
            b"{\"images_seen\":1}\n"
        );
    }

    #[test]
    fn a_record_that_stands_there_is_not_added_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m");
        record(&path, 0, [32, 64]);
        let before = fs::read(&path).unwrap();
        record(&path, 64, [64]);
        assert_eq!(fs::read(&path).unwrap(), before);
        record(&path, 64, [64, 96]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_record_without_a_clock_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(&folder.path().join("m"), 0).unwrap();
        assert!(metrics.append(&json!({ "mse": 0.5 })).is_err());
        assert!(metrics.append(&json!(3)).is_err());
    }
}
