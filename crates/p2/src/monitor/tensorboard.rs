//! Scalars for TensorBoard: its event files, written without its libraries.
//!
//! A file is a sequence of `TFRecord`s (length, masked CRC-32C of the length, data, masked CRC-32C
//! of the data), each holding one protobuf message `Event` (tensorboard/compat/proto/event.proto).
//! The step of an event is the run's clock, `images_seen`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::durable;

/// An event file that grows.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

/// A named number, such as `loss/mse`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    /// The name; text before a slash groups curves.
    pub tag: String,
    /// The number.
    pub value: f32,
}

/// What an event says, besides its time and step.
enum What<'a> {
    FileVersion,
    /// Curves from this step on are to be forgotten: an interrupted run continues before them.
    Restart,
    Scalars(&'a [Scalar]),
}

impl EventWriter {
    /// Begins a new file in `folder` for a run that goes on at the checkpoint of so many images, `None`
    /// for one that begins.
    ///
    /// Where a run begins, the files of a start that ended before its first checkpoint are removed.
    /// Otherwise they stay, and TensorBoard is told to forget their points after the
    /// checkpoint.
    ///
    /// # Errors
    /// If the file cannot be written, or an old one not be removed.
    pub fn create(folder: &Path, checkpoint: Option<u64>) -> anyhow::Result<Self> {
        let old = files_in(folder).map_err(|error| durable::explain(error, "read", folder))?;
        let (path, file) =
            create_file(folder).map_err(|error| durable::explain(error, "write", folder))?;
        let mut writer = Self { path, file };
        writer.write(0, &What::FileVersion)?;
        // Even of files that are removed: a TensorBoard that is looking has read them already.
        if checkpoint.is_some() || !old.is_empty() {
            writer.write(checkpoint.unwrap_or(0) + 1, &What::Restart)?;
        }
        // Last, so that the new file has another name than all of them.
        for path in old.iter().filter(|_| checkpoint.is_none()) {
            fs::remove_file(path).map_err(|error| durable::explain(error, "remove", path))?;
        }
        Ok(writer)
    }

    /// Adds one point to each curve.
    ///
    /// # Errors
    /// If it cannot be written, as on a full disk.
    pub fn append(&mut self, images_seen: u64, scalars: &[Scalar]) -> anyhow::Result<()> {
        self.write(images_seen, &What::Scalars(scalars))
    }

    fn write(&mut self, step: u64, what: &What<'_>) -> anyhow::Result<()> {
        let bytes = record(&event(now(), step, what));
        self.file
            .write_all(&bytes)
            .map_err(|error| durable::explain(error, "write", &self.path))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "TensorBoard shows wall-clock times"
)]
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// What the names of our files begin and end with. TensorBoard reads all that contain `tfevents`, in
/// the order of their names.
const NAME: (&str, &str) = ("events.out.tfevents.", ".p2");

/// Our files in a folder.
fn files_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(NAME.0) && name.ends_with(NAME.1) {
            files.push(path);
        }
    }
    Ok(files)
}

/// A new file whose name comes after all others.
fn create_file(folder: &Path) -> io::Result<(PathBuf, File)> {
    let secs = now() as u64;
    for n in 0u32.. {
        let (start, end) = NAME;
        let path = folder.join(format!("{start}{secs:010}.{n:03}{end}"));
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|file| (path, file)),
        }
    }
    Err(io::Error::other("no name is left for the event file"))
}

/// A `TFRecord`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// CRC-32C, rotated and shifted, because a CRC of data that holds CRCs is weak.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

/// The protobuf message `Event`: fields `wall_time` 1, `step` 2, `file_version` 3, `summary` 5,
/// `session_log` 7. As protobuf does, a step of 0 is left out.
fn event(wall_time: f64, step: u64, what: &What<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_key(&mut bytes, 1, Wire::Fixed64);
    bytes.extend(wall_time.to_le_bytes());
    if step != 0 {
        put_key(&mut bytes, 2, Wire::Varint);
        put_varint(&mut bytes, step);
    }
    match what {
        What::FileVersion => put_bytes(&mut bytes, 3, b"brain.Event:2"),
        What::Restart => put_bytes(&mut bytes, 7, &[0x08, 0x01]), // status = START
        What::Scalars(scalars) => put_bytes(&mut bytes, 5, &summary(scalars)),
    }
    bytes
}

