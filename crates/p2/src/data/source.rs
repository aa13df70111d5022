//! Where image files come from: a folder, a zip archive, or an archive inside the binary.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};

use super::access::{Failure, with_patience};
use super::archive::Archive;
use super::bundled::{self, BUNDLED};
use super::dataset::SkippedFile;
use super::folder::Folder;
use crate::config::DATA_HINT;
use crate::problem::Problem;

/// A larger file is not read: it is no photograph, and would not fit in memory many times over.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

/// More files than this are refused.
pub(super) const MAX_FILES: usize = 1 << 24;

/// Endings of image files, in lower case.
pub(super) const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "gif", "bmp", "webp"];

/// A file that is an image by its name; nothing of it was read yet.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Path below the root, with `/` between folders.
    pub(super) name: Arc<str>,
    /// Length of the file, unpacked.
    pub(super) n_bytes: u64,
    /// Place in the archive; 0 for a file of a folder.
    pub(super) position: usize,
}

/// What a source holds.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Image files, sorted by name.
    pub(super) entries: Vec<Entry>,
    /// What could not be listed.
    pub(super) skipped: Vec<SkippedFile>,
}

impl Listing {
    /// Takes `entry` in, or notes why not.
    pub(super) fn add(&mut self, entry: Entry) {
        if entry.n_bytes > MAX_FILE_BYTES {
            let reason = format!(
                "{} bytes are more than the limit of {MAX_FILE_BYTES}",
                entry.n_bytes
            );
            self.skipped.push(SkippedFile {
                file: entry.name,
                reason,
            });
        } else {
            self.entries.push(entry);
        }
    }

    /// Notes that `file` cannot be listed.
    pub(super) fn skip(&mut self, file: &str, reason: String) {
        self.skipped.push(SkippedFile {
            file: file.into(),
            reason,
        });
    }

    /// Sorts everything by name, so that no order of a file system or archive shows.
    pub(super) fn sorted(mut self) -> Self {
        self.entries
            .sort_by(|a, b| (&a.name, a.position).cmp(&(&b.name, b.position)));
        self.skipped.sort_by(|a, b| a.file.cmp(&b.file));
        self
    }
}

/// A place that holds image files.
#[derive(Debug)]
pub(super) enum Source {
    Folder(Folder),
    Archive(Archive),
}

impl Source {
    /// Opens a folder, a `.zip`, or `bundled:NAME`.
    pub(super) fn open(path: &str) -> Result<Self> {
        if let Some(name) = path.strip_prefix(BUNDLED) {
            return Ok(Self::Archive(Archive::of_bytes(bundled::archive(name)?)?));
        }
        let path = Path::new(path);
        let metadata = path.metadata().map_err(|error| {
            Problem::new(format!("cannot read data: {}", path.display()))
                .caused_by(error)
                .hint(DATA_HINT)
        })?;
        if metadata.is_dir() {
            return Ok(Self::Folder(Folder::at(path)));
        }
        if !has_extension(&path.to_string_lossy(), &["zip"]) {
            let path = path.display();
            let message = format!("cannot read data: {path} is neither a folder nor a .zip");
            return Err(Problem::new(message).hint(DATA_HINT).into());
        }
        Ok(Self::Archive(Archive::open(path)?))
    }

    /// All files that are images by their names.
    pub(super) fn list(&self) -> Result<Listing> {
        let listing = match self {
            Self::Folder(folder) => folder.list()?,
            Self::Archive(archive) => archive.list()?,
        };
        let n_files = listing.entries.len();
        ensure!(
            n_files <= MAX_FILES,
            "{n_files} image files are more than the limit of {MAX_FILES}"
        );
        Ok(listing.sorted())
    }

    /// The first `n_bytes` of a file, or all of it if it is shorter.
    pub(super) fn read_start(&self, entry: &Entry, n_bytes: u64) -> Result<Vec<u8>, Failure> {
        with_patience(|| match self {
            Self::Folder(folder) => folder.read_start(entry, n_bytes),
            Self::Archive(archive) => archive.read_start(entry, n_bytes),
        })
    }

    /// A whole file.
    pub(super) fn read(&self, entry: &Entry) -> Result<Vec<u8>, Failure> {
        // One byte more than allowed: a file may have grown, and an archive may lie about lengths.
        let bytes = self.read_start(entry, MAX_FILE_BYTES + 1)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            let damage = anyhow!("more than the limit of {MAX_FILE_BYTES} bytes");
            return Err(Failure::Damage(damage));
        }
        Ok(bytes)
    }
}

/// Whether a file is an image by its name and lies in no hidden place.
///
/// Hidden are names with a leading dot and `__MACOSX`: resource forks and thumbnails, no images.
pub(super) fn is_image_name(name: &str) -> bool {
    !name.split('/').any(is_hidden) && has_extension(name, &EXTENSIONS)
}

/// Whether a file or folder of this name is passed over.
pub(super) fn is_hidden(component: &str) -> bool {
    let has_leading_dot = component.starts_with('.') && component != "..";
    has_leading_dot || component == "__MACOSX"
}

fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = Path::new(name)
        .extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|extension| extensions.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_extension() {
        for (name, expected) in [
            ("a.png", true),
            ("a/b.JPeG", true),
            ("a.b.webp", true),
            ("x.gif", true),
            ("x.BMP", true),
            ("x.jpg", true),
            ("x.txt", false),
            ("png", false),
            (".png", false),
            ("a/._b.png", false),
            (".thumbnails/b.png", false),
            ("__MACOSX/b.png", false),
            ("../b.png", true),
        ] {
            assert_eq!(is_image_name(name), expected, "{name}");
        }
    }
}
