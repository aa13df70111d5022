//! What network some weights are of, by their names and shapes alone.
//!
//! # Source
//! The constructor of the ADM U-Net (Dhariwal and Nichol 2021, arXiv 2105.05233), read backwards.

mod assignment;

use std::collections::{BTreeMap, BTreeSet};

pub use assignment::{Assignment, Difference};

use super::from_config::{N_CHANNELS, unet};
use crate::config::RunConfig;
use crate::config::section::{Resample, TimeConditioning};
use crate::problem::Problem;

/// Names of parameters, as the reference has them, with their shapes.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// All that names and shapes tell of a U-Net.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Architecture {
    /// Channels that the noise level is embedded from, which those of all levels are multiples of.
    pub channels: usize,
    /// Channels of each level, from fine to coarse, as multiples of `channels`.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level of the encoder.
    pub n_res_blocks: usize,
    /// Levels with attention in ascending order; 0 is the finest.
    pub attention_levels: Vec<usize>,
    /// How feature maps change their size; `None` with one level.
    pub resample: Option<Resample>,
    /// How the noise level enters a residual block.
    pub time_conditioning: TimeConditioning,
    /// Embeddings of classes; the last may be that of images without one.
    pub n_label_rows: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether it sees a small image beside the noised one (super-resolution).
    pub enlarges: bool,
}

