//! A weighting of one's own: any function of the noise level, here a window on the content stage.
//!
//! ```sh
//! cargo run --release --example custom_weighting
//! ```
//!
//! Trains the small network of the preset `smoke` on the bundled images for a few steps, with the library
//! alone, and prints its error on the noise in each stage.
#![expect(clippy::print_stdout, reason = "an example speaks to its user")]

use std::num::NonZeroUsize;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use p2::config::{Base, Override, resolve};
use p2::data::{Batch, Dataset, Loader, LoaderOptions};
use p2::model::{Condition, Model, Noised};
use p2::rng::{Draws, Stream};
use p2_diffusion::{Density, NoiseLevel, Objective, Stage, TimestepDensity};
use p2_nn::{AdamW, Recompute, Tape, adamw};

const N_STEPS: u64 = 24;
const BATCH_SIZE: usize = 16;
/// Steps between two lines of output.
const REPORT_EVERY: u64 = 6;

/// The weight on the squared error of the noise: a bell over log-SNR, highest where content is decided.
fn weight_eps(level: NoiseLevel) -> f64 {
    let middle = 0.5 * (1.0f64.ln() + 1e-2f64.ln()); // between the SNRs of the stage, 1 and 1e-2
    let width = 1.5;
    (-0.5 * ((level.log_snr() - middle) / width).powi(2)).exp()
}

fn main() -> anyhow::Result<()> {
    p2::engine::with_threads(None, |cpu| {
        // A quarter of the pixels, so that it takes seconds.
        let small = Override::set("data.image_size=16");
        let run = resolve(&Base::Preset("smoke".into()), &[small])?;
        let model = Model::new(&run, cpu)?;
        let (schedule, prediction) = (model.schedule(), model.prediction());
        let objective =
            Objective::with_weight_eps(schedule, prediction, model.variance(), weight_eps)?;
        let mut loader = load(&run.data)?;
        let mut optimizer = AdamW::new(model.params(), cpu)?;
        let mut errors = StageErrors::default();
        println!("images  clean-up  content   coarse    (mean squared error on the noise)");
        while let Some(batch) = loader.next_batch()? {
            let step = batch.first_image_idx / BATCH_SIZE as u64 + 1;
            let gradients = gradients(&model, &objective, &batch, &mut errors)?;
            optimizer.step(&gradients, adamw_step(step))?;
            if step.is_multiple_of(REPORT_EVERY) {
                let n_images = step * BATCH_SIZE as u64;
                println!("{n_images:<6}  {}", std::mem::take(&mut errors).means());
            }
        }
        Ok(())
    })
}

/// Starts loading the images of a configuration.
fn load(settings: &p2::config::section::Data) -> anyhow::Result<Loader> {
    let dataset = Arc::new(Dataset::open(settings)?);
    let options = LoaderOptions {
        seed: 0,
        first_image_idx: 0,
        batch_size: NonZeroUsize::try_from(BATCH_SIZE)?,
        total_images: N_STEPS * BATCH_SIZE as u64,
        n_workers: NonZeroUsize::MIN,
    };
    Loader::new(&dataset, &options)
}

/// The gradients of a batch in the order of the parameters; its errors are added to `errors`.
fn gradients(
    model: &Model,
    objective: &Objective,
    batch: &Batch,
    errors: &mut StageErrors,
) -> anyhow::Result<Vec<Tensor>> {
    let (n, size) = (batch.n_images(), model.image_size());
    let x0 = Tensor::from_slice(&batch.pixels, (n, size, size, 3), &Device::Cpu)?; // [N, H, W, 3]
    let mut noise = vec![0.0; batch.pixels.len()];
    Draws::at(0, Stream::Noise, batch.first_image_idx).fill_normal(&mut noise);
    let eps = Tensor::from_vec(noise, x0.shape(), &Device::Cpu)?;
    let mut draws = Draws::at(0, Stream::Timestep, batch.first_image_idx);
    let density = TimestepDensity::new(Density::Uniform, model.schedule())?;
    let t = (0..n).map(|_| density.timestep(draws.uniform()));
    let t: Vec<u32> = t.collect::<Result<_, _>>()?;

    let x_t = model.schedule().add_noise(&x0, &eps, &t)?;
    let times: Vec<f64> = t.iter().map(|&t| f64::from(t)).collect();
    let noised = Noised {
        x_t: &x_t,
        t: &times,
        condition: Condition::of_classes(&batch.labels),
    };
    let tape = Tape::recording(model.cpu(), Recompute::Nothing);
    let output = model.record(&tape, noised, None)?;
    let leaf = output.leaf()?;
    let loss = objective.loss(&leaf, &x0, &eps, &t)?;
    let gradients = output.backward_from(&leaf, &loss.weighted.mean_all()?)?;

    for (&t, mse_eps) in t.iter().zip(loss.mse_eps.to_vec1::<f32>()?) {
        let level = NoiseLevel::from_log_snr(model.schedule().log_snr()[t as usize]);
        errors.add(Stage::of(level), mse_eps);
    }
    Ok(gradients.into_tensors(model.params())?)
}

fn adamw_step(step: u64) -> adamw::Step {
    adamw::Step {
        lr: 2e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step,
        grad_scale: 1.0,
        ema_decay: 0.0,
    }
}

/// Sums and counts of the errors in each stage.
#[derive(Debug, Default)]
struct StageErrors {
    sums: [f64; 3],
    n_images: [u32; 3],
}

impl StageErrors {
    fn add(&mut self, stage: Stage, mse_eps: f32) {
        for (i, _) in Stage::ALL
            .iter()
            .enumerate()
            .filter(|&(_, &other)| other == stage)
        {
            self.sums[i] += f64::from(mse_eps);
            self.n_images[i] += 1;
        }
    }

    /// Columns of the table, one per stage.
    fn means(&self) -> String {
        let means = self.sums.iter().zip(self.n_images);
        let columns = means.map(|(sum, n)| format!("{:<8.5}", sum / f64::from(n)));
        columns.collect::<Vec<_>>().join("  ")
    }
}
