//! A classifier of noised images: the encoder of a U-Net, and a head that pools what it makes of them.
//!
//! # Source
//! Dhariwal and Nichol 2021, arXiv 2105.05233, section 4 and appendix H; names and order of parameters are those of
//! the reference's `EncoderUNetModel`.

mod head;

use candle_core::{DType, Device};

use crate::params::{Builder, Initializer, Params};
use crate::tape::Node;
use crate::unet::encoder::Encoder;
use crate::{Error, Result, UNetConfig};

use head::Head;

/// How an image's features become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// Attention from the mean of all positions to each (Radford et al. 2021, arXiv 2103.00020).
    Attention,
    /// The mean over positions.
    Adaptive,
    /// The means over positions of every block's output, through a hidden layer with ReLU.
    Spatial,
    /// The same, through a hidden layer with a norm and SiLU.
    SpatialV2,
}

/// A classifier and its parameters.
#[derive(Debug)]
pub struct Classifier {
    params: Params,
    encoder: Encoder,
    head: Head,
}

impl Classifier {
    /// A classifier whose parameters `initializer` fills, in the order of the reference.
    ///
    /// `config.out_channels` is the number of classes that it tells apart; the decoder's options are not used.
    ///
    /// # Errors
    /// [`Error::Config`] if the sizes do not fit together, or `config.n_classes` is not 0: it is told no class.
    pub fn new(config: UNetConfig, pool: Pool, initializer: &mut Initializer<'_>) -> Result<Self> {
        config.check()?;
        if config.n_classes != 0 {
            let n_classes = config.n_classes;
            return Err(Error::Config(format!(
                "a classifier is told no class, but n_classes is {n_classes}"
            )));
        }
        let mut params = Params::default();
        let mut root = Builder::new(&mut params, initializer, &Device::Cpu);
        let (encoder, skip_channels) = Encoder::new(config, &mut root, DType::F32)?;
        let head = Head::new(encoder.config(), pool, &skip_channels, &mut root.at("out"))?;
        Ok(Self {
            params,
            encoder,
            head,
        })
    }

    /// What the classifier was built from.
    pub fn config(&self) -> &UNetConfig {
        self.encoder.config()
    }

    /// All parameters, in the reference's order.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Scores of classes before the softmax: `[N, n_classes]`.
    ///
    /// # Shapes and units
    /// - `x_t`: noised images, `[N, H, W, C_in]`, on the tape that shall record the computation
    /// - `t`: noise levels, `[N]`; fractions are allowed
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x_t: &Node, t: &[f64]) -> Result<Node> {
        let encoded = self.encoder.forward(x_t, (t, None), None)?;
        self.head.forward(&encoded.skips, &encoded.middle)
    }
}
