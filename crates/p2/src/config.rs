//! The configuration of a run: read, checked, written.

mod change;
mod check;
mod count;
mod preset;
mod read;
pub mod section;
mod tree;

use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

pub use change::{Change, Changes, changes};
pub use count::Count;
pub use preset::{PRESETS, Preset};
pub(crate) use read::nearest;

use crate::problem::Problem;
use tree::{Node, Source};

/// The way out where there are no images.
pub(crate) const DATA_HINT: &str =
    "give a folder or .zip of images with --data PATH, or --data bundled:emoji-32";

/// All sections of a configuration file, as written.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Which images.
    pub data: section::Data,
    /// The network.
    pub model: section::Model,
    /// The noise process.
    pub diffusion: section::Diffusion,
    /// The objective.
    pub loss: section::Loss,
    /// The optimizer.
    pub optim: section::Optim,
    /// The averaged weights.
    pub ema: section::Ema,
    /// The run.
    pub train: section::Train,
    /// The samples.
    pub sample: section::Sample,
}

/// A configuration whose every value is in its range: what the rest of the program works with.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    config: RunConfig,
    warnings: Vec<String>,
}

/// Where a configuration comes from, before single values are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A TOML file.
    File(PathBuf),
    /// A preset, by name.
    Preset(String),
}

/// A value set on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The flag, for messages.
    flag: &'static str,
    /// `section.key=value`.
    assignment: String,
}

impl Override {
    /// The argument of `--set`: `section.key=value`, the value in TOML, or text without quotes.
    pub fn set(assignment: &str) -> Self {
        Self {
            flag: "--set",
            assignment: assignment.to_owned(),
        }
    }

    /// A flag of its own for a key, with a value as `--set` has it.
    pub fn text(flag: &'static str, key: &str, value: &str) -> Self {
        Self {
            flag,
            assignment: format!("{key}={value}"),
        }
    }

    /// A flag of its own for a key, such as `--seed` for `train.seed`, with a value of any type.
    pub fn flag(flag: &'static str, key: &str, value: &toml_edit::Value) -> Self {
        Self {
            flag,
            assignment: format!("{key}={value}"),
        }
    }

    fn apply(&self, tree: &mut Node) -> Result<(), Problem> {
        let source = Source {
            name: self.flag.to_owned(),
            text: self.assignment.clone(),
        };
        let (keys, value) = Node::parse_assignment(source)?;
        tree.set(&keys, value)
    }
}

impl Base {
    /// The name of a run that is given none: that of the preset, of the file, or of the run folder
    /// whose `config.toml` it is.
    pub fn run_name(&self) -> String {
        let path = match self {
            Self::Preset(name) => return name.clone(),
            Self::File(path) => path,
        };
        let text =
            |name: Option<&std::ffi::OsStr>| name.map(|name| name.to_string_lossy().into_owned());
        let folder = path.parent().and_then(|folder| text(folder.file_name()));
        match (text(path.file_stem()), folder) {
            (Some(stem), Some(folder)) if stem == "config" => folder,
            (stem, _) => stem.unwrap_or_else(|| "run".to_owned()),
        }
    }

    fn tree(&self) -> Result<Node, Problem> {
        let source = match self {
            Self::Preset(name) => {
                let preset = Preset::find(name).ok_or_else(|| unknown_preset(name))?;
                Source {
                    name: format!("configs/{name}.toml"),
                    text: preset.text.to_owned(),
                }
            }
            Self::File(path) => Source {
                name: path.display().to_string(),
                text: read_text(path)?,
            },
        };
        Node::parse(source)
    }
}

fn unknown_preset(name: &str) -> Problem {
    let names = PRESETS.map(|preset| preset.name);
    let hint = match read::nearest(name, &names) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!(
            "the presets are {}; `p2 presets` says what they are",
            names.join(", ")
        ),
    };
    Problem::new(format!("there is no preset `{name}`")).hint(hint)
}

