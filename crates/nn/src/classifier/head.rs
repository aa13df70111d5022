//! The four ways from feature maps to scores of classes.

use candle_core::{D, Tensor, Var};

use super::Pool;
use crate::layer::{Conv2d, ConvSize, GroupNorm, Linear, Start};
use crate::op::attention::{Options, Order, attention};
use crate::op::group_norm::Activation;
use crate::op::{Output, composed};
use crate::params::{Builder, Init, Kind};
use crate::tape::Node;
use crate::{Result, UNetConfig};

/// Channels of the hidden layer of the two spatial heads.
const N_HIDDEN: usize = 2048;

/// A pool and the layers around it.
#[derive(Debug)]
pub(super) enum Head {
    Attention {
        norm: GroupNorm,
        pool: AttentionPool,
    },
    Adaptive {
        norm: GroupNorm,
        conv: Conv2d,
    },
    Spatial {
        hidden: Linear,
        /// A norm with SiLU; without it the activation is ReLU.
        norm: Option<GroupNorm>,
        out: Linear,
    },
}

impl Head {
    /// - `skip_channels`: channels of each input block's output
    pub(super) fn new(
        config: &UNetConfig,
        pool: Pool,
        skip_channels: &[usize],
        builder: &mut Builder<'_, '_>,
    ) -> Result<Self> {
        let last_level = config.channel_mult.len() - 1;
        let (c, n_classes) = (config.level_channels(last_level), config.out_channels);
        let norm_of = |channels, name: usize, builder: &mut Builder<'_, '_>| {
            GroupNorm::new(&mut builder.at(name), channels, Activation::Silu)
        };
        Ok(match pool {
            Pool::Attention => Self::Attention {
                norm: norm_of(c, 0, builder)?,
                pool: AttentionPool::new(config, &mut builder.at(2))?,
            },
            Pool::Adaptive => {
                let size = ConvSize {
                    c_in: c,
                    c_out: n_classes,
                    kernel: 1,
                    stride: 1,
                };
                Self::Adaptive {
                    norm: norm_of(c, 0, builder)?,
                    conv: Conv2d::new(&mut builder.at(3), size, Start::Zero)?,
                }
            }
            Pool::Spatial | Pool::SpatialV2 => {
                let n_features = c + skip_channels.iter().sum::<usize>();
                let hidden =
                    Linear::new(&mut builder.at(0), [n_features, N_HIDDEN], Start::Random)?;
                let norm = match pool {
                    Pool::SpatialV2 => Some(norm_of(N_HIDDEN, 1, builder)?),
                    _ => None,
                };
                let last = if norm.is_some() { 3 } else { 2 };
                let size = [N_HIDDEN, n_classes];
                Self::Spatial {
                    hidden,
                    norm,
                    out: Linear::new(&mut builder.at(last), size, Start::Random)?,
                }
            }
        })
    }

    /// Outputs of the input blocks and of the middle block, `[N, H, W, C]` each, to `[N, n_classes]`.
    pub(super) fn forward(&self, skips: &[Node], middle: &Node) -> Result<Node> {
        match self {
            Self::Attention { norm, pool } => pool.forward(&norm.forward(middle)?),
            Self::Adaptive { norm, conv } => {
                let mean = spatial_mean(&norm.forward(middle)?)?; // [N, C]
                let (n, c) = mean.value().dims2()?;
                let scores = conv.forward(&mean.reshape((n, 1, 1, c))?)?; // [N, 1, 1, n_classes]
                let n_classes = scores.value().dim(D::Minus1)?;
                scores.reshape((n, n_classes))
            }
            Self::Spatial { hidden, norm, out } => {
                let h = hidden.forward(&spatial_features(skips, middle)?)?; // [N, hidden]
                let h = match norm {
                    None => composed("elementwise", [&h], |[h]| h.relu())?,
                    Some(norm) => {
                        let (n, c) = h.value().dims2()?;
                        norm.forward(&h.reshape((n, 1, 1, c))?)?.reshape((n, c))?
                    }
                };
                out.forward(&h)
            }
        }
    }
}

/// The mean over positions: `[N, H, W, C]` to `[N, C]`.
fn spatial_mean(x: &Node) -> Result<Node> {
    composed("pool", [x], |[x]| x.flatten(1, 2)?.mean(1))
}

/// The spatial means of all feature maps, one after the other: `[N, sum of C]`.
fn spatial_features(skips: &[Node], middle: &Node) -> Result<Node> {
    let mut features: Option<Node> = None;
    for map in skips.iter().chain([middle]) {
        let mean = spatial_mean(map)?;
        features = Some(match features {
            None => mean,
            Some(before) => crate::op::elementwise::concat(&before, &mean)?,
        });
    }
    features.map_or_else(|| spatial_mean(middle), Ok)
}

/// One query, the mean of all positions, attends to it and to each of them.
///
/// # Source
/// Radford et al. 2021, arXiv 2103.00020, section 2.4.
#[derive(Debug)]
pub(super) struct AttentionPool {
    /// `[1 + S S, C]` here, `[C, 1 + S S]` in files.
    positional_embedding: Var,
    qkv_proj: Linear,
    c_proj: Linear,
    n_heads: usize,
}

impl AttentionPool {
    fn new(config: &UNetConfig, builder: &mut Builder<'_, '_>) -> Result<Self> {
        let last_level = config.channel_mult.len() - 1;
        let (c, size) = (
            config.level_channels(last_level),
            config.level_size(last_level),
        );
        let init = Init::Normal {
            std: 1.0 / (c as f64).sqrt(),
        };
        let shape = [c, size * size + 1];
        let (qkv, projection) = ([c, 3 * c], [c, config.out_channels]);
        Ok(Self {
            positional_embedding: builder.param(
                "positional_embedding",
                Kind::Linear,
                &shape,
                init,
            )?,
            qkv_proj: Linear::new_conv1d(&mut builder.at("qkv_proj"), qkv, Start::Random)?,
            c_proj: Linear::new_conv1d(&mut builder.at("c_proj"), projection, Start::Random)?,
            n_heads: config.n_heads(c),
        })
    }

    /// `[N, S, S, C]` to `[N, n_classes]`.
    fn forward(&self, x: &Node) -> Result<Node> {
        let places = x.tape().param(&self.positional_embedding);
        let tokens = composed("pool", [x, &places], |[x, places]| {
            let x = x.flatten(1, 2)?; // [N, S S, C]
            Tensor::cat(&[&x.mean_keepdim(1)?, &x], 1)?.broadcast_add(places)
        })?; // [N, 1 + S S, C]
        let options = Options {
            n_heads: self.n_heads,
            order: Order::KindMajor,
            output: Output::Whole,
        };
        let attended = attention(&self.qkv_proj.forward(&tokens)?, options)?; // [N, 1 + S S, C]
        let first = composed("pool", [&attended], |[x]| x.narrow(1, 0, 1)?.squeeze(1))?;
        self.c_proj.forward(&first)
    }
}
