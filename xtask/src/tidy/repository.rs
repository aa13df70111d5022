//! Rules about the repository as a whole: which files there are, how large, and that they agree.

use std::io;

use super::files::Repository;
use super::rust_file::machine_path;
use super::{Finding, manifest};

/// What a newcomer looks for in the root.
const REQUIRED: &[(&str, &str)] = &[
    ("README.md", "what it is, one command, one picture"),
    (
        "ARCHITECTURE.md",
        "the code map and what is deliberately absent",
    ),
    ("CHANGELOG.md", "what a user notices, newest version on top"),
    ("CONTRIBUTING.md", "how to build, test and add things"),
    ("LICENSE-MIT", "the licence text"),
    ("LICENSE-APACHE", "the licence text"),
];

/// A clone stays quick. Larger data is made by a script.
const MAX_FILE_BYTES: u64 = 7 << 20;

/// Text files besides Rust that must work on every machine.
const PORTABLE_ENDS: &[&str] = &[".toml", ".sh", ".py", ".ci/run"];

/// All rules of this file.
pub(super) fn check(repository: &Repository) -> io::Result<Vec<Finding>> {
    let mut findings = required_files(repository);
    findings.extend(large_files(repository));
    findings.extend(changelog(repository)?);
    findings.extend(presets(repository)?);
    findings.extend(machine_paths(repository)?);
    Ok(findings)
}

fn finding(path: &str, line: usize, message: impl Into<String>) -> Finding {
    Finding {
        path: path.into(),
        line,
        message: message.into(),
    }
}

fn required_files(repository: &Repository) -> Vec<Finding> {
    let absent = REQUIRED.iter().filter(|(path, _)| !repository.has(path));
    absent
        .map(|(path, content)| finding(path, 0, format!("missing; it holds {content}")))
        .collect()
}

fn large_files(repository: &Repository) -> Vec<Finding> {
    let large = repository
        .files
        .iter()
        .filter(|file| file.n_bytes > MAX_FILE_BYTES);
    large
        .map(|file| {
            let message = format!("{} bytes, at most {MAX_FILE_BYTES}", file.n_bytes);
            finding(&file.path, 0, message)
        })
        .collect()
}

fn changelog(repository: &Repository) -> io::Result<Option<Finding>> {
    if !repository.has("CHANGELOG.md") {
        return Ok(None);
    }
    let manifest = repository.text("Cargo.toml")?;
    let version = manifest::workspace_version(&manifest).unwrap_or("no version");
    let text = repository.text("CHANGELOG.md")?;
    Ok(changelog_mismatch(&text, version)
        .map(|(line, message)| finding("CHANGELOG.md", line, message)))
}

/// The top entry must be about the version that is built: `## 0.1.0` or `## [0.1.0] - 2026-01-31`.
fn changelog_mismatch(text: &str, version: &str) -> Option<(usize, String)> {
    let top = text
        .lines()
        .enumerate()
        .find_map(|(i, line)| Some((i + 1, line.strip_prefix("## ")?)));
    let Some((line, title)) = top else {
        return Some((0, format!("no entry; the first one is `## {version}`")));
    };
    let found = title
        .split_whitespace()
        .next()
        .unwrap_or("")
        .trim_matches(['[', ']', 'v', ':']);
    (found != version).then(|| {
        (
            line,
            format!("top entry `{title}`, but the workspace is {version}"),
        )
    })
}

/// A preset that is in no list is found by nobody.
fn presets(repository: &Repository) -> io::Result<Vec<Finding>> {
    if !repository.has("README.md") {
        return Ok(Vec::new());
    }
    let mut lists = repository.text("README.md")?;
    for path in repository
        .paths_ending_in(".rs")
        .filter(|path| path.starts_with("crates/p2/src/"))
    {
        lists.push_str(&repository.text(path)?);
    }
    let presets = repository
        .paths_ending_in(".toml")
        .filter(|path| path.starts_with("configs/"));
    Ok(presets
        .filter(|path| !lists.contains(path))
        .map(|path| finding(path, 0, "neither in README.md nor embedded by crates/p2"))
        .collect())
}

fn machine_paths(repository: &Repository) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for end in PORTABLE_ENDS {
        for path in repository.paths_ending_in(end) {
            for (i, text) in repository.text(path)?.lines().enumerate() {
                findings.extend(machine_path(text).map(|message| finding(path, i + 1, message)));
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_entry_is_the_version() {
        let check = |text, line: Option<usize>| {
            let mismatch = changelog_mismatch(text, "0.1.0");
            assert_eq!(mismatch.map(|(line, _)| line), line, "{text}");
        };
        check("# Changelog\n\n## 0.1.0\n", None);
        check("# Changelog\n\n## [0.1.0] - 2026-01-31\n## 0.0.9\n", None);
        check("# Changelog\n\n## v0.1.0 (unreleased)\n", None);
        check("# Changelog\n\n## 0.0.9\n## 0.1.0\n", Some(3));
        check("# Changelog\n\n## Unreleased\n## 0.1.0\n", Some(3));
        check("# Changelog\n", Some(0));
    }
}