fn read_text(path: &Path) -> Result<String, Problem> {
    let problem = |what: &str| Problem::new(format!("{what}: {}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| {
        let problem = problem("cannot read the configuration").caused_by(error);
        let stem = path.as_os_str().to_string_lossy();
        match Preset::find(&stem) {
            Some(preset) => problem.hint(format!("for the preset write --preset {}", preset.name)),
            None => problem.hint("`p2 presets` lists the configurations that need no file"),
        }
    })?;
    String::from_utf8(bytes).map_err(|error| {
        problem("the configuration is not UTF-8 text")
            .caused_by(error.utf8_error())
            .hint("save it as UTF-8 in a text editor")
    })
}

/// Reads a configuration, sets single values, and checks all of it.
///
/// # Errors
/// A [`Problem`] with the place, for an unreadable file, an unknown, missing or ill-typed key, and a
/// value out of its range.
pub fn resolve(base: &Base, overrides: &[Override]) -> Result<Run, Problem> {
    let mut tree = base.tree()?;
    for each in overrides {
        each.apply(&mut tree)?;
    }
    let config: RunConfig = read::read(&tree)?;
    Run::new(config).map_err(|violation| {
        let place = tree
            .entry(violation.key)
            .map(|entry| entry.node.origin.place());
        violation.into_problem().at(place)
    })
}

impl check::Violation {
    fn into_problem(self) -> Problem {
        let problem = Problem::new(format!(
            "`{}` is {}; allowed: {}",
            self.key, self.value, self.allowed
        ))
        .hint(format!(
            "change it where it stands, or override it with --set {}=VALUE",
            self.key
        ));
        match self.because {
            Some(reason) => problem.because(reason),
            None => problem,
        }
    }
}

impl Run {
    fn new(config: RunConfig) -> Result<Self, check::Violation> {
        let warnings = check::check(&config)?;
        Ok(Self { config, warnings })
    }

    /// The plain configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// What is allowed but doubtful, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where the images are.
    ///
    /// # Errors
    /// If the configuration leaves that open, as presets without bundled images do.
    pub fn data_path(&self) -> Result<&str, Problem> {
        match self.config.data.path.as_str() {
            "" => Err(Problem::new("no images are given: `data.path` is empty").hint(DATA_HINT)),
            path => Ok(path),
        }
    }

    /// The configuration as a TOML file that reads back to the same.
    ///
    /// # Errors
    /// If a value cannot be written, which does not happen for a checked one.
    pub fn to_toml(&self) -> anyhow::Result<String> {
        let mut document =
            toml_edit::ser::to_document(&self.config).context("cannot write the configuration")?;
        for (_, section) in document.iter_mut() {
            let keys = std::mem::take(section).into_table();
            *section = keys.map_or_else(|item| item, toml_edit::Item::Table);
        }
        Ok(document.to_string())
    }

    /// The configuration as it travels inside a model file: JSON without paths.
    ///
    /// # Errors
    /// If a value cannot be written, which does not happen for a checked one.
    pub fn to_metadata(&self) -> anyhow::Result<String> {
        let mut config = self.config.clone();
        config.data.path = String::new();
        serde_json::to_string(&config).context("cannot write the configuration")
    }

    /// Reads what [`Run::to_metadata`] wrote.
    ///
    /// # Errors
    /// If it is no configuration of this version, or a value is out of its range.
    pub fn from_metadata(json: &str) -> anyhow::Result<Self> {
        let config =
            serde_json::from_str(json).context("the model's configuration cannot be read")?;
        Ok(Self::new(config).map_err(check::Violation::into_problem)?)
    }
}

impl Deref for Run {
    type Target = RunConfig;

    fn deref(&self) -> &RunConfig {
        &self.config
    }
}

#[cfg(test)]
mod tests;

/// A configuration that stays as it is, whatever becomes of the presets.
#[cfg(test)]
pub(crate) const TEST_CONFIG: &str = "src/config/tests.toml";
