//! The half of a U-Net that shrinks the image, with its embedding of noise level and class.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor, Var};

use super::block::{
    AttentionBlock, Downsample, Dropout, ResBlock, ResBlockSize, Resampling, Upsample,
};
use super::config::{Resample, UNetConfig};
use crate::layer::{Conv2d, ConvSize, Linear, Start};
use crate::op::Joined;
use crate::op::elementwise::{add, rows, silu};
use crate::params::{Builder, Init, Kind};
use crate::tape::{Node, Tape, checkpoint};
use crate::{Error, Result};

/// What a stage of the network is made of: the reference's `TimestepEmbedSequential`.
#[derive(Debug)]
pub(super) enum Layer {
    Conv(Conv2d),
    ResBlock(Rc<ResBlock>),
    Attention(Rc<AttentionBlock>),
    Downsample(Downsample),
    Upsample(Upsample),
}

/// Embeddings, input blocks and middle block: what a U-Net and a classifier have in common.
#[derive(Debug)]
pub(crate) struct Encoder {
    config: UNetConfig,
    time_embed: [Linear; 2],
    label_embed: Option<Var>,
    input_blocks: Vec<Vec<Layer>>,
    middle_block: Vec<Layer>,
    dtype: DType,
}

/// What an encoder makes of images.
pub(crate) struct Encoded {
    /// The output of each input block, from the first on.
    pub(crate) skips: Vec<Node>,
    /// The output of the middle block, `[N, S, S, C]`.
    pub(crate) middle: Node,
    /// SiLU of the embedding of noise level and class, `[N, E]`.
    pub(crate) embedding: Node,
}

impl Encoder {
    /// The encoder, and the channels of each input block's output.
    pub(crate) fn new(
        config: UNetConfig,
        root: &mut Builder<'_, '_>,
        dtype: DType,
    ) -> Result<(Self, Vec<usize>)> {
        let (channels, width) = (config.channels, config.embed_channels());
        let time_embed = [
            Linear::new(
                &mut root.at("time_embed.0"),
                [channels, width],
                Start::Random,
            )?,
            Linear::new(&mut root.at("time_embed.2"), [width; 2], Start::Random)?,
        ];
        let label_embed = match config.n_classes {
            0 => None,
            n => {
                let mut at = root.at("label_emb");
                let init = Init::Normal { std: 1.0 };
                Some(at.param("weight", Kind::Embedding, &[n, width], init)?)
            }
        };
        let mut skip_channels = vec![];
        let input_blocks = input_blocks(&config, &mut root.at("input_blocks"), &mut skip_channels)?;
        let middle_block = middle_block(&config, &mut root.at("middle_block"))?;
        let encoder = Self {
            config,
            time_embed,
            label_embed,
            input_blocks,
            middle_block,
            dtype,
        };
        Ok((encoder, skip_channels))
    }

    pub(crate) fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// `x_t`: `[N, H, W, C_in]`.
    pub(crate) fn forward(
        &self,
        x_t: &Node,
        (t, labels): (&[f64], Option<&[u32]>),
        dropout: Option<&Rc<dyn Dropout>>,
    ) -> Result<Encoded> {
        let embedding = silu(&self.embedding(x_t.tape(), t, labels)?)?; // [N, E]
        let context = Context {
            embedding: &embedding,
            dropout,
        };
        let mut h = x_t.clone(); // [N, H, W, C_in]
        let mut skips = Vec::with_capacity(self.input_blocks.len());
        for block in &self.input_blocks {
            h = run(block, h.into(), context)?;
            skips.push(h.clone());
        }
        let middle = run(&self.middle_block, h.into(), context)?;
        Ok(Encoded {
            skips,
            middle,
            embedding,
        })
    }

    /// The embedding of noise level and class, `[N, E]`.
    fn embedding(&self, tape: &Tape, t: &[f64], labels: Option<&[u32]>) -> Result<Node> {
        let [first, second] = &self.time_embed;
        let frequencies = timestep_embedding(t, self.config.channels);
        let shape = (t.len(), self.config.channels);
        let frequencies = Tensor::from_vec(frequencies, shape, &Device::Cpu)?;
        let frequencies = frequencies.to_dtype(self.dtype)?;
        let hidden = silu(&first.forward(&tape.constant(&frequencies))?)?;
        let embedding = second.forward(&hidden)?;
        let n_classes = self.config.n_classes;
        match (&self.label_embed, labels) {
            (None, None) => Ok(embedding),
            (Some(table), Some(labels)) => {
                if let Some(&label) = labels.iter().find(|&&label| label as usize >= n_classes) {
                    return Err(Error::Label {
                        label: Some(label),
                        n_classes,
                    });
                }
                add(&embedding, &rows(&tape.param(table), labels)?)
            }
            (_, labels) => {
                let label = labels.and_then(|labels| labels.first().copied());
                Err(Error::Label { label, n_classes })
            }
        }
    }
}

