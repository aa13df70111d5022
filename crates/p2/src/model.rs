//! A network with its noise process: what a configuration describes and a checkpoint restores.

mod denoiser;
pub mod file;
mod from_config;
pub mod infer;
mod low_res;

pub use denoiser::ModelDenoiser;
pub use from_config::schedule;
#[cfg(test)]
pub(crate) use from_config::unet;
pub(crate) use from_config::{
    levels_per_timestep, network_config, objective, precision, prediction, recompute,
    training_density, training_schedule,
};

use std::rc::Rc;

use anyhow::Context as _;
use candle_core::Tensor;
use p2_diffusion::{NoiseSchedule, Objective, Prediction, Variance, Weighting};
use p2_nn::unet::{Dropout, Input, MultiplyAdds, with_low_res};
use p2_nn::{Cpu, Init, Node, Params, Tape, UNet};

use crate::config::RunConfig;
use crate::rng::{Draws, Stream};

/// A network with its noise process.
#[derive(Debug)]
pub struct Model {
    unet: UNet,
    schedule: NoiseSchedule,
    prediction: Prediction,
    variance: Variance,
    /// What times are multiplied by before the network is told them.
    time_scale: f64,
    n_classes: usize,
    /// The label of an image without a class, if the model was trained on some.
    no_class: Option<u32>,
    /// Height and width of the images that it enlarges, if it does.
    low_res_size: Option<usize>,
    cpu: Cpu,
}

/// Noised images and what the network is told of them.
#[derive(Debug, Clone, Copy)]
pub struct Noised<'a> {
    /// `[N, H, W, 3]`.
    pub x_t: &'a Tensor,
    /// Their timesteps, `[N]`, or times between these.
    pub t: &'a [f64],
    /// What it is told beside them.
    pub condition: Condition<'a>,
}

/// What a network is told beside noised images and their noise levels.
#[derive(Debug, Clone, Copy)]
pub struct Condition<'a> {
    /// Classes, `[N]`; not used by an unconditional model.
    pub labels: &'a [u32],
    /// Images to be enlarged, `[N, h, w, 3]`; for a super-resolution model.
    pub low_res: Option<&'a Tensor>,
}

impl<'a> Condition<'a> {
    /// That of a model which draws from noise alone.
    pub fn of_classes(labels: &'a [u32]) -> Self {
        let low_res = None;
        Self { labels, low_res }
    }
}

impl Model {
    /// An untrained model: its weights are a function of `train.seed`.
    ///
    /// # Errors
    /// If the sizes of the network do not fit together.
    pub fn new(config: &RunConfig, cpu: Cpu) -> anyhow::Result<Self> {
        let seed = config.train.seed;
        let mut initializer = |index: usize, init: Init, values: &mut [f32]| {
            initialize(Draws::at(seed, Stream::Init, index as u64), init, values);
        };
        Self::build(config, &mut initializer, cpu)
    }

    /// A model whose weights are all 0, to be loaded.
    ///
    /// # Errors
    /// If the sizes of the network do not fit together.
    pub fn zeros(config: &RunConfig, cpu: Cpu) -> anyhow::Result<Self> {
        Self::build(config, &mut |_, _, _| {}, cpu)
    }

