//! The configuration of a run: read, checked, written.

mod change;
mod check;
mod classifier;
mod count;
mod preset;
mod read;
pub mod section;
mod tree;

use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use change::{Change, Changes, changes};
pub use check::Violation;
pub(crate) use check::short_variance;
pub use classifier::{ClassifierConfig, ClassifierRun};
pub use count::Count;
pub use preset::{CLASSIFIER_PRESETS, PRESETS, Preset};
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

/// A kind of configuration: its sections, and what the program needs to know of any.
pub trait Configuration: Clone + Serialize + DeserializeOwned {
    /// What is trained by it, for messages.
    const WHAT: &'static str;
    /// Those that travel inside the binary.
    const PRESETS: &'static [Preset];
    /// What may change when a run is continued.
    const CHANGEABLE: &'static [&'static str];

    /// Checks every range; returns warnings about values that are allowed but doubtful.
    ///
    /// # Errors
    /// With the first value that is not in its range.
    fn check(&self) -> Result<Vec<String>, Violation>;

    /// Which images.
    fn data(&self) -> &section::Data;

    /// The same, to be changed.
    fn data_mut(&mut self) -> &mut section::Data;

    /// How the run goes through them.
    fn pace(&self) -> Pace;
}

/// How a run goes through its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Seed of every random draw.
    pub seed: u64,
    /// Images per optimizer step.
    pub batch_size: usize,
    /// The run is finished after this many images.
    pub total_images: u64,
}

impl Configuration for RunConfig {
    const WHAT: &'static str = "model";
    const PRESETS: &'static [Preset] = &preset::PRESETS;
    const CHANGEABLE: &'static [&'static str] = &change::CHANGEABLE;

    fn check(&self) -> Result<Vec<String>, Violation> {
        check::check(self)
    }

    fn data(&self) -> &section::Data {
        &self.data
    }

    fn data_mut(&mut self) -> &mut section::Data {
        &mut self.data
    }

    fn pace(&self) -> Pace {
        Pace {
            seed: self.train.seed,
            batch_size: self.train.batch_size,
            total_images: self.train.total_images.0,
        }
    }
}

/// A configuration whose every value is in its range: what the rest of the program works with.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked<C> {
    config: C,
    warnings: Vec<String>,
}

/// The configuration of a model's run.
pub type Run = Checked<RunConfig>;

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

    /// Whether it sets this key, or a part of its value.
    pub(crate) fn is_of(&self, key: &str) -> bool {
        let set = self.assignment.split('=').next().unwrap_or_default().trim();
        let rest = set.strip_prefix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
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

    fn tree(&self, presets: &[Preset]) -> Result<Node, Problem> {
        let source = match self {
            Self::Preset(name) => {
                let preset = presets.iter().find(|preset| preset.name == name);
                let preset = preset.ok_or_else(|| unknown_preset(name, presets))?;
                Source {
                    name: format!("configs/{name}.toml"),
                    text: preset.text.to_owned(),
                }
            }
            Self::File(path) => Source {
                name: path.display().to_string(),
                text: read_text(path, presets)?,
            },
        };
        Node::parse(source)
    }
}

fn unknown_preset(name: &str, presets: &[Preset]) -> Problem {
    let names: Vec<_> = presets.iter().map(|preset| preset.name).collect();
    let hint = match read::nearest(name, &names) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => format!(
            "the presets are {}; `p2 presets` says what they are",
            names.join(", ")
        ),
    };
    Problem::new(format!("there is no preset `{name}`")).hint(hint)
}

fn read_text(path: &Path, presets: &[Preset]) -> Result<String, Problem> {
    let problem = |what: &str| Problem::new(format!("{what}: {}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| {
        let problem = problem("cannot read the configuration").caused_by(error);
        let stem = path.as_os_str().to_string_lossy();
        match presets.iter().find(|preset| preset.name == stem) {
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

/// The configuration of a model's run: see [`Checked::resolve`].
///
/// # Errors
/// As there.
pub fn resolve(base: &Base, overrides: &[Override]) -> Result<Run, Problem> {
    Run::resolve(base, overrides)
}

impl Violation {
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

impl<C: Configuration> Checked<C> {
    /// Reads a configuration, sets single values, and checks all of it.
    ///
    /// # Errors
    /// A [`Problem`] with the place, for an unreadable file, an unknown, missing or ill-typed key, and a
    /// value out of its range.
    pub fn resolve(base: &Base, overrides: &[Override]) -> Result<Self, Problem> {
        let mut tree = base.tree(C::PRESETS)?;
        for each in overrides {
            each.apply(&mut tree)?;
        }
        Self::new(read::read(&tree)?).map_err(|violation| {
            let place = tree
                .entry(violation.key)
                .map(|entry| entry.node.origin.place());
            violation.into_problem().at(place)
        })
    }

    fn new(config: C) -> Result<Self, Violation> {
        let warnings = config.check()?;
        Ok(Self { config, warnings })
    }

    /// The plain configuration.
    pub fn config(&self) -> &C {
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
        match self.config.data().path.as_str() {
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
        config.data_mut().path = String::new();
        serde_json::to_string(&config).context("cannot write the configuration")
    }

    /// Reads what [`Self::to_metadata`] wrote.
    ///
    /// # Errors
    /// If it is no configuration of this version, or a value is out of its range.
    pub fn from_metadata(json: &str) -> anyhow::Result<Self> {
        let config = serde_json::from_str(json)
            .with_context(|| format!("its configuration is none of a {}", C::WHAT))?;
        Ok(Self::new(config).map_err(Violation::into_problem)?)
    }
}

impl<C> Deref for Checked<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.config
    }
}

#[cfg(test)]
mod tests;

/// A configuration that stays as it is, whatever becomes of the presets.
#[cfg(test)]
pub(crate) const TEST_CONFIG: &str = "src/config/tests.toml";