/// Cosines, then sines, of `t` times frequencies from 1 down to, but without, 1/10000: `[N, channels]`.
///
/// # Source
/// Vaswani et al. 2017, arXiv 1706.03762, section 3.5, in the order of the ADM code.
pub fn timestep_embedding(t: &[f64], channels: usize) -> Vec<f32> {
    let half = channels / 2;
    let mut embedding = Vec::with_capacity(t.len() * channels);
    for &t in t {
        let angle = |i: usize| {
            // The reference rounds exponent, frequency and angle to f32, which t = 500 makes visible.
            let exponent = -(10_000.0f64.ln()) as f32 * i as f32 / half as f32;
            f64::from(t as f32 * f64::from(exponent).exp() as f32)
        };
        embedding.extend((0..half).map(|i| angle(i).cos() as f32));
        embedding.extend((0..half).map(|i| angle(i).sin() as f32));
        embedding.extend((2 * half < channels).then_some(0.0));
    }
    embedding
}

/// What all blocks of one forward pass share.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    /// SiLU of the embedding of noise level and class, `[N, E]`.
    pub(super) embedding: &'a Node,
    pub(super) dropout: Option<&'a Rc<dyn Dropout>>,
}

/// The layers of a stage, one after the other.
pub(super) fn run(layers: &[Layer], x: Joined, context: Context<'_>) -> Result<Node> {
    let mut h = x;
    for layer in layers {
        h = layer.forward(h, context)?.into();
    }
    h.into_node()
}

impl Layer {
    /// `[N, H, W, C]` to `[N, H', W', C']`.
    fn forward(&self, x: Joined, context: Context<'_>) -> Result<Node> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::ResBlock(block) => run_res_block(block.clone(), &x, context),
            Self::Attention(block) => {
                let block = block.clone();
                checkpoint([&x.into_node()?], move |[x]| block.forward(x))
            }
            Self::Downsample(layer) => layer.forward(&x.into_node()?),
            Self::Upsample(layer) => layer.forward(&x.into_node()?),
        }
    }
}

/// A residual block as a checkpoint, of all that it reads.
fn run_res_block(block: Rc<ResBlock>, x: &Joined, context: Context<'_>) -> Result<Node> {
    let (embedding, dropout) = (context.embedding, context.dropout.cloned());
    match (&x.first, &x.second) {
        (x, None) => checkpoint([x, embedding], move |[x, embedding]| {
            block.forward(&x.into(), embedding, dropout.as_deref())
        }),
        (h, Some(skip)) => checkpoint([h, skip, embedding], move |[h, skip, embedding]| {
            let x = Joined::new(h.clone(), skip.clone())?;
            block.forward(&x, embedding, dropout.as_deref())
        }),
    }
}

pub(super) fn res_block(
    config: &UNetConfig,
    builder: &mut Builder<'_, '_>,
    [c_in, c_out]: [usize; 2],
    resampling: Resampling,
) -> Result<Layer> {
    let size = ResBlockSize {
        c_in,
        c_out,
        resampling,
    };
    Ok(Layer::ResBlock(Rc::new(ResBlock::new(
        builder, config, size,
    )?)))
}

pub(super) fn attention(
    config: &UNetConfig,
    builder: &mut Builder<'_, '_>,
    channels: usize,
) -> Result<Layer> {
    Ok(Layer::Attention(Rc::new(AttentionBlock::new(
        builder, config, channels,
    )?)))
}

/// The encoder; pushes the channels of each block's output to `skip_channels`.
fn input_blocks(
    config: &UNetConfig,
    builder: &mut Builder<'_, '_>,
    skip_channels: &mut Vec<usize>,
) -> Result<Vec<Vec<Layer>>> {
    let mut c = config.level_channels(0);
    let size = ConvSize {
        c_in: config.in_channels,
        c_out: c,
        kernel: 3,
        stride: 1,
    };
    let mut blocks = vec![vec![Layer::Conv(Conv2d::new(
        &mut builder.at("0.0"),
        size,
        Start::Random,
    )?)]];
    skip_channels.push(c);
    for level in 0..config.channel_mult.len() {
        let c_level = config.level_channels(level);
        for _ in 0..config.n_res_blocks {
            let mut at = builder.at(blocks.len());
            let mut block = vec![res_block(
                config,
                &mut at.at(0),
                [c, c_level],
                Resampling::None,
            )?];
            c = c_level;
            if config.has_attention(level) {
                block.push(attention(config, &mut at.at(1), c)?);
            }
            blocks.push(block);
            skip_channels.push(c);
        }
        if level + 1 < config.channel_mult.len() {
            let mut at = builder.at(format_args!("{}.0", blocks.len()));
            blocks.push(vec![match config.resample {
                Resample::ResBlock => res_block(config, &mut at, [c, c], Resampling::Down)?,
                Resample::Conv => Layer::Downsample(Downsample::new(&mut at, c)?),
            }]);
            skip_channels.push(c);
        }
    }
    Ok(blocks)
}

fn middle_block(config: &UNetConfig, builder: &mut Builder<'_, '_>) -> Result<Vec<Layer>> {
    let c = config.level_channels(config.channel_mult.len() - 1);
    Ok(vec![
        res_block(config, &mut builder.at(0), [c, c], Resampling::None)?,
        attention(config, &mut builder.at(1), c)?,
        res_block(config, &mut builder.at(2), [c, c], Resampling::None)?,
    ])
}
