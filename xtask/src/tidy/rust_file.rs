//! Rules about one Rust file: its header, its size, its words.

use super::Finding;
use super::scan::{self, Masked};

/// Without the lines under `#[cfg(test)]`.
const MAX_FILE_LINES: usize = 400;
/// For files that hold nothing but tests or benches.
const MAX_TEST_FILE_LINES: usize = 800;
const MAX_FUNCTION_LINES: usize = 60;
/// A test may be a table, and a table is read line by line.
const MAX_TEST_FUNCTION_LINES: usize = 120;

/// Names of files, folders and modules that say nothing about their content.
const EMPTY_MODULE_NAMES: &[&str] = &[
    "utils", "util", "helpers", "helper", "common", "manager", "managers", "misc",
];

/// Identifiers that the glossary replaces. Importers and tests may use the names of others.
const GLOSSARY: &[(&str, &str)] = &[
    ("alphas_cumprod", "alpha_bar"),
    ("x_start", "x0"),
    ("xstart", "x0"),
    ("pred_xstart", "x0_hat"),
    ("b_sz", "n (shapes are [N, H, W, C])"),
    ("noise2", "eps"),
    ("num_steps", "n_steps (sampling) or n_timesteps (training)"),
    ("learn_sigma", "Variance"),
    ("model_fn", "Denoiser"),
    ("p2_k", "k"),
    ("bpd", "bits_per_dim"),
];

/// Only the program may touch these: libraries take values and return results.
const PROGRAM_ONLY: &[&str] = &[
    "std::fs",
    "std::env",
    "std::net",
    "std::process",
    "SystemTime",
    "Instant",
];
const LIBRARIES: &[&str] = &[
    "crates/kernels/src/",
    "crates/nn/src/",
    "crates/diffusion/src/",
    "crates/metrics/src/",
];

/// The one crate with another lint policy.
const UNSAFE_FOLDER: &str = "crates/kernels/";

/// Top-level folders of somebody's machine: a path that starts with one works nowhere else.
const MACHINE_FOLDERS: &[&str] = &["work", "root", "home", "tmp"];

/// One file, read and separated once for all rules.
pub(super) struct RustFile<'a> {
    path: &'a str,
    source: &'a str,
    masked: Masked,
    test_lines: Vec<bool>,
    is_test_file: bool,
}

impl<'a> RustFile<'a> {
    pub(super) fn new(path: &'a str, source: &'a str) -> Self {
        let masked = scan::mask(source);
        let test_lines = scan::test_lines(&masked.code);
        let is_test_file = path
            .split('/')
            .any(|part| matches!(part, "tests" | "benches" | "tests.rs"));
        Self {
            path,
            source,
            masked,
            test_lines,
            is_test_file,
        }
    }

