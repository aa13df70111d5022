//! The ADM U-Net, with all options of the reference and its parameter names.
//!
//! # Source
//! Dhariwal and Nichol 2021, arXiv 2105.05233, section 3; Ho et al. 2020, arXiv 2006.11239.

mod block;
mod config;
mod cost;

use std::rc::Rc;

use candle_core::{DType, Device, Tensor, Var};

use block::{AttentionBlock, Downsample, ResBlock, ResBlockSize, Resampling, Upsample};
pub use block::{Dropout, DropoutSite};
pub use config::{Heads, Order, Resample, TimeConditioning, UNetConfig};
pub use cost::MultiplyAdds;

use crate::layer::{Conv2d, ConvSize, GroupNorm, Linear, Start};
use crate::op::elementwise::{add, concat, rows, silu};
use crate::op::group_norm::Activation;
use crate::params::{Builder, Init, Initializer, Kind, Params};
use crate::tape::{Node, Tape, checkpoint};
use crate::{Error, Result};

/// What a stage of the network is made of: the reference's `TimestepEmbedSequential`.
#[derive(Debug)]
enum Layer {
    Conv(Conv2d),
    ResBlock(Rc<ResBlock>),
    Attention(Rc<AttentionBlock>),
    Downsample(Downsample),
    Upsample(Upsample),
}

/// A U-Net and its parameters.
#[derive(Debug)]
pub struct UNet {
    config: UNetConfig,
    params: Params,
    time_embed: [Linear; 2],
    label_embed: Option<Var>,
    input_blocks: Vec<Vec<Layer>>,
    middle_block: Vec<Layer>,
    output_blocks: Vec<Vec<Layer>>,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    device: Device,
    dtype: DType,
}

/// What the network is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Noised images, `[N, H, W, C_in]`, on the tape that shall record the computation.
    pub x_t: &'a Node,
    /// Noise levels, `[N]`; fractions are allowed.
    pub t: &'a [f64],
    /// Classes, `[N]`, of a class-conditional network.
    pub labels: Option<&'a [u32]>,
    /// Dropout masks while training; `None` to use the network as it is.
    pub dropout: Option<&'a Rc<dyn Dropout>>,
}

impl UNet {
    /// A network whose parameters `initializer` fills, in the order of the reference.
    ///
    /// # Errors
    /// [`Error::Config`] if the sizes do not fit together.
    pub fn new(config: UNetConfig, initializer: &mut Initializer<'_>) -> Result<Self> {
        Self::with_dtype(config, initializer, DType::F32)
    }

