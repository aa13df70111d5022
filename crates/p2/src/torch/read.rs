//! A PyTorch file: what its pickle leaves, and the numbers of its tensors.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::archive::Archive;
use super::legacy::Legacy;
use super::tensor::{TorchTensor, collect};
use super::value::Value;
use crate::problem::Problem;

/// A PyTorch file and where its tensors lie.
#[derive(Debug)]
pub struct TorchFile<R = File> {
    /// What messages call it.
    name: String,
    n_bytes: u64,
    container: Container<R>,
    pub(super) root: Value,
    tensors: BTreeMap<String, TorchTensor>,
    /// The numbers read last, and the key of their storage: tensors may share one.
    last: Option<(String, Vec<u8>)>,
}

#[derive(Debug)]
enum Container<R> {
    Zip(Archive<R>),
    Legacy(Legacy<R>),
}

impl TorchFile {
    /// Opens a file; nothing in it is run.
    ///
    /// # Errors
    /// As [`TorchFile::read`], and if there is no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| unusable(&name))?;
        Self::read(file, &name)
    }
}

impl<R: Read + Seek> TorchFile<R> {
    /// Reads what a file holds, but for its numbers; messages call it `name`. Nothing in it is run.
    ///
    /// # Errors
    /// If PyTorch did not write it, its pickle names or does what weights do not need, or numbers are missing.
    pub fn read(mut source: R, name: &str) -> Result<Self> {
        let read = move || -> Result<Self> {
            let n_bytes = source.seek(SeekFrom::End(0))?;
            source.rewind()?;
            let (root, mut container) = Container::read(source, n_bytes)?;
            let tensors = collect(&root)?;
            if let Container::Zip(archive) = &mut container {
                archive.check(&tensors)?;
            }
            Ok(Self {
                name: name.to_owned(),
                n_bytes,
                container,
                root,
                tensors,
                last: None,
            })
        };
        read().with_context(|| unusable(name))
    }

    /// Its length: its tensors cannot need more.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Its tensors, by the path of names that leads to each.
    pub fn tensors(&self) -> &BTreeMap<String, TorchTensor> {
        &self.tensors
    }

    /// The values of a tensor in row-major order, rounded to f32.
    ///
    /// # Errors
    /// If there is no such tensor, or the file cannot be read.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let file = &self.name;
        let tensor = self.tensors.get(name);
        let tensor = tensor.with_context(|| format!("there is no tensor `{name}` in {file}"))?;
        let key = &tensor.storage.key;
        if self.last.as_ref().is_none_or(|(last, _)| last != key) {
            // Let go of the last numbers before the next are read.
            self.last = None;
            let bytes = self.container.numbers(tensor);
            let bytes = bytes.with_context(|| format!("tensor `{name}` of {file}"))?;
            self.last = Some((key.clone(), bytes));
        }
        let bytes = self.last.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        Ok(tensor.values(bytes))
    }
}

impl<R: Read + Seek> Container<R> {
    /// Reads a file up to its numbers: what its pickle leaves, and the rest.
    fn read(mut source: R, n_bytes: u64) -> Result<(Value, Self)> {
        let mut start = [0; 2];
        source.read_exact(&mut start).context("it is empty")?;
        source.rewind()?;
        match start {
            [b'P', b'K'] => {
                let (root, archive) = Archive::read(source, n_bytes)?;
                Ok((root, Self::Zip(archive)))
            }
            [0x80, 2..=5] => {
                let (root, legacy) = Legacy::read(source, n_bytes)?;
                Ok((root, Self::Legacy(legacy)))
            }
            _ => bail!("it is neither a zip nor a pickle"),
        }
    }

    /// All bytes of the numbers that a tensor lies in.
    fn numbers(&mut self, tensor: &TorchTensor) -> Result<Vec<u8>> {
        let bytes = match self {
            Self::Zip(archive) => archive.numbers(&tensor.storage)?,
            Self::Legacy(legacy) => legacy.numbers(&tensor.storage)?,
        };
        let n_expected = tensor.storage.n_bytes()?;
        ensure!(
            bytes.len() as u64 == n_expected,
            "{} bytes of numbers instead of {n_expected}",
            bytes.len()
        );
        Ok(bytes)
    }
}

fn unusable(name: &str) -> Problem {
    Problem::new(format!("cannot read {name}")).hint(
        "it must be a state dictionary of weights or of an optimizer, as torch.save writes it",
    )
}
