//! The sections of a classifier's configuration that are not those of a model's.

use serde::{Deserialize, Serialize};

use super::{
    AttentionOrder, Count, Diffusion, Heads, Model, Precision, Prediction, Recompute, Resample,
    Schedule, Time, TimeConditioning, Train, Variance,
};

/// `[model]`: the encoder of an ADM U-Net with a head (Dhariwal and Nichol 2021, arXiv 2105.05233, appendix H).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Classifier {
    /// Channels of the first level; a multiple of 32.
    pub channels: usize,
    /// Channels of each level, from fine to coarse, as multiples of `channels`.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level.
    pub n_res_blocks: usize,
    /// Heights (in pixels) of the feature maps that get self-attention.
    pub attention_resolutions: Vec<usize>,
    /// How many attention heads.
    pub heads: Heads,
    /// How the channels of queries, keys and values are laid out.
    pub attention_order: AttentionOrder,
    /// How feature maps change their size.
    pub resample: Resample,
    /// How the noise level enters a residual block.
    pub time_conditioning: TimeConditioning,
    /// How feature maps become one vector.
    pub pool: Pool,
    /// Number of classes that it tells apart.
    pub n_classes: usize,
}

/// How feature maps become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// Attention from their mean to each position.
    Attention,
    /// The mean over positions of the last ones.
    Adaptive,
    /// The means over positions of all, and a hidden layer with ReLU.
    Spatial,
    /// The same, and a hidden layer with a norm and SiLU.
    SpatialV2,
}

/// `[diffusion]`: the noise that the classifier sees through.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierDiffusion {
    /// How the noise grows with t; that of the model to be guided.
    pub schedule: Schedule,
    /// Number of timesteps T.
    pub n_timesteps: usize,
    /// Whether it is trained on noised images; if not, it knows clean ones alone, and guides nothing.
    pub noised: bool,
}

/// `[train]`: the run. All intervals count images.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifierTrain {
    /// Seed of every random draw.
    pub seed: u64,
    /// Images per optimizer step.
    pub batch_size: usize,
    /// Images per backward pass; gradients of a batch are accumulated over them.
    pub micro_batch_size: usize,
    /// How products are rounded, in training and in use.
    pub precision: Precision,
    /// What is computed again for its gradients instead of being kept.
    pub recompute: Recompute,
    /// The run is finished after this many images.
    pub total_images: Count,
    /// Interval of records in `metrics.jsonl`.
    pub log_every: Count,
    /// Interval of held-out accuracies; 0 for none.
    pub held_out_every: Count,
    /// Interval of checkpoints.
    pub checkpoint_every: Count,
    /// The newest so many checkpoints are kept.
    pub keep_last: usize,
    /// Of the older ones, the first at or after each multiple of so many images is kept; 0 for none.
    pub keep_every: Count,
}

impl Classifier {
    /// The U-Net that it is the encoder of: it is told no class.
    pub(crate) fn to_unet(&self) -> Model {
        Model {
            channels: self.channels,
            channel_mult: self.channel_mult.clone(),
            n_res_blocks: self.n_res_blocks,
            attention_resolutions: self.attention_resolutions.clone(),
            heads: self.heads,
            attention_order: self.attention_order,
            resample: self.resample,
            time_conditioning: self.time_conditioning,
            dropout: 0.0,
            n_classes: 0,
            label_dropout: 0.0,
            low_res_size: 0,
            low_res_noise: 0.0,
        }
    }
}

impl ClassifierDiffusion {
    /// A model's process with this noise.
    pub(crate) fn to_model(&self) -> Diffusion {
        Diffusion {
            schedule: self.schedule.clone(),
            n_timesteps: self.n_timesteps,
            time: Time::Discrete,
            rescale_timesteps: false,
            prediction: Prediction::X0,
            variance: Variance::FixedSmall,
        }
    }
}

impl ClassifierTrain {
    /// A model's run that draws nothing.
    pub(crate) fn to_model(&self) -> Train {
        Train {
            seed: self.seed,
            batch_size: self.batch_size,
            micro_batch_size: self.micro_batch_size,
            precision: self.precision,
            recompute: self.recompute,
            total_images: self.total_images,
            log_every: self.log_every,
            held_out_every: self.held_out_every,
            sample_every: Count(0),
            checkpoint_every: self.checkpoint_every,
            keep_last: self.keep_last,
            keep_every: self.keep_every,
        }
    }
}
