//! A classifier of noised images: what a configuration describes, a checkpoint restores, and samplers are guided by.

pub mod file;
mod loss;

use anyhow::Context as _;
use candle_core::Tensor;
use p2_diffusion::{ClassGradient, Error, NoiseSchedule};
use p2_nn::classifier::Pool;
use p2_nn::{Classifier as Network, Cpu, Init, Node, Params, Tape};

pub(crate) use loss::{cross_entropy, ranks};

use crate::config::{ClassifierConfig, section};
use crate::model::{initialize, network_config, precision, schedule};
use crate::rng::{Draws, Stream};

/// A network that tells classes apart, and the noise that it sees through.
#[derive(Debug)]
pub struct Classifier {
    network: Network,
    schedule: NoiseSchedule,
    n_classes: usize,
    is_noised: bool,
    cpu: Cpu,
}

impl Classifier {
    /// An untrained classifier: its weights are a function of `train.seed`.
    ///
    /// # Errors
    /// If the sizes of the network do not fit together.
    pub fn new(config: &ClassifierConfig, cpu: Cpu) -> anyhow::Result<Self> {
        let seed = config.train.seed;
        let mut initializer = |index: usize, init: Init, values: &mut [f32]| {
            initialize(Draws::at(seed, Stream::Init, index as u64), init, values);
        };
        Self::build(config, &mut initializer, cpu)
    }

    /// A classifier whose weights are all 0, to be loaded.
    ///
    /// # Errors
    /// If the sizes of the network do not fit together.
    pub fn zeros(config: &ClassifierConfig, cpu: Cpu) -> anyhow::Result<Self> {
        Self::build(config, &mut |_, _, _| {}, cpu)
    }

    fn build(
        config: &ClassifierConfig,
        initializer: &mut p2_nn::Initializer<'_>,
        cpu: Cpu,
    ) -> anyhow::Result<Self> {
        let model = &config.model;
        let encoder = network_config(&model.to_unet(), config.data.image_size, model.n_classes);
        let pool = match model.pool {
            section::Pool::Attention => Pool::Attention,
            section::Pool::Adaptive => Pool::Adaptive,
            section::Pool::Spatial => Pool::Spatial,
            section::Pool::SpatialV2 => Pool::SpatialV2,
        };
        let network = Network::new(encoder, pool, initializer);
        Ok(Self {
            network: network.context("cannot build the network")?,
            schedule: schedule(&config.diffusion.to_model())?,
            n_classes: model.n_classes,
            is_noised: config.diffusion.noised,
            cpu: cpu.with_precision(precision(config.train.precision)),
        })
    }

    /// The weights.
    pub fn params(&self) -> &Params {
        self.network.params()
    }

    /// What its kernels run on.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The noise process.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Whether it was trained on noised images.
    pub fn is_noised(&self) -> bool {
        self.is_noised
    }

    /// Height and width of its images.
    pub fn image_size(&self) -> usize {
        self.network.config().image_size
    }

    /// Number of classes that it tells apart.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// Scores of classes before the softmax, on a tape: `[N, H, W, 3]` and `[N]` to `[N, n_classes]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn record(&self, x_t: &Node, t: &[f64]) -> anyhow::Result<Node> {
        Ok(self.network.forward(x_t, t)?)
    }

    /// The same, not recorded.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn scores(&self, x_t: &Tensor, t: &[f64]) -> anyhow::Result<Tensor> {
        let tape = Tape::inference(self.cpu);
        Ok(self.record(&tape.constant(x_t), t)?.value().clone())
    }

    /// The classifier as guidance sees it, for images that are to be of these classes, `[N]`.
    pub fn gradient<'a>(&'a self, labels: &'a [u32]) -> impl ClassGradient + 'a {
        move |x_t: &Tensor, t: &[f64]| -> p2_diffusion::Result<Tensor> {
            self.gradient_at(x_t, t, labels)
                .map_err(|error| Error::Caller(error.into()))
        }
    }

    /// The gradient of `log p(label given x_t)` with respect to `x_t`.
    fn gradient_at(&self, x_t: &Tensor, t: &[f64], labels: &[u32]) -> anyhow::Result<Tensor> {
        let tape = Tape::recording_inputs(self.cpu);
        let input = tape.input(x_t);
        let scores = self.record(&input, t)?;
        let leaf = scores.leaf()?;
        // Images do not see each other: the gradient of the sum is that of each.
        let sum = cross_entropy(&leaf, labels)?.sum_all()?.neg()?;
        let gradients = scores.backward_from(&leaf, &sum)?;
        let gradient = gradients.of(&input).cloned();
        gradient.context("the scores do not depend on the image")
    }
}
