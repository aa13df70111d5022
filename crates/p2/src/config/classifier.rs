//! The configuration of a classifier's run.

use serde::{Deserialize, Serialize};

use super::check::{self, Violation};
use super::{Checked, Configuration, Pace, Preset, change, preset, section};

/// All sections of a classifier's configuration file, as written.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierConfig {
    /// Which images; their folders are their classes.
    pub data: section::Data,
    /// The network.
    pub model: section::Classifier,
    /// The noise that it sees through.
    pub diffusion: section::ClassifierDiffusion,
    /// The optimizer.
    pub optim: section::Optim,
    /// The run.
    pub train: section::ClassifierTrain,
}

/// The configuration of a classifier's run, checked.
pub type ClassifierRun = Checked<ClassifierConfig>;

impl Configuration for ClassifierConfig {
    const WHAT: &'static str = "classifier";
    const PRESETS: &'static [Preset] = &preset::CLASSIFIER_PRESETS;
    const CHANGEABLE: &'static [&'static str] = &change::CHANGEABLE_OF_CLASSIFIER;

    fn check(&self) -> Result<Vec<String>, Violation> {
        check::classifier(self)
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
