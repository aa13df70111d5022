//! Those who watch a classifier's run: records, curves, progress, held-out accuracies, checkpoints.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use p2_diffusion::Stage;
use serde_json::{Map, Value, json};

use super::held_out::{HeldOut, evaluate};
use super::{StepReport, Trainer};
use crate::checkpoint::{self, Position, Retention};
use crate::data::{Dataset, Split};
use crate::monitor::progress::Progress;
use crate::monitor::records::Records;
use crate::print::Printer;
use crate::run_dir::RunDir;
use crate::signal::Stop;
use crate::train::observer::{STAGE_NAMES, go_on};
use crate::train::{Interval, held_out};

/// Watches a classifier's run.
pub(super) struct Watch<'a> {
    pub(super) printer: &'a Printer,
    pub(super) run_dir: &'a RunDir,
    pub(super) dataset: Arc<Dataset>,
    pub(super) records: Records,
    pub(super) progress: Progress,
    pub(super) sums: Sums,
    /// Ends what can be left out when the user wants to stop.
    pub(super) stop: Stop,
    /// Seconds that a training image took in the last step, and that the last held-out accuracies took.
    pub(super) image_secs: f64,
    pub(super) held_out_secs: Option<f64>,
    /// The last held-out accuracies, per stage; of a classifier of clean images all are the same.
    pub(super) held_out: Option<[HeldOut; 3]>,
    /// Where the newest checkpoint stands.
    pub(super) saved_at: Option<u64>,
    pub(super) is_measured: bool,
}

/// Sums over the images of an interval.
#[derive(Default)]
pub(super) struct Sums {
    seconds: f64,
    n_images: u64,
    n_steps: u64,
    loss: f64,
    n_first: u64,
    n_five: u64,
    grad_norm: f64,
    /// Per stage, in the order of [`Stage::ALL`]: images, and those whose class had the highest score.
    stages: [(u64, u64); 3],
}

impl Sums {
    fn add(&mut self, report: &StepReport, stage_of: impl Fn(u32) -> usize) {
        self.seconds += report.seconds;
        self.n_images += report.t.len() as u64;
        self.n_steps += 1;
        self.loss += report.losses.iter().copied().map(f64::from).sum::<f64>();
        self.grad_norm += report.grad_norm;
        for (&t, &rank) in report.t.iter().zip(&report.ranks) {
            let is_first = u64::from(rank == 0);
            self.n_first += is_first;
            self.n_five += u64::from(rank < 5);
            let (n_images, n_first) = &mut self.stages[stage_of(t)];
            *n_images += 1;
            *n_first += is_first;
        }
    }

    fn line(&self) -> String {
        let n = self.n_images as f64;
        let (loss, accuracy) = (self.loss / n, self.n_first as f64 / n);
        format!("loss {loss:.4}  accuracy {accuracy:.3}")
    }

    fn record(&self, lr: f64) -> Map<String, Value> {
        let n = self.n_images as f64;
        let mut record = Map::new();
        let mut put = |name: &str, value: f64| record.insert(name.to_owned(), json!(value));
        put("loss/cross_entropy", self.loss / n);
        put("accuracy/first", self.n_first as f64 / n);
        put("accuracy/five", self.n_five as f64 / n);
        for (name, (n_images, n_first)) in STAGE_NAMES.iter().zip(self.stages) {
            if n_images > 0 {
                put(
                    &format!("accuracy/first_{name}"),
                    n_first as f64 / n_images as f64,
                );
            }
        }
        put("optim/grad_norm", self.grad_norm / self.n_steps as f64);
        put("optim/lr", lr);
        put("speed/images_per_second", n / self.seconds);
        record
    }
}

