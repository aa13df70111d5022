//! What weights say of a configuration, what they leave open, and where a given one is of another network.

use serde::Serialize;

use super::Architecture;
use crate::config::RunConfig;
use crate::config::section::{Resample, Variance};
use crate::model::from_config::N_CHANNELS;

/// A value of a configuration, to be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The key, such as `model.channels`.
    pub key: &'static str,
    /// The value, as `--set` takes it.
    pub value: String,
}

impl Assignment {
    /// A key and its value.
    pub fn new(key: &'static str, value: impl Into<String>) -> Self {
        Self {
            key,
            value: value.into(),
        }
    }
}

impl std::fmt::Display for Assignment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A value that weights need and a configuration has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What must be set.
    pub needed: Assignment,
    /// What it is.
    pub has: String,
}

impl Architecture {
    /// The values that it gives a configuration, whatever the size of its images.
    pub fn assignments(&self) -> Vec<Assignment> {
        // With one level there is nothing to resample: either word is right.
        let resample = self.resample.unwrap_or(Resample::ResBlock);
        let mut all = vec![
            Assignment::new("model.channels", self.channels.to_string()),
            Assignment::new("model.channel_mult", list(&self.channel_mult)),
            Assignment::new("model.n_res_blocks", self.n_res_blocks.to_string()),
            Assignment::new("model.resample", word(&resample)),
            Assignment::new("model.time_conditioning", word(&self.time_conditioning)),
        ];
        if self.n_label_rows == 0 {
            all.push(Assignment::new("model.label_dropout", "0.0"));
        }
        if !self.enlarges {
            all.push(Assignment::new("model.low_res_size", "0"));
        }
        all
    }

    /// What weights leave open of a configuration; a bar stands between what it can be.
    pub fn left_open(&self) -> Vec<Assignment> {
        let mut open = vec![
            Assignment::new("data.image_size", "PIXELS"),
            Assignment::new("model.heads", "{channels=64}|{count=4}|.."),
            Assignment::new("model.attention_order", "legacy|new"),
            Assignment::new("diffusion.schedule", "linear|cosine|.."),
            Assignment::new("diffusion.n_timesteps", "1000|.."),
            Assignment::new("diffusion.rescale_timesteps", "false|true"),
            Assignment::new("diffusion.prediction", "eps|x0|v|x-prev"),
        ];
        let variances = match self.has_learned_variance() {
            true => "learned-range|learned",
            false => "fixed-small|fixed-large",
        };
        open.push(Assignment::new("diffusion.variance", variances));
        if self.enlarges {
            open.push(Assignment::new("model.low_res_size", "PIXELS"));
        }
        if self.n_label_rows > 0 {
            let n = self.n_label_rows;
            let values = format!(
                "0|0.1    with 0 all {n} embeddings are of classes, else the last is of none"
            );
            open.push(Assignment::new("model.label_dropout", values));
        }
        open
    }

    /// Heights of the feature maps with attention, for images of a size.
    pub fn attention_resolutions(&self, image_size: usize) -> Assignment {
        let sizes = self.attention_levels.iter().map(|&level| {
            let halvings = u32::try_from(level).unwrap_or(u32::MAX);
            image_size.checked_shr(halvings).unwrap_or(0)
        });
        let sizes: Vec<usize> = sizes.collect();
        Assignment::new("model.attention_resolutions", list(&sizes))
    }

    /// The number of classes; images without one have an embedding of their own where `label_dropout` is above 0.
    pub fn n_classes(&self, label_dropout: f64) -> Assignment {
        let n_without = usize::from(label_dropout > 0.0);
        let n = self.n_label_rows.saturating_sub(n_without);
        Assignment::new("model.n_classes", n.to_string())
    }

    /// What a configuration must have for these weights in place of what it has.
    pub fn differences(&self, config: &RunConfig) -> Vec<Difference> {
        let (other, model) = (Self::of(config), &config.model);
        let image_size = config.data.image_size;
        let variance = word(&config.diffusion.variance);
        let needed_variance = match self.has_learned_variance() {
            _ if self.out_channels == other.out_channels => variance.clone(),
            true => word(&Variance::LearnedRange),
            false => word(&Variance::FixedLarge),
        };
        let low_res_size = match self.enlarges {
            _ if self.enlarges == other.enlarges => model.low_res_size.to_string(),
            true => "PIXELS".to_owned(),
            false => "0".to_owned(),
        };
        let pairs = [
            (
                Assignment::new("model.channels", self.channels.to_string()),
                model.channels.to_string(),
            ),
            (
                Assignment::new("model.channel_mult", list(&self.channel_mult)),
                list(&model.channel_mult),
            ),
            (
                Assignment::new("model.n_res_blocks", self.n_res_blocks.to_string()),
                model.n_res_blocks.to_string(),
            ),
            (
                self.attention_resolutions(image_size),
                other.attention_resolutions(image_size).value,
            ),
            (
                Assignment::new(
                    "model.resample",
                    word(&self.resample.unwrap_or(model.resample)),
                ),
                word(&model.resample),
            ),
            (
                Assignment::new("model.time_conditioning", word(&self.time_conditioning)),
                word(&model.time_conditioning),
            ),
            (
                self.n_classes(model.label_dropout),
                model.n_classes.to_string(),
            ),
            (
                Assignment::new("diffusion.variance", needed_variance),
                variance,
            ),
            (
                Assignment::new("model.low_res_size", low_res_size),
                model.low_res_size.to_string(),
            ),
        ];
        let pairs = pairs
            .into_iter()
            .map(|(needed, has)| Difference { needed, has });
        pairs.filter(|pair| pair.needed.value != pair.has).collect()
    }

    fn has_learned_variance(&self) -> bool {
        self.out_channels == 2 * N_CHANNELS
    }
}

/// A list in TOML.
fn list(values: &[usize]) -> String {
    format!("{values:?}").replace(' ', "")
}

/// A configuration's word for a value.
fn word(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    json.trim_matches('"').to_owned()
}