    fn build(
        config: &RunConfig,
        initializer: &mut p2_nn::Initializer<'_>,
        cpu: Cpu,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            unet: UNet::new(from_config::unet(config), initializer)
                .context("cannot build the network")?,
            schedule: from_config::schedule(&config.diffusion)?,
            prediction: from_config::prediction(config.diffusion.prediction),
            variance: from_config::variance(config.diffusion.variance),
            time_scale: from_config::time_scale(&config.diffusion),
            n_classes: config.model.n_classes,
            no_class: (config.model.label_dropout > 0.0).then_some(config.model.n_classes as u32),
            low_res_size: (config.model.low_res_size > 0).then_some(config.model.low_res_size),
            cpu: cpu.with_precision(from_config::precision(config.train.precision)),
        })
    }

    /// The weights.
    pub fn params(&self) -> &Params {
        self.unet.params()
    }

    /// What its kernels run on.
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// The noise process.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// What the network predicts.
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The variance of the reverse process.
    pub fn variance(&self) -> Variance {
        self.variance
    }

    /// What an image's forward pass costs.
    pub fn multiply_adds(&self) -> MultiplyAdds {
        self.unet.config().multiply_adds()
    }

    /// Height and width of its images.
    pub fn image_size(&self) -> usize {
        self.unet.config().image_size
    }

    /// Number of classes; 0 for an unconditional model.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// The label of an image without a class, if the model was trained on some.
    pub fn no_class(&self) -> Option<u32> {
        self.no_class
    }

    /// What errors of the model are measured with where no weight counts.
    ///
    /// # Errors
    /// If the prediction makes no sense at some noise level.
    pub fn unweighted(&self) -> anyhow::Result<Objective> {
        let simple = Weighting::Simple {};
        Ok(Objective::new(
            &self.schedule,
            self.prediction,
            self.variance,
            simple,
        )?)
    }

    /// The network's output, `[N, H, W, 3]`, or 6 channels with learned variance.
    ///
    /// # Errors
    /// If the shapes or labels do not fit.
    pub fn predict(&self, noised: Noised<'_>) -> anyhow::Result<Tensor> {
        let tape = Tape::inference(self.cpu);
        Ok(self.record(&tape, noised, None)?.value().clone())
    }

    /// [`Self::predict`] on a tape, so that gradients can be found.
    ///
    /// # Errors
    /// If the shapes or labels do not fit.
    pub fn record(
        &self,
        tape: &Tape,
        noised: Noised<'_>,
        dropout: Option<&Rc<dyn Dropout>>,
    ) -> anyhow::Result<Node> {
        self.forward(&tape.constant(noised.x_t), noised, dropout)
    }

    /// The output for `x_t`, which is that of `noised` on the tape that shall record.
    fn forward(
        &self,
        x_t: &Node,
        noised: Noised<'_>,
        dropout: Option<&Rc<dyn Dropout>>,
    ) -> anyhow::Result<Node> {
        let Condition { labels, low_res } = noised.condition;
        let x_t = match self.check_low_res(low_res)? {
            Some(low_res) => &with_low_res(x_t, low_res)?, // [N, H, W, 6]
            None => x_t,
        };
        let t = noised.t.iter().map(|t| t * self.time_scale);
        Ok(self.unet.forward(Input {
            x_t,
            t: &t.collect::<Vec<_>>(),
            labels: (self.n_classes() > 0).then_some(labels),
            dropout,
        })?)
    }

    /// The model as samplers and likelihoods see it, for images of these classes or enlarged from these.
    pub fn denoiser<'a>(&'a self, condition: Condition<'a>) -> ModelDenoiser<'a> {
        ModelDenoiser::new(self, condition)
    }
}

/// Initial values, by the draws of the parameter's seed and place in the network.
pub(crate) fn initialize(mut draws: Draws, init: Init, values: &mut [f32]) {
    match init {
        Init::Zeros => values.fill(0.0),
        Init::Ones => values.fill(1.0),
        Init::Normal { std } => {
            draws.fill_normal(values);
            for value in values {
                *value = (f64::from(*value) * std) as f32;
            }
        }
        Init::Uniform { bound } => {
            for value in values {
                *value = (bound * (2.0 * draws.uniform() - 1.0)) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use p2_nn::Threads;

    use super::*;
    use crate::config::{Base, Override, TEST_CONFIG, resolve};

    /// A small network whose weights do not depend on the noise process.
    fn model(set: &[&str]) -> Model {
        let network = [
            "data.image_size=8",
            "model.channels=32",
            "model.channel_mult=[1]",
            "model.attention_resolutions=[]",
        ];
        let set = network.iter().chain(set).map(|text| Override::set(text));
        let run = resolve(&Base::File(TEST_CONFIG.into()), &set.collect::<Vec<_>>()).unwrap();
        let model = Model::zeros(&run, Cpu::best(Threads::new(1))).unwrap();
        for param in model.params().iter() {
            let n_values = param.values().unwrap().len();
            let values: Vec<f32> = (0..n_values).map(|i| 0.1 * (i as f32).sin()).collect();
            param.set_values(&values).unwrap();
        }
        model
    }

    /// Whoever asks a network, in training or later, asks [`Model::record`].
    #[test]
    fn rescaled_times_are_those_of_1000_timesteps() {
        let predict = |model: &Model, t: f64| -> Vec<f32> {
            let x_t = Tensor::ones((1, 8, 8, 3), DType::F32, &Device::Cpu).unwrap();
            let noised = Noised {
                x_t: &x_t,
                t: &[t],
                condition: Condition::of_classes(&[]),
            };
            let output = model.predict(noised).unwrap();
            output.flatten_all().unwrap().to_vec1().unwrap()
        };
        let plain = model(&[]);
        let short = [
            "diffusion.n_timesteps=250",
            "diffusion.rescale_timesteps=true",
        ];
        let rescaled = model(&short);
        assert_eq!(predict(&rescaled, 30.0), predict(&plain, 120.0));
        assert_eq!(predict(&rescaled, 30.25), predict(&plain, 121.0));
        assert_eq!(predict(&model(&short[..1]), 30.0), predict(&plain, 30.0));
        assert_ne!(predict(&plain, 30.0), predict(&plain, 120.0));
    }
}
