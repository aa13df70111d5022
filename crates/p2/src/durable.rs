//! Files that survive a crash: written beside their place, flushed to the disk, then renamed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;

use crate::problem::Problem;

/// Writes a whole file, so that a crash leaves the old content or the new one.
///
/// # Errors
/// If the disk refuses; the old content is then untouched.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temp = temp_path(path);
    let result = write_new(&temp, bytes)
        .and_then(|()| fs::rename(&temp, path))
        .and_then(|()| sync_folder(path.parent().unwrap_or(Path::new("."))));
    if result.is_err() {
        // What matters is the first error; a leftover is overwritten next time.
        let _ = fs::remove_file(&temp);
    }
    result.map_err(|error| explain(error, "write", path))
}

/// Writes a file and flushes it to the disk.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Flushes the names in a folder to the disk: creations, renames and removals.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    // Elsewhere folders cannot be opened, and renames need no help.
    if cfg!(unix) {
        File::open(folder)?.sync_all()
    } else {
        Ok(())
    }
}

/// Makes a folder and those above it.
///
/// # Errors
/// If the system refuses.
pub fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).map_err(|error| explain(error, "make the folder", path))
}

/// Makes the folder that a file shall lie in: now rather than when there is something to write.
///
/// # Errors
/// If the system refuses.
pub fn make_parent(path: &Path) -> anyhow::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => make_folder(folder),
        _ => Ok(()),
    }
}

/// Reads a whole text file.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// An input or output error in words, with a way out where there is one.
pub(crate) fn explain(error: io::Error, verb: &str, path: &Path) -> anyhow::Error {
    let problem = Problem::new(format!("cannot {verb} {}", path.display()));
    let problem = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            problem.hint("the disk is full: free some space, then give the same command again")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            problem.hint("choose a folder that you may write to with --out DIR")
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            problem.hint("a file is in the way: choose another folder with --out DIR")
        }
        _ => problem,
    };
    problem.caused_by(error).into()
}

/// The sibling `.NAME.tmp`.
fn temp_path(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"old and longer").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_refused_write_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        let error = write(&path, b"new").unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_has_a_hint() {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        let error = explain(error, "write", Path::new("x"));
        let problem = Problem::inside(&error).unwrap();
        assert!(problem.way_out().unwrap().contains("disk is full"));
    }
}