impl Watch<'_> {
    /// Seconds to keep free before a deadline for the last held-out accuracies.
    pub(super) fn finishing_secs(&self) -> f64 {
        if !self.is_measured {
            return 0.0;
        }
        // The forward pass takes a third of a step; each image is seen once per stage.
        let n_forward = 3 * held_out::n_images(&self.dataset);
        self.held_out_secs
            .unwrap_or(self.image_secs / 3.0 * n_forward as f64)
    }

    /// Notes a step, and does what has come due.
    pub(super) fn after_step(
        &mut self,
        trainer: &Trainer,
        report: &StepReport,
    ) -> anyhow::Result<()> {
        let (train, clock) = (&trainer.run.train, trainer.clock);
        let schedule = trainer.classifier.schedule();
        self.sums.add(report, |t| {
            let stage = Stage::ALL
                .iter()
                .position(|stage| stage.timesteps(schedule).contains(&t));
            stage.unwrap_or(0)
        });
        self.image_secs = report.seconds / report.t.len() as f64;
        self.progress.advance(clock.images_seen);
        if clock.passed(Interval(train.log_every.0)) {
            self.progress.report(clock.images_seen, self.sums.line());
            self.records.write(clock, self.sums.record(report.lr))?;
            self.sums = Sums::default();
        }
        if clock.passed(Interval(train.held_out_every.0)) {
            self.evaluate(trainer)?;
        }
        if clock.passed(Interval(train.checkpoint_every.0)) {
            self.save(trainer)?;
        }
        Ok(())
    }

    /// Accuracies on held-out images, per stage.
    pub(super) fn evaluate(&mut self, trainer: &Trainer) -> anyhow::Result<()> {
        if !self.is_measured {
            return Ok(());
        }
        let started = Instant::now();
        let stop = self.stop.clone();
        let measure = |(lane, stage): (usize, &Stage)| {
            evaluate(
                &trainer.classifier,
                &self.dataset,
                (lane as u64, *stage),
                trainer.run.train.micro_batch_size,
                &|| go_on(&stop),
            )
        };
        let measured: anyhow::Result<Vec<HeldOut>> =
            Stage::ALL.iter().enumerate().map(measure).collect();
        let measured = match measured {
            Err(_) if self.stop.requested().is_some() => return Ok(()),
            measured => measured?,
        };
        let measured = <[HeldOut; 3]>::try_from(measured).ok();
        let measured = measured.context("there are three stages")?;
        let mut record = Map::new();
        for (name, stage) in STAGE_NAMES.iter().zip(measured) {
            for (what, value) in [
                ("cross_entropy", stage.loss),
                ("accuracy", stage.accuracy),
                ("accuracy_five", stage.accuracy_5),
            ] {
                record.insert(format!("held_out/{what}_{name}"), json!(value));
            }
        }
        let [clean_up, content, coarse] = measured.map(|stage| stage.accuracy);
        self.printer.note(format_args!(
            "held-out accuracy at {} images: clean-up {clean_up:.3}, content {content:.3}, coarse {coarse:.3}",
            trainer.clock.images_seen,
        ));
        self.records.write(trainer.clock, record)?;
        self.held_out = Some(measured);
        self.held_out_secs = Some(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Saves a checkpoint.
    pub(super) fn save(&mut self, trainer: &Trainer) -> anyhow::Result<()> {
        self.records.sync()?;
        let position = Position {
            images_seen: trainer.clock.images_seen,
            step: trainer.clock.step,
        };
        let train = &trainer.run.train;
        let retention = Retention {
            keep_last: train.keep_last,
            keep_every: train.keep_every.0,
        };
        let files = trainer.tensor_files()?;
        let path = checkpoint::save(&self.run_dir.checkpoints(), position, &files, retention)
            .context("cannot save a checkpoint")?;
        self.printer
            .detail(format_args!("checkpoint: {}", path.display()));
        self.saved_at = Some(position.images_seen);
        Ok(())
    }
}

/// Whether a run measures held-out accuracies.
pub(super) fn is_measured(trainer: &Trainer, dataset: &Dataset) -> bool {
    trainer.run.train.held_out_every.0 > 0 && dataset.n_images(Split::HeldOut) > 0
}
