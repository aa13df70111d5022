//! The zip that PyTorch writes since 1.6: a pickle, and a file for the numbers of each storage.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use anyhow::{Context as _, Result, ensure};
use zip::read::ZipFile;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::interpret;
use super::tensor::{Storage, TorchTensor};
use super::value::Value;
use super::{MAX_PICKLE, quoted};

/// Files in the zip.
const MAX_FILES: usize = 1 << 18;

/// The numbers in a zip.
#[derive(Debug)]
pub(super) struct Archive<R> {
    zip: ZipArchive<R>,
    /// The folder in the zip that all is in, with a slash at its end.
    folder: String,
    /// The length of the zip.
    n_bytes: u64,
}

impl<R: Read + Seek> Archive<R> {
    /// What the pickle of a zip of so many bytes leaves, and the numbers beside it.
    pub(super) fn read(source: R, n_bytes: u64) -> Result<(Value, Self)> {
        let zip = ZipArchive::new(source)?;
        ensure!(zip.len() <= MAX_FILES, "{} files in the zip", zip.len());
        let names = zip.file_names().collect::<Result<Vec<_>, _>>()?;
        let mut pickles = names.iter().filter(|name| name.ends_with("/data.pkl"));
        let (pickle, more) = (pickles.next(), pickles.next());
        ensure!(more.is_none(), "the zip has two pickles");
        let pickle = pickle.context("the zip has no data.pkl")?.to_string();
        let folder = pickle.trim_end_matches("data.pkl").to_owned();
        let mut archive = Self {
            zip,
            folder,
            n_bytes,
        };
        let has_byte_order = archive.zip.index_for_name(&archive.path("byteorder"));
        ensure!(
            has_byte_order.is_none() || archive.entry("byteorder", 16)? == b"little",
            "the numbers are not little-endian"
        );
        let program = archive.entry("data.pkl", MAX_PICKLE)?;
        Ok((interpret(&program)?.value, archive))
    }

    /// Checks that the zip has the numbers of all tensors.
    pub(super) fn check(&mut self, tensors: &BTreeMap<String, TorchTensor>) -> Result<()> {
        let mut lengths = BTreeMap::new();
        for (name, tensor) in tensors {
            let key = tensor.storage.key.as_str();
            let n_bytes = match lengths.get(key) {
                Some(&n_bytes) => n_bytes,
                None => {
                    let n_bytes = self.stored(&format!("data/{key}"));
                    let n_bytes = n_bytes.with_context(|| format!("tensor `{name}`"))?.size();
                    lengths.insert(key, n_bytes);
                    n_bytes
                }
            };
            let n_expected = tensor.storage.n_bytes()?;
            ensure!(
                n_bytes == n_expected,
                "tensor `{name}` has {n_bytes} bytes of numbers instead of {n_expected}"
            );
        }
        Ok(())
    }

    /// The bytes of a storage.
    pub(super) fn numbers(&mut self, storage: &Storage) -> Result<Vec<u8>> {
        self.entry(&format!("data/{}", storage.key), storage.n_bytes()?)
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.folder)
    }

    /// A file of the zip that lies within it as it is. A compressed one could be a bomb, and PyTorch compresses none.
    fn stored(&mut self, name: &str) -> Result<ZipFile<'_, R>> {
        let path = self.path(name);
        let file = self.zip.by_name(&path);
        let file = file.with_context(|| format!("no {} in the zip", quoted(&path)))?;
        ensure!(
            file.compression() == CompressionMethod::Stored,
            "{} is compressed",
            quoted(&path)
        );
        let n_left = file
            .data_start()
            .and_then(|start| self.n_bytes.checked_sub(start));
        ensure!(
            n_left.is_some_and(|n_left| file.size() <= n_left),
            "{} ends behind the end of the zip",
            quoted(&path)
        );
        Ok(file)
    }

    /// The bytes of a file of the zip, of at most so many.
    fn entry(&mut self, name: &str, n_most: u64) -> Result<Vec<u8>> {
        let file = self.stored(name)?;
        ensure!(file.size() <= n_most, "{name} has {} bytes", file.size());
        let mut bytes = Vec::new();
        file.take(n_most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
