//! A zip archive of images, read in place: nothing is ever unpacked to disk.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use zip::ZipArchive;

use super::access::{Failed, Failure, Watched};
use super::source::{Entry, Listing, MAX_FILES, is_image_name};
use crate::problem::Problem;

trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

/// A zip archive of images.
pub(super) struct Archive {
    // One reader for all threads: unpacking a file is cheap beside decoding the image in it.
    zip: Mutex<ZipArchive<Box<dyn ReadSeek>>>,
    /// Errors of the file itself.
    failed: Failed,
}

impl Archive {
    /// The archive in a file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let place = || {
            Problem::new(format!("cannot read archive: {}", path.display()))
                .hint("pack the images anew, or give the folder that they lie in")
        };
        let file = File::open(path).with_context(place)?;
        let failed = Failed::default();
        let file = BufReader::new(Watched::new(file, &failed));
        Self::new(Box::new(file), failed).with_context(place)
    }

    /// An archive in memory.
    pub(super) fn of_bytes(bytes: &'static [u8]) -> Result<Self> {
        Self::new(Box::new(Cursor::new(bytes)), Failed::default())
            .context("cannot read bundled archive")
    }

    fn new(reader: Box<dyn ReadSeek>, failed: Failed) -> Result<Self> {
        let zip = ZipArchive::new(reader)?;
        let n_files = zip.len();
        ensure!(
            n_files <= MAX_FILES,
            "{n_files} files are more than the limit of {MAX_FILES}"
        );
        Ok(Self {
            zip: Mutex::new(zip),
            failed,
        })
    }

    fn lock(&self) -> MutexGuard<'_, ZipArchive<Box<dyn ReadSeek>>> {
        // A thread that panicked left no half-written state: each read starts with a seek.
        self.zip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All image files of the archive, under the names a folder would give them.
    ///
    /// # Errors
    /// If the file of the archive cannot be read.
    pub(super) fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        let mut zip = self.lock();
        for position in 0..zip.len() {
            match zip.by_index_raw(position) {
                Ok(file) if file.is_file() => {
                    let raw_name = String::from_utf8_lossy(file.name_raw()).into_owned();
                    match file.enclosed_name() {
                        Some(path) => {
                            let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy()).collect();
                            let name = parts.join("/");
                            if is_image_name(&name) {
                                let n_bytes = file.size();
                                listing.add(Entry {
                                    name: name.into(),
                                    n_bytes,
                                    position,
                                });
                            }
                        }
                        None if is_image_name(&raw_name) => {
                            listing.skip(&raw_name, "the path leaves the archive".to_owned());
                        }
                        None => {}
                    }
                }
                Ok(_) => {}
                Err(error) => match self.failed.take() {
                    Some(failed) => return Err(failed).context("cannot list all files"),
                    None => listing.skip(&format!("file {position}"), error.to_string()),
                },
            }
        }
        Ok(listing)
    }

    /// The first `n_bytes` of a file, whatever length the archive states.
    pub(super) fn read_start(&self, entry: &Entry, n_bytes: u64) -> Result<Vec<u8>, Failure> {
        let mut zip = self.lock();
        let mut unpack = || -> Result<Vec<u8>> {
            let file = zip.by_index(entry.position)?;
            let mut bytes = Vec::new();
            file.take(n_bytes).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let unpacked = unpack().context("cannot unpack");
        match self.failed.take() {
            Some(error) if unpacked.is_err() => Err(Failure::Access(error)),
            _ => unpacked.map_err(Failure::Damage),
        }
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive")
            .field("n_files", &self.lock().len())
            .finish()
    }
}
