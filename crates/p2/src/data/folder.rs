//! A folder of images, searched recursively.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkdir::{DirEntry, WalkDir};

use super::access::{Failure, is_lasting};
use super::source::{Entry, Listing, is_hidden, is_image_name};

/// A folder of images.
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// All image files below the root. Links are followed; a loop of links is skipped and named, and
    /// so are folders that are gone or nobody may read.
    ///
    /// # Errors
    /// If a folder cannot be read for another reason, which may pass.
    pub(super) fn list(&self) -> Result<Listing> {
        let mut listing = Listing::default();
        let visible = |entry: &DirEntry| {
            entry.depth() == 0 || !is_hidden(&entry.file_name().to_string_lossy())
        };
        for found in WalkDir::new(&self.root)
            .follow_links(true)
            .into_iter()
            .filter_entry(visible)
        {
            match found {
                Ok(entry) if entry.file_type().is_file() => self.add(&entry, &mut listing),
                Ok(_) => {}
                Err(error) if error.io_error().is_some_and(|error| !is_lasting(error)) => {
                    return Err(error).context("cannot list all files");
                }
                Err(error) => {
                    let path = error
                        .path()
                        .map(|path| self.name_of(path))
                        .unwrap_or_default();
                    listing.skip(&path, error.to_string());
                }
            }
        }
        Ok(listing)
    }

    fn add(&self, found: &DirEntry, listing: &mut Listing) {
        let name = self.name_of(found.path());
        if !is_image_name(&name) {
            return;
        }
        if found.path().to_str().is_none() {
            return listing.skip(&name, "the name is not UTF-8".to_owned());
        }
        match found.metadata() {
            Ok(metadata) => {
                listing.add(Entry {
                    name: name.into(),
                    n_bytes: metadata.len(),
                    position: 0,
                });
            }
            Err(error) => listing.skip(&name, error.to_string()),
        }
    }

    /// The path below the root, with `/` between folders.
    fn name_of(&self, path: &Path) -> String {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
        parts.join("/")
    }

    /// The first `n_bytes` of a file.
    pub(super) fn read_start(&self, entry: &Entry, n_bytes: u64) -> Result<Vec<u8>, Failure> {
        let read = || {
            let file = File::open(self.root.join(&*entry.name))?;
            let mut bytes = Vec::with_capacity(n_bytes.min(entry.n_bytes) as usize);
            file.take(n_bytes).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(Failure::Access)
    }
}