    pub(super) fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::from_iter(self.header());
        findings.extend(self.file_length());
        findings.extend(self.function_lengths());
        findings.extend(self.module_names());
        for (i, code) in self.masked.code.lines().enumerate() {
            findings.extend(self.code_line(i + 1, code));
        }
        for (i, comment) in self.masked.comments.lines().enumerate() {
            findings.extend(self.comment_line(i + 1, comment));
        }
        findings.extend(self.machine_paths());
        findings
    }

    fn finding(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding {
            path: self.path.into(),
            line,
            message: message.into(),
        }
    }

    /// Whether line `line`, counted from 1, only exists for tests.
    fn is_test(&self, line: usize) -> bool {
        self.is_test_file || self.test_lines.get(line - 1).copied().unwrap_or(false)
    }

    fn header(&self) -> Option<Finding> {
        (!self.source.starts_with("//!"))
            .then(|| self.finding(1, "the first line says what the file is for: `//! ...`"))
    }

    fn file_length(&self) -> Option<Finding> {
        let n_lines = self.source.lines().count();
        let (n_lines, limit) = if self.is_test_file {
            (n_lines, MAX_TEST_FILE_LINES)
        } else {
            (
                n_lines - self.test_lines.iter().filter(|&&is_test| is_test).count(),
                MAX_FILE_LINES,
            )
        };
        (n_lines > limit).then(|| {
            self.finding(
                0,
                format!("{n_lines} lines without test modules, at most {limit}: split it"),
            )
        })
    }

    fn function_lengths(&self) -> Vec<Finding> {
        let functions = scan::functions(&self.masked.code);
        let too_long = functions.into_iter().filter_map(|function| {
            let limit = if self.is_test(function.line) {
                MAX_TEST_FUNCTION_LINES
            } else {
                MAX_FUNCTION_LINES
            };
            let scan::Function {
                name,
                line,
                n_lines,
            } = function;
            (n_lines > limit).then(|| {
                self.finding(
                    line,
                    format!("fn {name} has {n_lines} lines, at most {limit}"),
                )
            })
        });
        too_long.collect()
    }

    fn module_names(&self) -> Vec<Finding> {
        let parts = self.path.trim_end_matches(".rs").split('/');
        parts
            .filter(|part| EMPTY_MODULE_NAMES.contains(part))
            .map(|part| self.finding(0, format!("`{part}` says nothing: name it by its content")))
            .collect()
    }

    fn code_line(&self, line: usize, code: &str) -> Vec<Finding> {
        let mut findings = Vec::new();
        if !self.path.starts_with(UNSAFE_FOLDER) && has_word(code, "unsafe") {
            findings.push(self.finding(line, format!("`unsafe` is kept to {UNSAFE_FOLDER}")));
        }
        for name in EMPTY_MODULE_NAMES {
            if has_word(code, &format!("mod {name}")) {
                findings.push(self.finding(line, format!("`mod {name}`: name it by its content")));
            }
        }
        if self.is_test(line) {
            return findings;
        }
        if !self.path.contains("import") {
            for (word, instead) in GLOSSARY.iter().filter(|(word, _)| has_word(code, word)) {
                findings.push(self.finding(line, format!("`{word}`: the glossary says {instead}")));
            }
        }
        if LIBRARIES.iter().any(|folder| self.path.starts_with(folder)) {
            for word in PROGRAM_ONLY.iter().filter(|word| has_word(code, word)) {
                let message =
                    format!("`{word}` in a library: only crates/p2 touches the outside world");
                findings.push(self.finding(line, message));
            }
        }
        findings
    }

    fn comment_line(&self, line: usize, comment: &str) -> Option<Finding> {
        ["TODO", "FIXME"]
            .into_iter()
            .find(|marker| has_word_without_issue(comment, marker))
            .map(|marker| {
                self.finding(
                    line,
                    format!("write `{marker}(#123)`: the issue says what is left"),
                )
            })
    }

    fn machine_paths(&self) -> Vec<Finding> {
        let lines = self
            .source
            .lines()
            .enumerate()
            .map(|(i, text)| (i + 1, text));
        lines
            .filter(|(line, _)| !self.is_test(*line))
            .filter_map(|(line, text)| {
                machine_path(text).map(|message| self.finding(line, message))
            })
            .collect()
    }
}

/// A message if the text holds an absolute path into somebody's machine.
pub(super) fn machine_path(text: &str) -> Option<String> {
    MACHINE_FOLDERS.iter().find_map(|folder| {
        let path = format!("/{folder}/");
        // A relative path, or one below a variable, is fine: something stands before the slash.
        let is_absolute = |(at, _): (usize, &str)| {
            let before = text[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || "_-.~}*".contains(c))
        };
        text.match_indices(&path)
            .any(is_absolute)
            .then(|| format!("`{path}` exists on one machine only: take the path as an argument"))
    })
}

fn has_word(text: &str, word: &str) -> bool {
    words(text, word).next().is_some()
}

fn has_word_without_issue(text: &str, word: &str) -> bool {
    words(text, word).any(|at| {
        let rest = text[at + word.len()..].strip_prefix("(#").unwrap_or("");
        let n_digits = rest.chars().take_while(char::is_ascii_digit).count();
        n_digits == 0 || !rest[n_digits..].starts_with(')')
    })
}

/// Where `word` stands in `text` as a word of its own.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let before = text[..at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            !before.is_some_and(scan::is_word_char) && !after.is_some_and(scan::is_word_char)
        })
}

#[cfg(test)]
mod tests;
