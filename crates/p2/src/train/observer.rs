//! Those who watch a run: records, curves, progress, held-out losses, pictures, checkpoints.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use p2_diffusion::{Objective, Stage};
use serde_json::{Map, Value, json};

use super::held_out::{self, StageErrors};
use super::linear_denoiser::Fitting;
use super::{Clock, Interval, StepReport, Trainer};
use crate::checkpoint::{self, Position, Retention};
use crate::data::Dataset;
use crate::model::Model;
use crate::monitor::progress::{Progress, Readings};
use crate::monitor::records::Records;
use crate::print::Printer;
use crate::run_dir::RunDir;
use crate::signal::Stop;

/// Watches a run.
pub(crate) struct Observer<'a> {
    pub(super) printer: &'a Printer,
    pub(super) run_dir: &'a RunDir,
    pub(super) dataset: Arc<Dataset>,
    /// A second network that holds the averaged weights when they are looked at.
    pub(super) averaged: Model,
    /// What held-out losses are computed with.
    pub(super) objective: Objective,
    /// `None` if there are no held-out losses.
    pub(super) linear: Option<Fitting>,
    pub(super) records: Records,
    pub(super) progress: Progress,
    pub(super) interval: Means,
    pub(super) n_skipped: usize,
    /// Ends what can be left out when the user wants to stop.
    pub(super) stop: Stop,
    /// Seconds that a training image took in the last step.
    pub(super) image_secs: f64,
    /// Seconds that the last held-out loss and pictures took, once known.
    pub(super) held_out_secs: Option<f64>,
    pub(super) grid_secs: Option<f64>,
    pub(super) held_out: Option<StageErrors>,
    /// Where the newest checkpoint stands.
    pub(super) saved_at: Option<u64>,
}

/// Sums over the images of an interval.
#[derive(Debug)]
pub(super) struct Means {
    seconds: f64,
    n_images: u64,
    n_steps: u64,
    weighted: f64,
    vb: f64,
    grad_norm: f64,
    /// Per stage, in the order of [`Stage::ALL`]: images and their unweighted errors.
    stages: [(u64, f64); 3],
}

impl Means {
    pub(super) fn new() -> Self {
        Self {
            seconds: 0.0,
            n_images: 0,
            n_steps: 0,
            weighted: 0.0,
            vb: 0.0,
            grad_norm: 0.0,
            stages: [(0, 0.0); 3],
        }
    }

    fn add(&mut self, report: &StepReport, stage_of: impl Fn(u32) -> usize) {
        self.n_images += report.t.len() as u64;
        self.n_steps += 1;
        self.seconds += report.seconds;
        let sum = |values: &[f32]| values.iter().copied().map(f64::from).sum::<f64>();
        self.weighted += match &report.importance {
            None => sum(&report.weighted),
            Some(factors) => {
                let losses = report.weighted.iter().copied().map(f64::from);
                losses
                    .zip(factors)
                    .map(|(loss, factor)| loss * factor)
                    .sum()
            }
        };
        self.vb += report.vb.as_deref().map_or(0.0, sum);
        self.grad_norm += report.grad_norm;
        for (&t, &mse_eps) in report.t.iter().zip(&report.mse_eps) {
            let (n_images, error) = &mut self.stages[stage_of(t)];
            *n_images += 1;
            *error += f64::from(mse_eps);
        }
    }

    fn stage(&self, stage: usize) -> Option<f64> {
        let (n_images, error) = self.stages[stage];
        (n_images > 0).then(|| error / n_images as f64)
    }

    fn readings(&self) -> Readings {
        Readings {
            weighted: self.weighted / self.n_images as f64,
            clean_up: self.stage(0),
            content: self.stage(1),
            coarse: self.stage(2),
        }
    }

    /// The record of the interval. Weighted and unweighted losses have different names.
    fn record(&self, report: &StepReport) -> Map<String, Value> {
        let n_images = self.n_images as f64;
        let mse_eps = self.stages.iter().map(|(_, error)| error).sum::<f64>() / n_images;
        let mut record = Map::new();
        let mut put = |name: &str, value: f64| record.insert(name.to_owned(), json!(value));
        put("loss/weighted", self.weighted / n_images);
        put("loss/mse_eps", mse_eps);
        for (stage, name) in STAGE_NAMES.iter().enumerate() {
            if let Some(error) = self.stage(stage) {
                put(&format!("loss/mse_eps_{name}"), error);
            }
        }
        if report.vb.is_some() {
            put("loss/vb", self.vb / n_images);
        }
        put("optim/grad_norm", self.grad_norm / self.n_steps as f64);
        put("optim/lr", report.lr);
        put("speed/images_per_second", n_images / self.seconds);
        record
    }
}

/// In the order of [`Stage::ALL`].
pub(super) const STAGE_NAMES: [&str; 3] = ["clean_up", "content", "coarse"];

/// An error if the user wants to stop.
pub(super) fn go_on(stop: &Stop) -> anyhow::Result<()> {
    anyhow::ensure!(stop.requested().is_none(), "stopped");
    Ok(())
}

