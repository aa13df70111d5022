//! Measures how fast this machine trains and draws, on random pixels.

mod gemm_peak;
mod ops;
mod peak_memory;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use p2_nn::Cpu;
use serde::Serialize;

pub use ops::OpTime;

use crate::config::Run;
use crate::data::Batch;
use crate::model::{Condition, Model, Noised};
use crate::rng::{Draws, Stream};
use crate::sample::{SampleOptions, draw};
use crate::train::{Clock, Trainer};

/// Steps before the timed ones: memory is taken, caches are filled.
pub const N_WARM_UP: usize = 2;

/// What was measured on one machine with one network.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The version of p2.
    pub version: &'static str,
    /// The instruction set of the kernels.
    pub isa: &'static str,
    /// Threads that computed.
    pub n_threads: usize,
    /// Numbers in the network.
    pub n_parameters: usize,
    /// Height and width of an image.
    pub image_size: usize,
    /// Images computed at once.
    pub batch_size: usize,
    /// The most memory that the process had resident up to the end of the timed steps; `None` where
    /// the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// The fastest large matrix product of p2's own kernels, in 10^9 flop per second.
    pub gemm_peak_gflops: f64,
    /// Multiply-adds of one image's forward pass by the direct algorithm.
    pub multiply_adds_per_image: u64,
    /// Full training steps.
    #[serde(flatten)]
    pub training: Option<Training>,
    /// Drawing images.
    #[serde(flatten)]
    pub sampling: Option<Sampling>,
}

/// Full training steps: pixels, noise, forward, loss, backward, AdamW and average.
#[derive(Debug, Serialize)]
pub struct Training {
    /// By the median step.
    pub train_images_per_second: f64,
    /// Every timed step.
    pub step_seconds: Vec<f64>,
    /// By the median forward pass, without gradients.
    pub forward_images_per_second: f64,
    /// Every timed forward pass.
    pub forward_seconds: Vec<f64>,
    /// Flops of the median step over those of the same time at the GEMM peak.
    ///
    /// Flops are twice the multiply-adds of the direct algorithm, and a step counts as three forward
    /// passes. Faster algorithms compute fewer, so the share may be above 1.
    pub train_share_of_gemm_peak: f64,
    /// Where the time of one more step went.
    pub ops: Vec<OpTime>,
}

/// Drawing images from noise, as `[sample]` says.
#[derive(Debug, Serialize)]
pub struct Sampling {
    /// By the median drawing.
    pub sampling_images_per_second: f64,
    /// Every timed drawing of all images.
    pub draw_seconds: Vec<f64>,
    /// Images of one drawing.
    pub n_images: usize,
    /// Network evaluations per image.
    pub n_sampling_steps: usize,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Training steps and forward passes.
    Training,
    /// Drawing images, in a process that never trains, so that memory is that of drawing alone.
    Sampling,
}

/// Measures a run's network with steps of `run.train.batch_size` images.
///
/// # Errors
/// If the sizes of the network do not fit together, or a loss is not finite.
pub fn measure(run: Run, task: Task, n_steps: NonZeroUsize, cpu: Cpu) -> anyhow::Result<Report> {
    let batch_size = run.train.batch_size;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        isa: cpu.isa.name(),
        n_threads: cpu.threads.count(),
        n_parameters: 0,
        image_size: run.data.image_size,
        batch_size,
        peak_memory_bytes: None,
        gemm_peak_gflops: 0.0,
        multiply_adds_per_image: 0,
        training: None,
        sampling: None,
    };
    match task {
        Task::Training => {
            let mut trainer = Trainer::new(run, Clock::at(0, 0), cpu)?;
            report.describe(trainer.model());
            let step_seconds = repeat(n_steps, || train_step(&mut trainer, batch_size))?;
            report.peak_memory_bytes = peak_memory::read();
            let ops = ops::of_one(&mut trainer, |trainer| train_step(trainer, batch_size))?;
            let forward_seconds = repeat(n_steps, || forward(trainer.model(), batch_size))?;
            report.gemm_peak_gflops = gemm_peak::gflops(cpu);
            report.training = Some(report.training(step_seconds, forward_seconds, ops));
        }
        Task::Sampling => {
            let model = Model::new(&run, cpu)?;
            report.describe(&model);
            report.sampling = Some(sampling(&run, &model, n_steps)?);
            report.peak_memory_bytes = peak_memory::read();
            report.gemm_peak_gflops = gemm_peak::gflops(cpu);
        }
    }
    Ok(report)
}

/// The most memory that training will have resident, in bytes; `None` where the system does not tell.
///
/// Takes steps of a quarter and of half the images, on random pixels, and goes on along the line through
/// their peaks: what a step keeps grows with its images.
///
/// # Errors
/// As for [`measure`].
pub fn expected_peak_memory(run: &Run, cpu: Cpu) -> anyhow::Result<Option<u64>> {
    let n_images = run.train.micro_batch_size;
    let few = [n_images.div_ceil(4), n_images.div_ceil(2).max(2)].map(|n| n.min(n_images));
    let mut trainer = Trainer::new(run.clone(), Clock::at(0, 0), cpu)?;
    let mut peaks = [0; 2];
    for (peak, n) in peaks.iter_mut().zip(few) {
        train_step(&mut trainer, n)?;
        match peak_memory::read() {
            Some(bytes) => *peak = bytes,
            None => return Ok(None),
        }
    }
    let [first, second] = peaks;
    let per_image = (second - first) / (few[1] - few[0]).max(1) as u64;
    Ok(Some(second + (n_images - few[1]) as u64 * per_image))
}

