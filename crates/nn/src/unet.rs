//! The ADM U-Net, with all options of the reference and its parameter names.
//!
//! # Source
//! Dhariwal and Nichol 2021, arXiv 2105.05233, section 3; Ho et al. 2020, arXiv 2006.11239.

mod block;
mod config;
mod cost;
pub(crate) mod encoder;
mod low_res;

use std::rc::Rc;

use candle_core::{DType, Device};

pub use block::{Dropout, DropoutSite};
use block::{Resampling, Upsample};
pub use config::{Heads, Order, Resample, TimeConditioning, UNetConfig};
pub use cost::MultiplyAdds;
pub use encoder::timestep_embedding;
use encoder::{Context, Encoder, Layer, attention, res_block, run};
pub use low_res::with_low_res;

use crate::Result;
use crate::layer::{Conv2d, ConvSize, GroupNorm, Start};
use crate::op::Joined;
use crate::op::group_norm::Activation;
use crate::params::{Builder, Initializer, Params};
use crate::tape::Node;

/// A U-Net and its parameters.
#[derive(Debug)]
pub struct UNet {
    params: Params,
    encoder: Encoder,
    output_blocks: Vec<Vec<Layer>>,
    out_norm: GroupNorm,
    out_conv: Conv2d,
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
    /// [`Error::Config`](crate::Error::Config) if the sizes do not fit together.
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
        let mut params = Params::default();
        let mut root = Builder::new(&mut params, initializer, &Device::Cpu).with_dtype(dtype);
        let (encoder, skip_channels) = Encoder::new(config, &mut root, dtype)?;
        let config = encoder.config();
        let output_blocks = output_blocks(config, &mut root.at("output_blocks"), skip_channels)?;
        let first = config.level_channels(0);
        let out_norm =
            GroupNorm::new(&mut root.at("out.0"), first, Activation::Silu)?.for_products();
        let size = ConvSize {
            c_in: first,
            c_out: config.out_channels,
            kernel: 3,
            stride: 1,
        };
        let out_conv = Conv2d::new(&mut root.at("out.2"), size, Start::Zero)?;
        Ok(Self {
            params,
            encoder,
            output_blocks,
            out_norm,
            out_conv,
        })
    }

    /// What the network was built from.
    pub fn config(&self) -> &UNetConfig {
        self.encoder.config()
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
        let condition = (input.t, input.labels);
        let encoded = self.encoder.forward(input.x_t, condition, input.dropout)?;
        let context = Context {
            embedding: &encoded.embedding,
            dropout: input.dropout,
        };
        let (mut h, mut skips) = (encoded.middle, encoded.skips);
        for block in &self.output_blocks {
            let x = match skips.pop() {
                Some(skip) => Joined::new(h, skip)?, // [N, H, W, C + C_skip]
                None => h.into(),
            };
            h = run(block, x, context)?;
        }
        self.out_conv.forward(&self.out_norm.forward(&h)?)
    }
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