/// Reads the sizes of a U-Net off its parameters.
///
/// # Errors
/// If they are of another kind of network, or of sizes that no configuration has.
pub fn infer(shapes: &Shapes) -> Result<Architecture, Problem> {
    refuse_other_kinds(shapes)?;
    let find = Finder { shapes };
    let channels = find.size("time_embed.0.weight", 1)?;
    let (n_levels, n_res_blocks) = find.levels()?;
    let first_block = |level: usize| format!("input_blocks.{}", level * (n_res_blocks + 1) + 1);
    let channel_mult = (0..n_levels)
        .map(|level| {
            let name = format!("{}.0.out_layers.3.weight", first_block(level));
            multiple(find.size(&name, 0)?, channels, level)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let attention_levels = (0..n_levels)
        .filter(|&level| find.has(&format!("{}.1.qkv.weight", first_block(level))))
        .collect();
    let resample = (n_levels > 1).then(|| {
        match find.has(&format!("input_blocks.{}.0.op.weight", n_res_blocks + 1)) {
            true => Resample::Conv,
            false => Resample::ResBlock,
        }
    });
    let (embedded, of) = (
        find.size("input_blocks.1.0.emb_layers.1.weight", 0)?,
        find.size("input_blocks.1.0.out_layers.3.weight", 0)?,
    );
    let time_conditioning = match embedded {
        n if n == of => TimeConditioning::Additive,
        n if of.checked_mul(2) == Some(n) => TimeConditioning::ScaleShift,
        n => return Err(strange(&format!("{n} channels of noise level for {of}"))),
    };
    let n_label_rows = match find.has("label_emb.weight") {
        true => find.size("label_emb.weight", 0)?,
        false => 0,
    };
    Ok(Architecture {
        channels,
        channel_mult,
        n_res_blocks,
        attention_levels,
        resample,
        time_conditioning,
        n_label_rows,
        out_channels: find.size("out.2.weight", 0)?,
        enlarges: find.size("input_blocks.0.0.weight", 1)? == 2 * N_CHANNELS,
    })
}

/// The other networks of the reference's family, and images of other channels.
fn refuse_other_kinds(shapes: &Shapes) -> Result<(), Problem> {
    let has = |prefix: &str| shapes.keys().any(|name| name.starts_with(prefix));
    if has("input_blocks.") && !has("output_blocks.") {
        let message = "these are the weights of a classifier: they have an encoder alone";
        return Err(Problem::new(message)
            .hint("say which with --preset classifier-64, with --set for what differs, or --like CLASSIFIER"));
    }
    let first = shapes.get("input_blocks.0.0.weight").map(Vec::as_slice);
    match first {
        Some([_, n, 3, 3]) if *n == N_CHANNELS || *n == 2 * N_CHANNELS => {}
        Some(shape) => {
            return Err(strange(&format!(
                "`input_blocks.0.0.weight` of shape {shape:?}"
            )));
        }
        None => return Err(strange("no `input_blocks.0.0.weight`")),
    }
    let out = shapes.get("out.2.weight").and_then(|shape| shape.first());
    match out {
        Some(&n) if n == N_CHANNELS || n == 2 * N_CHANNELS => Ok(()),
        Some(n) => Err(strange(&format!("{n} channels of output"))),
        None => Err(strange("no `out.2.weight`")),
    }
}

fn multiple(c_level: usize, channels: usize, level: usize) -> Result<usize, Problem> {
    let mult = c_level.checked_div(channels);
    match mult.filter(|mult| *mult > 0 && mult * channels == c_level) {
        Some(mult) => Ok(mult),
        None => Err(strange(&format!(
            "{c_level} channels at level {level}, no multiple of the {channels} that the noise level has"
        ))),
    }
}

fn strange(what: &str) -> Problem {
    Problem::new("the weights are of no U-Net that p2 has").because(format!("there is {what}"))
}

struct Finder<'a> {
    shapes: &'a Shapes,
}

impl Finder<'_> {
    fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    /// An extent of a parameter.
    fn size(&self, name: &str, axis: usize) -> Result<usize, Problem> {
        let shape = self.shapes.get(name);
        let shape = shape.ok_or_else(|| strange(&format!("no `{name}`")))?;
        let size = shape.get(axis).copied();
        size.ok_or_else(|| strange(&format!("`{name}` of shape {shape:?}")))
    }

    /// Levels, and residual blocks per level of the encoder.
    ///
    /// In the encoder a block that halves looks like any other. In the decoder the last block of each level but the
    /// finest doubles as well, by a layer of its own; and each level has one block more than in the encoder.
    fn levels(&self) -> Result<(usize, usize), Problem> {
        let n_in = self.blocks("input_blocks.").len();
        let out = self.blocks("output_blocks.");
        let doubles = |block: &usize| {
            (1..=2).any(|layer| {
                let at = format!("output_blocks.{block}.{layer}");
                self.has(&format!("{at}.conv.weight"))
                    || self.has(&format!("{at}.in_layers.2.weight"))
            })
        };
        let doubling: Vec<usize> = out.iter().copied().filter(doubles).collect();
        let n_levels = doubling.len() + 1;
        let per_level = out.len() / n_levels;
        let expected = (1..n_levels).map(|level| level * per_level - 1);
        let is_regular = per_level >= 2
            && per_level * n_levels == out.len()
            && n_in == out.len()
            && doubling.iter().copied().eq(expected);
        if !is_regular {
            return Err(strange(&format!(
                "an encoder of {n_in} blocks and a decoder of {}, of which {doubling:?} double the image",
                out.len()
            )));
        }
        Ok((n_levels, per_level - 1))
    }

    /// The numbers of the blocks under a prefix.
    fn blocks(&self, prefix: &str) -> BTreeSet<usize> {
        let names = self
            .shapes
            .keys()
            .filter_map(|name| name.strip_prefix(prefix));
        names
            .filter_map(|name| name.split('.').next()?.parse().ok())
            .collect()
    }
}

impl Architecture {
    /// That of the network that a configuration describes.
    pub fn of(config: &RunConfig) -> Self {
        let (model, network) = (&config.model, unet(config));
        let n_levels = model.channel_mult.len();
        Self {
            channels: model.channels,
            channel_mult: model.channel_mult.clone(),
            n_res_blocks: model.n_res_blocks,
            attention_levels: (0..n_levels)
                .filter(|&level| {
                    model
                        .attention_resolutions
                        .contains(&(config.data.image_size >> level))
                })
                .collect(),
            resample: (n_levels > 1).then_some(model.resample),
            time_conditioning: model.time_conditioning,
            n_label_rows: network.n_classes,
            out_channels: network.out_channels,
            enlarges: model.low_res_size > 0,
        }
    }
}

#[cfg(test)]
mod tests;