impl Report {
    fn describe(&mut self, model: &Model) {
        self.n_parameters = model.params().n_elements();
        self.multiply_adds_per_image = model.multiply_adds().total();
    }

    fn training(
        &self,
        step_seconds: Vec<f64>,
        forward_seconds: Vec<f64>,
        ops: Vec<OpTime>,
    ) -> Training {
        let n = self.batch_size as f64;
        let step = median(&step_seconds);
        let step_gflop = 2.0 * 3.0 * n * self.multiply_adds_per_image as f64 / 1e9;
        Training {
            train_images_per_second: n / step,
            forward_images_per_second: n / median(&forward_seconds),
            train_share_of_gemm_peak: step_gflop / step / self.gemm_peak_gflops,
            step_seconds,
            forward_seconds,
            ops,
        }
    }
}

/// Runs `f` for warming up, then times it `n` times.
fn repeat(n: NonZeroUsize, mut f: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    for _ in 0..N_WARM_UP {
        f()?;
    }
    (0..n.get()).map(|_| timed(&mut f)).collect()
}

fn timed(f: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let started = Instant::now();
    f()?;
    Ok(started.elapsed().as_secs_f64())
}

fn train_step(trainer: &mut Trainer, batch_size: usize) -> anyhow::Result<()> {
    let batch = random_batch(
        trainer.images_seen(),
        batch_size,
        trainer.model().image_size(),
    );
    trainer.step(&batch).map(|_| ())
}

/// One evaluation of the network on images that are drawn first, as in a step.
fn forward(model: &Model, batch_size: usize) -> anyhow::Result<()> {
    let x_t = random_images(model, batch_size)?;
    let low_res = model.low_res(&x_t)?;
    let noised = Noised {
        x_t: &x_t,
        t: &vec![500.min(model.schedule().n_timesteps() - 1) as f64; batch_size],
        condition: Condition {
            labels: &vec![0; batch_size],
            low_res: low_res.as_ref(),
        },
    };
    model.predict(noised).map(|_| ())
}

/// Images of uniform noise, `[N, H, W, 3]`.
fn random_images(model: &Model, n: usize) -> anyhow::Result<Tensor> {
    let size = model.image_size();
    let pixels = random_batch(0, n, size).pixels;
    Ok(Tensor::from_vec(pixels, (n, size, size, 3), &Device::Cpu)?)
}

/// Images for a super-resolution model to enlarge.
fn low_res(model: &Model, n: usize) -> anyhow::Result<Option<Tensor>> {
    match model.low_res_size() {
        None => Ok(None),
        Some(_) => model.low_res(&random_images(model, n)?),
    }
}

/// Images of uniform noise, a function of their place in the run.
fn random_batch(first_image_idx: u64, batch_size: usize, size: usize) -> Batch {
    let n_pixels = size * size * 3;
    let mut pixels = vec![0.0; batch_size * n_pixels];
    for (image, pixels) in pixels.chunks_exact_mut(n_pixels).enumerate() {
        let mut draws = Draws::at(0, Stream::Bench, first_image_idx + image as u64);
        pixels.fill_with(|| (2.0 * draws.uniform() - 1.0) as f32);
    }
    Batch {
        first_image_idx,
        pixels,
        labels: vec![0; batch_size],
        files: vec![Arc::from("random pixels"); batch_size],
    }
}

fn sampling(run: &Run, model: &Model, n_steps: NonZeroUsize) -> anyhow::Result<Sampling> {
    let n_images = run.sample.n_images;
    let options = SampleOptions::of(&run.sample);
    let draw_all = |options: &SampleOptions<'_>| -> anyhow::Result<()> {
        for first in (0..n_images).step_by(run.train.batch_size) {
            let images = first..(first + run.train.batch_size).min(n_images);
            let low_res = low_res(model, images.len())?;
            let condition = Condition {
                labels: &vec![0; images.len()],
                low_res: low_res.as_ref(),
            };
            let images = images.start as u64..images.end as u64;
            draw(model, images, condition, options, || Ok(()))?;
        }
        Ok(())
    };
    draw_all(&SampleOptions {
        n_steps: N_WARM_UP.min(options.n_steps),
        ..options
    })?;
    let draw_seconds = (0..n_steps.get())
        .map(|_| timed(|| draw_all(&options)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Sampling {
        sampling_images_per_second: n_images as f64 / median(&draw_seconds),
        draw_seconds,
        n_images,
        n_sampling_steps: options.n_steps,
    })
}

/// The middle of some times, or the mean of the two in the middle.
pub fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        Some(value) if sorted.len() % 2 == 1 => *value,
        Some(value) => 0.5 * (value + sorted[middle - 1]),
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[1.0]), 1.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn random_images_depend_on_their_place_alone() {
        let (pair, second) = (random_batch(7, 2, 4), random_batch(8, 1, 4));
        assert_eq!(pair.pixels[48..], second.pixels);
        assert_ne!(pair.pixels[..48], second.pixels);
        assert!(pair.pixels.iter().all(|pixel| (-1.0..1.0).contains(pixel)));
    }
}
