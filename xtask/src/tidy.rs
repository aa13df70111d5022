//! The house rules that a program can check. Each rule is a table in one of the files below.
//!
//! The check is also a test, so that `cargo test --workspace` holds the rules.

mod files;
mod manifest;
mod repository;
mod rust_file;
mod scan;

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::Outcome;
use files::Repository;
use rust_file::RustFile;

/// One broken rule: where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    path: String,
    /// Counted from 1; 0 where the whole file is meant.
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.path, self.message),
            line => write!(formatter, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Checks the repository and prints what breaks a rule.
pub(crate) fn run() -> Outcome {
    match repository_root()
        .and_then(Repository::read)
        .and_then(|repository| check(&repository))
    {
        Ok(findings) if findings.is_empty() => {
            println!("tidy: no rule is broken");
            Outcome::Passed
        }
        Ok(findings) => {
            println!("{}", describe(&findings));
            Outcome::Failed
        }
        Err(error) => {
            eprintln!("error: {error}");
            Outcome::CouldNotRun
        }
    }
}

/// The folder of the workspace, as seen from the folder of this crate, which cargo names.
pub(crate) fn repository_root() -> io::Result<PathBuf> {
    let crate_folder = std::env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| {
        io::Error::other("cargo does not say where xtask is\n\nhint: start it as `cargo xtask`")
    })?;
    PathBuf::from(crate_folder)
        .parent()
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other("xtask has no parent folder"))
}

fn check(repository: &Repository) -> io::Result<Vec<Finding>> {
    let mut findings = repository::check(repository)?;
    for path in repository.paths_ending_in(".rs") {
        let source = repository.text(path)?;
        findings.extend(RustFile::new(path, &source).check());
    }
    for path in repository.paths_ending_in("Cargo.toml") {
        findings.extend(manifest::check(path, &repository.text(path)?));
    }
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    Ok(findings)
}

fn describe(findings: &[Finding]) -> String {
    let lines: String = findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect();
    format!(
        "{lines}tidy: {} places break a rule; the rules are in CONTRIBUTING.md",
        findings.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_rules() {
        let root = repository_root().unwrap();
        let findings = check(&Repository::read(root).unwrap()).unwrap();
        assert!(findings.is_empty(), "\n{}", describe(&findings));
    }

    #[test]
    fn a_finding_names_the_line_only_where_there_is_one() {
        let mut finding = Finding {
            path: "a.rs".into(),
            line: 7,
            message: "too long".into(),
        };
        assert_eq!(finding.to_string(), "a.rs:7: too long");
        finding.line = 0;
        assert_eq!(finding.to_string(), "a.rs: too long");
    }
}
