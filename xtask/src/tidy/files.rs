//! The files of the repository, found without git: a copy without history is checked as well.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders that are never part of the project, at any depth.
const SKIPPED_FOLDERS: &[&str] = &[".git", "target"];

/// All files of the project, with their sizes.
pub(super) struct Repository {
    root: PathBuf,
    pub(super) files: Vec<File>,
}

/// One file; the path is relative to the root and written with `/`.
pub(super) struct File {
    pub(super) path: String,
    pub(super) n_bytes: u64,
}

impl Repository {
    /// Lists the files under `root`, without what `.gitignore` names at the top level.
    pub(super) fn read(root: PathBuf) -> io::Result<Self> {
        let ignored = fs::read_to_string(root.join(".gitignore")).unwrap_or_default();
        let ignored: Vec<&str> = ignored
            .lines()
            .filter_map(|line| line.strip_prefix('/'))
            .collect();
        let mut files = Vec::new();
        walk(&root, "", &ignored, &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { root, files })
    }

    pub(super) fn paths_ending_in<'a>(&'a self, end: &'a str) -> impl Iterator<Item = &'a str> {
        self.files
            .iter()
            .map(|file| file.path.as_str())
            .filter(move |path| path.ends_with(end))
    }

    /// The content of a text file. An error names the file.
    pub(super) fn text(&self, path: &str) -> io::Result<String> {
        fs::read_to_string(self.root.join(path))
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file.path == path)
    }
}

/// `ignored` holds paths relative to the root. Links are not followed.
fn walk(root: &Path, folder: &str, ignored: &[&str], files: &mut Vec<File>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() {
            name.clone()
        } else {
            format!("{folder}/{name}")
        };
        if ignored
            .iter()
            .any(|ignored| ignored.trim_end_matches('/') == path)
        {
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED_FOLDERS.contains(&name.as_str()) {
            walk(root, &path, ignored, files)?;
        } else if kind.is_file() && name != ".git" {
            files.push(File {
                path,
                n_bytes: entry.metadata()?.len(),
            });
        }
    }
    Ok(())
}