impl Observer<'_> {
    /// Seconds to keep free before a deadline for the last held-out loss and pictures: as long as
    /// the last ones took, or guessed from the speed of training, whose backward pass takes twice
    /// the time of the forward pass.
    pub(super) fn finishing_secs(&self, trainer: &Trainer) -> f64 {
        let forward_secs = self.image_secs / 3.0;
        let (train, sample) = (&trainer.run.train, &trainer.run.sample);
        let mut seconds = 0.0;
        if let Some(linear) = &self.linear {
            seconds += linear.secs_left();
            let n_forward = 3 * held_out::n_images(&self.dataset);
            seconds += self
                .held_out_secs
                .unwrap_or(forward_secs * n_forward as f64);
        }
        if train.sample_every.0 > 0 {
            let n_forward = sample.n_images * sample.n_steps;
            seconds += self.grid_secs.unwrap_or(forward_secs * n_forward as f64);
        }
        seconds
    }

    /// Notes a step, and does what has come due.
    pub(super) fn after_step(
        &mut self,
        trainer: &Trainer,
        report: &StepReport,
    ) -> anyhow::Result<()> {
        let train = &trainer.run.train;
        let clock = trainer.clock;
        let schedule = trainer.objective.schedule();
        self.interval.add(report, |t| {
            let stages = Stage::ALL
                .iter()
                .position(|stage| stage.timesteps(schedule).contains(&t));
            stages.unwrap_or(0)
        });
        self.image_secs = report.seconds / report.t.len() as f64;
        self.progress.advance(clock.images_seen);
        self.tell_skipped();
        if clock.passed(Interval(train.log_every.0)) {
            self.log(clock, report)?;
        }
        if clock.passed(Interval(train.held_out_every.0)) {
            self.evaluate(trainer)?;
        }
        if clock.passed(Interval(train.sample_every.0)) {
            self.draw_grid(trainer)?;
        }
        if clock.passed(Interval(train.checkpoint_every.0)) {
            self.save(trainer)?;
        }
        Ok(())
    }

    /// Names and counts files that turned out to be unusable since the last time.
    pub(super) fn tell_skipped(&mut self) {
        let skipped = self.dataset.skipped();
        if skipped.len() == self.n_skipped {
            return;
        }
        for file in &skipped[self.n_skipped..] {
            self.printer
                .warn(format_args!("skipped {}: {}", file.file, file.reason));
        }
        self.n_skipped = skipped.len();
        self.printer
            .warn(format_args!("{} files skipped so far", self.n_skipped));
    }

    fn log(&mut self, clock: Clock, report: &StepReport) -> anyhow::Result<()> {
        let record = self.interval.record(report);
        self.progress
            .report(clock.images_seen, self.interval.readings().line());
        self.interval = Means::new();
        self.records.write(clock, record)
    }

    /// Held-out losses of the averaged weights, beside the best linear denoiser of single pixels.
    pub(super) fn evaluate(&mut self, trainer: &Trainer) -> anyhow::Result<()> {
        if self.linear.is_none() {
            return Ok(());
        }
        let started = Instant::now();
        self.average(trainer)?;
        let (errors, linear) = match self.held_out_and_linear(trainer) {
            Err(_) if self.stop.requested().is_some() => return Ok(()),
            errors => errors?,
        };
        self.printer.note(format_args!(
            "held-out error on the noise at {} images (best linear denoiser of single pixels): \
             clean-up {:.4} ({:.4}), content {:.4} ({:.4}), coarse {:.5} ({:.5})",
            trainer.clock.images_seen,
            errors.clean_up,
            linear.clean_up,
            errors.content,
            linear.content,
            errors.coarse,
            linear.coarse,
        ));
        let mut record = Map::new();
        for (group, errors) in [("held_out", errors), ("linear_denoiser", linear)] {
            for (name, value) in
                STAGE_NAMES
                    .iter()
                    .zip([errors.clean_up, errors.content, errors.coarse])
            {
                record.insert(format!("{group}/mse_eps_{name}"), json!(value));
            }
        }
        self.held_out = Some(errors);
        self.held_out_secs = Some(started.elapsed().as_secs_f64());
        self.records.write(trainer.clock, record)
    }

    /// The held-out errors of the averaged weights and of the best linear denoiser.
    fn held_out_and_linear(
        &mut self,
        trainer: &Trainer,
    ) -> anyhow::Result<(StageErrors, StageErrors)> {
        let stop = self.stop.clone();
        let go_on = || go_on(&stop);
        let errors = held_out::evaluate(
            (&self.averaged, &self.objective),
            &self.dataset,
            trainer.run.train.micro_batch_size,
            &go_on,
        )?;
        let linear = self.linear.as_mut().context("nothing is held out")?;
        let (linear, schedule) = (linear.wait(&go_on)?, self.averaged.schedule());
        let linear = StageErrors::try_new(|stage| Ok(linear.mse_eps(schedule, stage)))?;
        Ok((errors, linear))
    }

    /// Copies the averaged weights into the network that is looked at.
    pub(super) fn average(&self, trainer: &Trainer) -> anyhow::Result<()> {
        for (param, state) in self
            .averaged
            .params()
            .iter()
            .zip(trainer.optimizer.states())
        {
            param.set_values(&state.ema)?;
        }
        Ok(())
    }

    /// Saves a checkpoint.
    pub(super) fn save(&mut self, trainer: &Trainer) -> anyhow::Result<()> {
        self.records.sync()?;
        let Clock {
            images_seen, step, ..
        } = trainer.clock;
        let train = &trainer.run.train;
        let retention = Retention {
            keep_last: train.keep_last,
            keep_every: train.keep_every.0,
        };
        let path = checkpoint::save(
            &self.run_dir.checkpoints(),
            Position { images_seen, step },
            &trainer.tensor_files()?,
            retention,
        )
        .context("cannot save a checkpoint")?;
        self.printer
            .detail(format_args!("checkpoint: {}", path.display()));
        self.saved_at = Some(images_seen);
        Ok(())
    }
}
