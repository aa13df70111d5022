//! Training a classifier of noised images.

mod held_out;
mod run;
mod watch;

use std::time::Instant;

use candle_core::Tensor;
use p2_nn::{AdamW, Cpu, Tape};

pub use run::{ClassifierOutcome, ClassifierSetup, train_classifier};
use watch::Watch;

use super::gradients::{Gradients, adamw_step, check_loss};
use super::noise::normal_images;
use super::{Clock, Limits, learning_rate, tensors, values};
use crate::checkpoint::{Found, StoredTensors, TensorFile};
use crate::classifier::file::WEIGHTS;
use crate::classifier::{Classifier, cross_entropy, ranks};
use crate::config::{ClassifierRun, Configuration as _};
use crate::data::{Batch, Loader};
use crate::fault;
use crate::model::{file::load_params, recompute};
use crate::rng::{Draws, Stream};

/// A classifier's run in memory.
struct Trainer {
    run: ClassifierRun,
    classifier: Classifier,
    optimizer: AdamW,
    clock: Clock,
}

/// What a step tells those who watch.
struct StepReport {
    /// Noise levels, `[N]`.
    t: Vec<u32>,
    /// Cross-entropy in nats, `[N]`.
    losses: Vec<f32>,
    /// Classes with a higher score than the right one, `[N]`.
    ranks: Vec<usize>,
    /// Global L2 norm of the gradients, before clipping.
    grad_norm: f64,
    lr: f64,
    /// How long the step took, waiting for its images included.
    seconds: f64,
}

impl Trainer {
    /// A run at its beginning, or about to be restored to where `clock` stands.
    fn new(run: ClassifierRun, clock: Clock, cpu: Cpu) -> anyhow::Result<Self> {
        let classifier = Classifier::new(&run, cpu)?;
        Ok(Self {
            optimizer: AdamW::new(classifier.params(), cpu)?,
            classifier,
            run,
            clock,
        })
    }

    /// Trains until the run, a limit or a signal ends it.
    fn run(
        &mut self,
        loader: &mut Loader,
        watch: &mut Watch<'_>,
        limits: &Limits,
    ) -> anyhow::Result<()> {
        while !limits.reached(&self.clock, watch.finishing_secs()) {
            let started = Instant::now();
            let Some(batch) = loader.next_batch()? else {
                break;
            };
            fault::point("train.step");
            let mut report = self.step(&batch)?;
            report.seconds = started.elapsed().as_secs_f64();
            watch.after_step(self, &report)?;
        }
        Ok(())
    }

    /// One optimizer step on a batch, whose gradient is summed over micro-batches.
    fn step(&mut self, batch: &Batch) -> anyhow::Result<StepReport> {
        let mut gradients = Gradients::zero(self.classifier.params());
        let mut report = StepReport::empty();
        let (n, step) = (batch.n_images(), self.clock.step + 1);
        for first in (0..n).step_by(self.run.train.micro_batch_size) {
            let n_part = self.run.train.micro_batch_size.min(n - first);
            let (labels, files) = (
                &batch.labels[first..first + n_part],
                &batch.files[first..first + n_part],
            );
            let (x_t, t) = self.noised(batch, first, n_part)?;
            let times: Vec<f64> = t.iter().copied().map(f64::from).collect();
            let tape = Tape::recording(self.classifier.cpu(), recompute(self.run.train.recompute));
            let scores = self.classifier.record(&tape.constant(&x_t), &times)?;
            let leaf = scores.leaf()?;
            let losses = cross_entropy(&leaf, labels)?;
            let log_snr = self.classifier.schedule().log_snr();
            check_loss(&losses, (&t, &times), log_snr, files, step)?;
            let mean = (losses.sum_all()? / n as f64)?;
            gradients.add(scores.backward_from(&leaf, &mean)?)?;
            report.losses.extend(values(&losses)?);
            report.ranks.extend(ranks(scores.value(), labels)?);
            report.t.extend(t);
        }
        let times: Vec<f64> = report.t.iter().copied().map(f64::from).collect();
        report.grad_norm = gradients.checked_norm(&times, &batch.files, step)?;
        let (optim, seen) = (&self.run.optim, self.clock.images_seen);
        report.lr = learning_rate::at(optim, self.run.pace(), seen);
        let step = adamw_step(optim, report.lr, report.grad_norm, step);
        self.optimizer.step(gradients.tensors(), step)?;
        self.clock.advance(n);
        Ok(report)
    }

    /// Images of a batch from `first` on with noise on them, each of any level alike, and the levels.
    fn noised(&self, batch: &Batch, first: usize, n: usize) -> anyhow::Result<(Tensor, Vec<u32>)> {
        let (seed, size) = (self.run.train.seed, self.classifier.image_size());
        let pixels = batch.pixels_of(first, n);
        let x0 = Tensor::from_slice(pixels, (n, size, size, 3), &candle_core::Device::Cpu)?;
        if !self.classifier.is_noised() {
            return Ok((x0, vec![0; n]));
        }
        let image_idx = |i: usize| batch.first_image_idx + (first + i) as u64;
        let n_timesteps = self.classifier.schedule().n_timesteps() as u64;
        let level = |i| Draws::at(seed, Stream::Timestep, image_idx(i)).below(n_timesteps) as u32;
        let t: Vec<u32> = (0..n).map(level).collect();
        let eps = normal_images(n, size, |i| Draws::at(seed, Stream::Noise, image_idx(i)))?;
        Ok((self.classifier.schedule().add_noise(&x0, &eps, &t)?, t))
    }

    fn is_finished(&self) -> bool {
        self.clock.images_seen >= self.run.train.total_images.0
    }

    /// Everything that a run needs to go on.
    fn tensor_files(&self) -> anyhow::Result<Vec<TensorFile<'static>>> {
        let params = self.classifier.params();
        tensors::check_finite(params, &self.optimizer)?;
        Ok(vec![
            tensors::weights(WEIGHTS, &self.run.to_metadata()?, params)?,
            tensors::moments(params, &self.optimizer)?,
        ])
    }

    /// Takes up a run where a checkpoint left it.
    fn restore(&mut self, found: &Found) -> anyhow::Result<()> {
        let open = |name: &str| StoredTensors::open(&found.path.join(name));
        let (weights, moments) = (open(WEIGHTS)?, open(tensors::OPTIMIZER)?);
        load_params(self.classifier.params(), &weights, "")?;
        // A classifier is not averaged: its averages are its weights.
        let params = self.classifier.params().clone();
        tensors::restore(&params, &mut self.optimizer, &moments, &weights)
    }
}

impl StepReport {
    fn empty() -> Self {
        Self {
            t: Vec::new(),
            losses: Vec::new(),
            ranks: Vec::new(),
            grad_norm: 0.0,
            lr: 0.0,
            seconds: 0.0,
        }
    }
}
