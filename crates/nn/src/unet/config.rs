//! The sizes and options of a U-Net.

use crate::layer::N_GROUPS;
pub use crate::op::attention::Order;
use crate::{Error, Result};

/// How many attention heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// Channels per head.
    Channels(usize),
    /// Heads per block.
    Count(usize),
}

/// How feature maps change their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Inside residual blocks.
    ResBlock,
    /// By convolutions of their own.
    Conv,
}

/// How the noise level enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeConditioning {
    /// It scales and shifts the normalized features.
    ScaleShift,
    /// It is added to the features before the norm.
    Additive,
}

/// The sizes and options of a U-Net.
#[derive(Debug, Clone, PartialEq)]
pub struct UNetConfig {
    /// Height and width of the image.
    pub image_size: usize,
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the output: those of the image, twice with learned variance.
    pub out_channels: usize,
    /// Channels that `channel_mult` multiplies.
    pub channels: usize,
    /// Channels per level, from fine to coarse.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level of the encoder.
    pub n_res_blocks: usize,
    /// Heights of the feature maps that get attention.
    pub attention_resolutions: Vec<usize>,
    /// Attention heads.
    pub heads: Heads,
    /// Layout of queries, keys and values.
    pub attention_order: Order,
    /// How feature maps change their size.
    pub resample: Resample,
    /// How the noise level enters.
    pub time_conditioning: TimeConditioning,
    /// Share of activations dropped in training.
    pub dropout: f64,
    /// Classes; 0 for an unconditional network.
    pub n_classes: usize,
}

impl UNetConfig {
    /// Channels of the embedding of noise level and class.
    pub fn embed_channels(&self) -> usize {
        4 * self.channels
    }

    /// Channels at a level.
    pub(crate) fn level_channels(&self, level: usize) -> usize {
        self.channels * self.channel_mult[level]
    }

    /// Height of the feature maps at a level.
    pub(crate) fn level_size(&self, level: usize) -> usize {
        self.image_size >> level
    }

    /// Outputs of a residual block's layer that reads the embedding.
    pub(crate) fn embed_outputs(&self, c_out: usize) -> usize {
        match self.time_conditioning {
            TimeConditioning::ScaleShift => 2 * c_out,
            TimeConditioning::Additive => c_out,
        }
    }

    pub(crate) fn has_attention(&self, level: usize) -> bool {
        self.attention_resolutions.contains(&self.level_size(level))
    }

    /// Heads of an attention block.
    pub(crate) fn n_heads(&self, channels: usize) -> usize {
        match self.heads {
            Heads::Channels(per_head) => channels / per_head,
            Heads::Count(count) => count,
        }
    }

    /// Whether the sizes fit together.
    ///
    /// # Errors
    /// [`Error::Config`] with the values that do not.
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        let n_levels = self.channel_mult.len();
        let Self {
            image_size,
            channels,
            ..
        } = *self;
        if n_levels == 0 || self.channel_mult.contains(&0) {
            return fail(format!(
                "channel_mult {:?} needs positive entries",
                self.channel_mult
            ));
        }
        if channels == 0 || !channels.is_multiple_of(N_GROUPS) {
            return fail(format!(
                "channels {channels} is not a multiple of {N_GROUPS}"
            ));
        }
        if image_size == 0 || n_levels > 30 || !image_size.is_multiple_of(1 << (n_levels - 1)) {
            return fail(format!(
                "image_size {image_size} cannot be halved {} times",
                n_levels - 1
            ));
        }
        if self.in_channels == 0 || self.out_channels == 0 || self.n_res_blocks == 0 {
            return fail("in_channels, out_channels and n_res_blocks must be positive".into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("dropout {} is not in [0, 1)", self.dropout));
        }
        for &size in &self.attention_resolutions {
            if !(0..n_levels).any(|level| self.level_size(level) == size) {
                return fail(format!("attention_resolutions: no level has size {size}"));
            }
        }
        for level in (0..n_levels).filter(|&l| self.has_attention(l) || l + 1 == n_levels) {
            let c = self.level_channels(level);
            let (Heads::Channels(n) | Heads::Count(n)) = self.heads;
            if n == 0 || !c.is_multiple_of(n) {
                return fail(format!(
                    "heads: {c} channels cannot be divided as {:?}",
                    self.heads
                ));
            }
        }
        Ok(())
    }
}
