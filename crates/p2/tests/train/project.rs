//! A folder with small images, and runs in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use p2::checkpoint::StoredTensors;
use p2::fault;
use serde_json::{Map, Value};
use tempfile::TempDir;

use super::program::p2;

/// A folder with `tiny.toml` and the images that it trains on.
pub(crate) struct Project {
    folder: TempDir,
}

/// The folder of a checkpoint: its name, and the bytes of its files.
#[derive(PartialEq)]
pub(crate) struct Checkpoint {
    pub(crate) name: String,
    files: BTreeMap<String, Vec<u8>>,
}

impl Project {
    /// Ten images of two classes, larger than the network's, so that crops differ.
    pub(crate) fn new() -> Self {
        let project = Self::without_images();
        for number in 0..10 {
            let class = if number < 4 { "cat" } else { "dog" };
            project.draw(&format!("{class}/{number}.png"), number);
        }
        project
    }

    pub(crate) fn without_images() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("tiny.toml"), include_str!("tiny.toml")).unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes an image that is like no other, seen from neither side.
    pub(crate) fn draw(&self, name: &str, number: u8) {
        let path = self.path().join("images").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let image = RgbImage::from_fn(13, 11, |x, y| {
            let (x, y) = (x as u8, y as u8);
            Rgb([
                number.wrapping_mul(29).wrapping_add(7 * x),
                20 * y,
                x.wrapping_mul(number).wrapping_mul(11),
            ])
        });
        image.save(path).unwrap();
    }

    /// `p2 train tiny.toml --out OUT` with more arguments.
    pub(crate) fn train(&self, out: &str, more: &[&str]) -> Command {
        let arguments = [&["train", "tiny.toml", "--out", out], more].concat();
        p2(self.path(), &arguments)
    }

    /// Trains until the program ends by itself.
    #[track_caller]
    pub(crate) fn finish(&self, out: &str, more: &[&str]) {
        let output = self.train(out, more).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }

    /// Trains until the planned fault, which must happen.
    #[track_caller]
    pub(crate) fn train_until(&self, planned: &str, out: &str, more: &[&str]) -> Output {
        let mut command = self.train(out, more);
        let output = command.env(fault::VARIABLE, planned).output().unwrap();
        if planned.contains('=') {
            assert_eq!(output.status.code(), Some(2), "{planned} was not passed");
        } else {
            assert_eq!(output.status.signal(), Some(9), "{planned} was not passed");
        }
        output
    }

    pub(crate) fn checkpoints(&self, out: &str) -> PathBuf {
        self.path().join(out).join("checkpoints")
    }

    /// The newest checkpoint of a run.
    #[track_caller]
    pub(crate) fn last_checkpoint(&self, out: &str) -> Checkpoint {
        let name = names_in(&self.checkpoints(out)).pop().unwrap();
        self.checkpoint(out, &name)
    }

    #[track_caller]
    pub(crate) fn checkpoint(&self, out: &str, name: &str) -> Checkpoint {
        let folder = self.checkpoints(out).join(name);
        let names = names_in(&folder);
        let read = |name: String| (name.clone(), fs::read(folder.join(name)).unwrap());
        Checkpoint {
            name: name.to_owned(),
            files: names.into_iter().map(read).collect(),
        }
    }

    /// The tensors of the newest checkpoint, by `file/name`, without the metadata of the files.
    pub(crate) fn last_tensors(&self, out: &str) -> BTreeMap<String, Vec<f32>> {
        let last = self.last_checkpoint(out);
        let mut tensors = BTreeMap::new();
        for file in last.files.keys().filter(|file| *file != "state.json") {
            let path = self.checkpoints(out).join(&last.name).join(file);
            let stored = StoredTensors::open(&path).unwrap();
            for name in stored.names() {
                tensors.insert(format!("{file}/{name}"), stored.values(name).unwrap());
            }
        }
        tensors
    }

    /// The records of a run, without the speeds.
    pub(crate) fn metrics(&self, out: &str) -> Vec<Map<String, Value>> {
        let text = fs::read_to_string(self.path().join(out).join("metrics.jsonl")).unwrap();
        let records = text.lines().map(|line| {
            let mut record: Map<String, Value> = serde_json::from_str(line).unwrap();
            record.retain(|name, _| !name.starts_with("speed/"));
            record
        });
        records.collect()
    }
}

impl Checkpoint {
    /// Asserts that both are the same to the last bit, and else names what differs.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        assert_eq!(self.name, other.name, "{what}");
        assert!(self.files.keys().eq(other.files.keys()), "{what}");
        let differing: Vec<_> = self
            .files
            .keys()
            .filter(|name| self.files[*name] != other.files[*name])
            .collect();
        assert!(differing.is_empty(), "{what}: {differing:?} differ");
        let n_learned = usize::from(self.files.contains_key("loss.safetensors"));
        assert!(self.files.len() == 4 + n_learned, "{:?}", self.files.keys());
    }
}

/// The visible names in a folder, sorted.
#[track_caller]
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