/// The message `Summary`: `value` 1, each with `tag` 1 and `simple_value` 2.
fn summary(scalars: &[Scalar]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for scalar in scalars {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, scalar.tag.as_bytes());
        put_key(&mut value, 2, Wire::Fixed32);
        value.extend(scalar.value.to_le_bytes());
        put_bytes(&mut bytes, 1, &value);
    }
    bytes
}

#[derive(Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: Wire) {
    put_varint(out, field << 3 | wire as u64);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, Wire::Bytes);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Seven bits per byte, the lowest first; the top bit says that more follow.
fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalars() -> Vec<Scalar> {
        vec![
            Scalar {
                tag: "loss/weighted".to_owned(),
                value: 0.125,
            },
            Scalar {
                tag: "loss/mse".to_owned(),
                value: -3.5e-7,
            },
        ]
    }

    #[test]
    fn the_bytes_are_those_of_tensorboard() {
        let golden = include_bytes!("../../tests/goldens/scalar_events.tfevents");
        let events = [
            event(1_700_000_000.25, 0, &What::FileVersion),
            event(1_700_000_000.5, 12_801, &What::Restart),
            event(1_700_000_001.75, 128_000, &What::Scalars(&scalars())),
        ];
        assert_eq!(events.map(|event| record(&event)).concat(), golden);
    }

    #[test]
    fn a_crc_of_the_standard_is_met() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// Takes a file apart and checks both sums of every record.
    fn decode(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_at(8);
            let (length_sum, rest) = rest.split_at(4);
            assert_eq!(length_sum, masked_crc(length));
            let (data, rest) =
                rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
            let (data_sum, rest) = rest.split_at(4);
            assert_eq!(data_sum, masked_crc(data));
            events.push(data.to_vec());
            bytes = rest;
        }
        events
    }

    fn paths_in(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    /// The events of a file behind their times, which are 9 bytes.
    fn events_in(path: &Path) -> Vec<Vec<u8>> {
        let events = decode(&fs::read(path).unwrap());
        events.iter().map(|event| event[9..].to_vec()).collect()
    }

    fn after_time(step: u64, what: &What<'_>) -> Vec<u8> {
        event(0.0, step, what)[9..].to_vec()
    }

    #[test]
    fn a_start_without_a_checkpoint_leaves_no_points() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("events.out.tfevents.1.other-program");
        fs::write(&other, "").unwrap();
        for _ in 0..3 {
            let mut writer = EventWriter::create(folder.path(), None).unwrap();
            writer.append(64, &scalars()).unwrap();
        }
        let paths = paths_in(folder.path());
        assert_eq!(paths.len(), 2, "{paths:?}");
        assert_eq!(paths[0], other);
        let scalars = scalars();
        let expected = [
            after_time(0, &What::FileVersion),
            after_time(1, &What::Restart),
            after_time(64, &What::Scalars(&scalars)),
        ];
        assert_eq!(events_in(&paths[1]), expected);
    }

    #[test]
    fn a_resumed_run_gets_a_file_of_its_own_that_says_so() {
        let folder = tempfile::tempdir().unwrap();
        EventWriter::create(folder.path(), None)
            .unwrap()
            .append(64, &scalars())
            .unwrap();
        EventWriter::create(folder.path(), Some(64))
            .unwrap()
            .append(128, &scalars())
            .unwrap();
        let paths = paths_in(folder.path());
        let scalars = scalars();
        assert_eq!(
            events_in(&paths[0]),
            [
                after_time(0, &What::FileVersion),
                after_time(64, &What::Scalars(&scalars))
            ]
        );
        assert_eq!(
            events_in(&paths[1]),
            [
                after_time(0, &What::FileVersion),
                after_time(65, &What::Restart),
                after_time(128, &What::Scalars(&scalars))
            ]
        );
    }
}
