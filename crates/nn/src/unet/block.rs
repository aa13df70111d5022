//! The blocks of the U-Net: residual block, attention block, and the two resampling convolutions.

use super::config::{TimeConditioning, UNetConfig};
use crate::Result;
use crate::layer::{Conv2d, ConvSize, GroupNorm, Linear, Start};
use crate::op::attention::{self, attention};
use crate::op::dropout::{Piece, dropout};
use crate::op::elementwise::add_per_image;
use crate::op::group_norm::Activation;
use crate::op::resample::{avg_pool2, upsample2};
use crate::op::{Joined, Output};
use crate::params::Builder;
use crate::tape::Node;

/// Where dropout masks come from, so that the caller decides what they depend on.
pub trait Dropout: std::fmt::Debug + Sync {
    /// What kept elements are multiplied by: `1 / (1 - p)`.
    fn kept(&self) -> f32;

    /// Sets bit `i % 8` of `dropped[i / 8]` where element i from [`DropoutSite::first`] on is dropped,
    /// and clears the others.
    ///
    /// An image is asked for in pieces, in any order and from several threads; more than once, if a block is
    /// computed again for its gradients.
    fn fill(&self, at: DropoutSite, dropped: &mut [u8]);
}

/// Which mask is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutSite {
    /// Place of the image in the batch.
    pub image: usize,
    /// The residual block, numbered from the input on.
    pub layer: u64,
    /// The first element that is wanted of the image at this layer; a multiple of 8.
    pub first: usize,
}

/// What a residual block does to the size of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resampling {
    None,
    Down,
    Up,
}

impl Resampling {
    fn apply(self, x: &Node) -> Result<Node> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Down => avg_pool2(x),
            Self::Up => upsample2(x),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ResBlockSize {
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) resampling: Resampling,
}

/// Norm, SiLU, convolution; the noise level; norm, SiLU, dropout, convolution; plus the input.
#[derive(Debug)]
pub(crate) struct ResBlock {
    in_norm: GroupNorm,
    in_conv: Conv2d,
    embed: Linear,
    out_norm: GroupNorm,
    out_conv: Conv2d,
    skip: Option<Conv2d>,
    resampling: Resampling,
    time_conditioning: TimeConditioning,
    drops: bool,
    /// Number of the block for dropout: the count of parameters before it, which is unique.
    layer: u64,
}

impl ResBlock {
    pub(crate) fn new(
        builder: &mut Builder<'_, '_>,
        config: &UNetConfig,
        size: ResBlockSize,
    ) -> Result<Self> {
        let ResBlockSize {
            c_in,
            c_out,
            resampling,
        } = size;
        let layer = builder.n_params() as u64;
        let conv = |c_in| ConvSize {
            c_in,
            c_out,
            kernel: 3,
            stride: 1,
        };
        let norm = |name, channels, builder: &mut Builder<'_, '_>| -> Result<_> {
            let norm = GroupNorm::new(&mut builder.at(name), channels, Activation::Silu)?;
            Ok(norm.for_products())
        };
        let embed_size = [config.embed_channels(), config.embed_outputs(c_out)];
        Ok(Self {
            in_norm: norm("in_layers.0", c_in, builder)?,
            in_conv: Conv2d::new(&mut builder.at("in_layers.2"), conv(c_in), Start::Random)?,
            embed: Linear::new(&mut builder.at("emb_layers.1"), embed_size, Start::Random)?,
            out_norm: norm("out_layers.0", c_out, builder)?,
            out_conv: Conv2d::new(&mut builder.at("out_layers.3"), conv(c_out), Start::Zero)?,
            skip: if c_in == c_out {
                None
            } else {
                let size = ConvSize {
                    kernel: 1,
                    ..conv(c_in)
                };
                Some(Conv2d::new(
                    &mut builder.at("skip_connection"),
                    size,
                    Start::Random,
                )?)
            },
            resampling,
            time_conditioning: config.time_conditioning,
            drops: config.dropout > 0.0,
            layer,
        })
    }