    /// A network of another type. In f64 it runs on plain candle operations: slow, and exact enough
    /// to measure the rounding of the fast one.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_dtype(
        config: UNetConfig,
        initializer: &mut Initializer<'_>,
        dtype: DType,
    ) -> Result<Self> {
        config.check()?;
        let device = Device::Cpu;
        let mut params = Params::default();
        let mut root = Builder::new(&mut params, initializer, &device).with_dtype(dtype);
        let (channels, embed_channels) = (config.channels, config.embed_channels());
        let time_embed = [
            Linear::new(
                &mut root.at("time_embed.0"),
                [channels, embed_channels],
                Start::Random,
            )?,
            Linear::new(
                &mut root.at("time_embed.2"),
                [embed_channels; 2],
                Start::Random,
            )?,
        ];
        let label_embed = match config.n_classes {
            0 => None,
            n => Some(root.at("label_emb").param(
                "weight",
                Kind::Embedding,
                &[n, embed_channels],
                Init::Normal,
            )?),
        };
        let mut skip_channels = vec![];
        let input_blocks = input_blocks(&config, &mut root.at("input_blocks"), &mut skip_channels)?;
        let middle_channels = config.level_channels(config.channel_mult.len() - 1);
        let middle_block = middle_block(&config, &mut root.at("middle_block"), middle_channels)?;
        let output_blocks = output_blocks(&config, &mut root.at("output_blocks"), skip_channels)?;
        let first = config.level_channels(0);
        let out_norm = GroupNorm::new(&mut root.at("out.0"), first, Activation::Silu)?;
        let size = ConvSize {
            c_in: first,
            c_out: config.out_channels,
            kernel: 3,
            stride: 1,
        };
        let out_conv = Conv2d::new(&mut root.at("out.2"), size, Start::Zero)?;
        Ok(Self {
            config,
            params,
            time_embed,
            label_embed,
            input_blocks,
            middle_block,
            output_blocks,
            out_norm,
            out_conv,
            device,
            dtype,
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &UNetConfig {
        &self.config
    }

    /// All parameters, in the reference's order.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The network's output, `[N, H, W, C_out]`.
    ///
    /// # Errors
    /// If shapes do not fit, or labels are missing, not wanted or too large.
    pub fn forward(&self, input: Input<'_>) -> Result<Node> {
        let tape = input.x_t.tape();
        let embedding = silu(&self.embedding(tape, input.t, input.labels)?)?; // [N, E]
        let context = Context {
            embedding: &embedding,
            dropout: input.dropout,
        };
        let mut h = input.x_t.clone(); // [N, H, W, C_in]
        let mut skips = Vec::with_capacity(self.input_blocks.len());
        for block in &self.input_blocks {
            h = run(block, h, context)?;
            skips.push(h.clone());
        }
        h = run(&self.middle_block, h, context)?;
        for block in &self.output_blocks {
            if let Some(skip) = skips.pop() {
                h = concat(&h, &skip)?; // [N, H, W, C + C_skip]
            }
            h = run(block, h, context)?;
        }
        self.out_conv.forward(&self.out_norm.forward(&h)?)
    }

    /// The embedding of noise level and class, `[N, E]`.
    fn embedding(&self, tape: &Tape, t: &[f64], labels: Option<&[u32]>) -> Result<Node> {
        let [first, second] = &self.time_embed;
        let frequencies = timestep_embedding(t, self.config.channels);
        let shape = (t.len(), self.config.channels);
        let frequencies = Tensor::from_vec(frequencies, shape, &self.device)?;
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
struct Context<'a> {
    /// SiLU of the embedding of noise level and class, `[N, E]`.
    embedding: &'a Node,
    dropout: Option<&'a Rc<dyn Dropout>>,
}

fn run(layers: &[Layer], x: Node, context: Context<'_>) -> Result<Node> {
    let mut h = x;
    for layer in layers {
        h = match layer {
            Layer::Conv(conv) => conv.forward(&h)?,
            Layer::ResBlock(block) => {
                let (block, dropout) = (block.clone(), context.dropout.cloned());
                checkpoint([&h, context.embedding], move |[h, embedding]| {
                    block.forward(h, embedding, dropout.as_deref())
                })?
            }
            Layer::Attention(block) => {
                let block = block.clone();
                checkpoint([&h], move |[h]| block.forward(h))?
            }
            Layer::Downsample(layer) => layer.forward(&h)?,
            Layer::Upsample(layer) => layer.forward(&h)?,
        };
    }
    Ok(h)
}

fn res_block(
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

fn attention(config: &UNetConfig, builder: &mut Builder<'_, '_>, channels: usize) -> Result<Layer> {
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

fn middle_block(
    config: &UNetConfig,
    builder: &mut Builder<'_, '_>,
    c: usize,
) -> Result<Vec<Layer>> {
    Ok(vec![
        res_block(config, &mut builder.at(0), [c, c], Resampling::None)?,
        attention(config, &mut builder.at(1), c)?,
        res_block(config, &mut builder.at(2), [c, c], Resampling::None)?,
    ])
}

/// The decoder; takes the encoder's outputs from the last to the first.
fn output_blocks(
    config: &UNetConfig,
    builder: &mut Builder<'_, '_>,
    mut skip_channels: Vec<usize>,
) -> Result<Vec<Vec<Layer>>> {
    let n_levels = config.channel_mult.len();
    let mut c = config.level_channels(n_levels - 1);
    let mut blocks = vec![];
    for level in (0..n_levels).rev() {
        let c_level = config.level_channels(level);
        for i in 0..=config.n_res_blocks {
            let c_in = c + skip_channels.pop().unwrap_or(0);
            let mut at = builder.at(blocks.len());
            let mut block = vec![res_block(
                config,
                &mut at.at(0),
                [c_in, c_level],
                Resampling::None,
            )?];
            c = c_level;
            if config.has_attention(level) {
                block.push(attention(config, &mut at.at(1), c)?);
            }
            if level > 0 && i == config.n_res_blocks {
                let mut at = at.at(block.len());
                block.push(match config.resample {
                    Resample::ResBlock => res_block(config, &mut at, [c, c], Resampling::Up)?,
                    Resample::Conv => Layer::Upsample(Upsample::new(&mut at, c)?),
                });
            }
            blocks.push(block);
        }
    }
    Ok(blocks)
}
