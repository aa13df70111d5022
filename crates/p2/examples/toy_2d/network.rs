//! A small network that guesses the noise in points of the plane, and its training.

use candle_core::{Device, Tensor};
use p2::rng::{Draws, Stream};
use p2_diffusion::{
    Denoised, Denoiser, Density, NetworkOutput, NoiseSchedule, Objective, TimestepDensity,
};
use p2_nn::layer::{Linear, Start};
use p2_nn::op::elementwise::{add, concat, silu};
use p2_nn::params::Builder;
use p2_nn::unet::timestep_embedding;
use p2_nn::{AdamW, Cpu, Init, Node, Params, Recompute, Tape, adamw};

use crate::mixture::Mixture;

const SEED: u64 = 0;
const N_CHANNELS: usize = 64;
const N_TIME_CHANNELS: usize = 32;
/// Brings points of the data, which reach far, to the size that layers work best with.
const INPUT_SCALE: f64 = 0.1;
const BATCH_SIZE: usize = 256;
const LR: f64 = 8e-3;

/// Four linear layers with SiLU between them; the middle ones are residual.
#[derive(Debug)]
pub(crate) struct Network {
    params: Params,
    first: Linear,
    middle: [Linear; 2],
    last: Linear,
    cpu: Cpu,
}

impl Network {
    /// A network whose initial weights are a function of the seed.
    fn new(cpu: Cpu) -> anyhow::Result<Self> {
        let mut initializer = |index: usize, init: Init, values: &mut [f32]| {
            if let Init::Uniform { bound } = init {
                let mut draws = Draws::at(SEED, Stream::Init, index as u64);
                values.fill_with(|| (bound * (2.0 * draws.uniform() - 1.0)) as f32);
            }
        };
        let mut params = Params::default();
        let mut root = Builder::new(&mut params, &mut initializer, &Device::Cpu);
        let n_inputs = 2 + N_TIME_CHANNELS;
        Ok(Self {
            first: Linear::new(&mut root.at("first"), [n_inputs, N_CHANNELS], Start::Random)?,
            middle: [
                Linear::new(&mut root.at("middle.0"), [N_CHANNELS; 2], Start::Random)?,
                Linear::new(&mut root.at("middle.1"), [N_CHANNELS; 2], Start::Random)?,
            ],
            last: Linear::new(&mut root.at("last"), [N_CHANNELS, 2], Start::Zero)?,
            params,
            cpu,
        })
    }

    /// The noise in `x_t`: `[N, 2]` to `[N, 2]`.
    pub(crate) fn eps_hat(&self, x_t: &Tensor, t: &[f64]) -> p2_nn::Result<Tensor> {
        let tape = Tape::inference(self.cpu);
        Ok(self.record(&tape, x_t, t)?.value().clone())
    }

    fn record(&self, tape: &Tape, x_t: &Tensor, t: &[f64]) -> p2_nn::Result<Node> {
        let time = timestep_embedding(t, N_TIME_CHANNELS);
        let time = Tensor::from_vec(time, (t.len(), N_TIME_CHANNELS), &Device::Cpu)?;
        let x_t = tape.constant(&(x_t * INPUT_SCALE)?);
        let input = concat(&x_t, &tape.constant(&time))?; // [N, 2 + N_TIME_CHANNELS]
        let mut h = silu(&self.first.forward(&input)?)?; // [N, N_CHANNELS]
        for layer in &self.middle {
            h = add(&h, &silu(&layer.forward(&h)?)?)?;
        }
        self.last.forward(&h) // [N, 2]
    }

    /// The network as a sampler sees it.
    pub(crate) fn denoiser(&self, objective: &Objective) -> impl Denoiser {
        move |x_t: &Tensor, t: &[f64]| -> p2_diffusion::Result<Denoised> {
            let eps_hat = self.eps_hat(x_t, t);
            let eps_hat = eps_hat.map_err(|error| p2_diffusion::Error::Caller(error.into()))?;
            let (prediction, variance) = (objective.prediction(), objective.variance());
            let output = NetworkOutput {
                values: &eps_hat,
                prediction,
                variance,
            };
            output.denoised(objective.schedule(), x_t, t)
        }
    }
}

/// Trains a network from scratch.
///
/// Initial weights, points, noise levels and noise are functions of the step: whatever two objectives
/// lead to, the difference is theirs.
pub(crate) fn train(
    objective: &Objective,
    data: &Mixture,
    n_steps: u64,
    cpu: Cpu,
) -> anyhow::Result<Network> {
    let network = Network::new(cpu)?;
    let mut optimizer = AdamW::new(&network.params, cpu)?;
    for step in 0..n_steps {
        let batch = Batch::draw(step, data, objective.schedule())?;
        let x_t = objective
            .schedule()
            .add_noise(&batch.x0, &batch.eps, &batch.t)?; // [N, 2]
        let times: Vec<f64> = batch.t.iter().map(|&t| f64::from(t)).collect();
        let tape = Tape::recording(cpu, Recompute::Nothing);
        let output = network.record(&tape, &x_t, &times)?;
        let leaf = output.leaf()?;
        let loss = objective.loss(&leaf, &batch.x0, &batch.eps, &batch.t)?;
        let gradients = output.backward_from(&leaf, &loss.weighted.mean_all()?)?;
        let gradients = gradients.into_tensors(&network.params)?;
        let step = adamw::Step {
            lr: LR * (1.0 - step as f64 / n_steps as f64),
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            step: step + 1,
            grad_scale: 1.0,
            ema_decay: 0.0,
        };
        optimizer.step(&gradients, step)?;
    }
    Ok(network)
}

/// What one step learns from.
struct Batch {
    x0: Tensor,  // [N, 2]
    eps: Tensor, // [N, 2]
    t: Vec<u32>, // [N]
}

impl Batch {
    fn draw(step: u64, data: &Mixture, schedule: &NoiseSchedule) -> anyhow::Result<Self> {
        let x0 = data.points(BATCH_SIZE, &mut Draws::at(SEED, Stream::Shuffle, step));
        let mut levels = Draws::at(SEED, Stream::Timestep, step);
        let density = TimestepDensity::new(Density::Uniform, schedule)?;
        let t = (0..BATCH_SIZE).map(|_| density.timestep(levels.uniform()));
        Ok(Self {
            x0: Tensor::from_vec(x0, (BATCH_SIZE, 2), &Device::Cpu)?,
            eps: normal(BATCH_SIZE, &mut Draws::at(SEED, Stream::Noise, step))?,
            t: t.collect::<Result<_, _>>()?,
        })
    }
}

/// Standard normal points, `[N, 2]`.
pub(crate) fn normal(n: usize, draws: &mut Draws) -> anyhow::Result<Tensor> {
    let mut values = vec![0.0; 2 * n];
    draws.fill_normal(&mut values);
    Ok(Tensor::from_vec(values, (n, 2), &Device::Cpu)?)
}