    /// `[N, H, W, C_in]` to `[N, H', W', C_out]`; two sources are read where they are.
    ///
    /// - `embedding`: SiLU of the embedding of noise level and class, `[N, E]`
    pub(crate) fn forward(
        &self,
        x: &Joined,
        embedding: &Node,
        dropout: Option<&dyn Dropout>,
    ) -> Result<Node> {
        let h = self.resampling.apply(&self.in_norm.forward(x)?)?;
        let h = self.in_conv.forward(&h)?;
        let embedding = self.embed.forward(embedding)?; // [N, 2 C_out] or [N, C_out]
        let h = match self.time_conditioning {
            TimeConditioning::ScaleShift => self.out_norm.forward_conditioned(&h, &embedding)?,
            TimeConditioning::Additive => self.out_norm.forward(&add_per_image(&h, &embedding)?)?,
        };
        let h = match dropout {
            Some(dropout) if self.drops => self.drop(&h, dropout)?,
            _ => h,
        };
        let x = x.try_map(|x| self.resampling.apply(x))?;
        let x = match &self.skip {
            None => x.into_node()?,
            Some(skip) => skip.forward(x)?,
        };
        self.out_conv.forward_onto(&h, &x)
    }

    fn drop(&self, h: &Node, masks: &dyn Dropout) -> Result<Node> {
        dropout(h, masks.kept(), |Piece { image, first }, dropped| {
            let layer = self.layer;
            masks.fill(
                DropoutSite {
                    image,
                    layer,
                    first,
                },
                dropped,
            );
        })
    }
}

/// Norm, attention over all positions, projection; plus the input.
#[derive(Debug)]
pub(crate) struct AttentionBlock {
    norm: GroupNorm,
    qkv: Linear,
    proj_out: Linear,
    options: attention::Options,
}

impl AttentionBlock {
    pub(crate) fn new(
        builder: &mut Builder<'_, '_>,
        config: &UNetConfig,
        c: usize,
    ) -> Result<Self> {
        let options = attention::Options {
            n_heads: config.n_heads(c),
            order: config.attention_order,
            output: Output::ForProducts,
        };
        Ok(Self {
            norm: GroupNorm::new(&mut builder.at("norm"), c, Activation::Identity)?.for_products(),
            qkv: Linear::new_conv1d(&mut builder.at("qkv"), [c, 3 * c], Start::Random)?
                .for_products(),
            proj_out: Linear::new_conv1d(&mut builder.at("proj_out"), [c, c], Start::Zero)?,
            options,
        })
    }

    /// `[N, H, W, C]` to the same.
    pub(crate) fn forward(&self, x: &Node) -> Result<Node> {
        let (n, h, w, c) = x.value().dims4()?;
        let qkv = self.qkv.forward(&self.norm.forward(x)?)?; // [N, H, W, 3 C]
        let y = attention(&qkv.reshape((n, h * w, 3 * c))?, self.options)?; // [N, H*W, C]
        self.proj_out.forward_onto(&y.reshape((n, h, w, c))?, x)
    }
}

/// A convolution of stride 2.
#[derive(Debug)]
pub(crate) struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    pub(crate) fn new(builder: &mut Builder<'_, '_>, c: usize) -> Result<Self> {
        let size = ConvSize {
            c_in: c,
            c_out: c,
            kernel: 3,
            stride: 2,
        };
        Ok(Self {
            conv: Conv2d::new(&mut builder.at("op"), size, Start::Random)?,
        })
    }

    pub(crate) fn forward(&self, x: &Node) -> Result<Node> {
        self.conv.forward(x)
    }
}

/// Nearest-neighbour upsampling and a convolution.
#[derive(Debug)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(crate) fn new(builder: &mut Builder<'_, '_>, c: usize) -> Result<Self> {
        let size = ConvSize {
            c_in: c,
            c_out: c,
            kernel: 3,
            stride: 1,
        };
        Ok(Self {
            conv: Conv2d::new(&mut builder.at("conv"), size, Start::Random)?,
        })
    }

    pub(crate) fn forward(&self, x: &Node) -> Result<Node> {
        self.conv.forward(&upsample2(x)?)
    }
}
