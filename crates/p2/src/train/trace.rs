//! A run step by step with what entered each step, so that another program can repeat it.

use std::sync::Arc;

use p2_nn::Cpu;

use super::opened::open_loader;
use super::{Clock, Trainer};
use crate::config::{Configuration as _, Run};
use crate::data::{Dataset, Loader};
use crate::model::Model;

/// What entered a step, and what came out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TracedStep {
    /// The images of the batch, `[N, H, W, 3]` in `[-1, 1]`.
    pub x0: Vec<f32>,
    /// The noise that was added to them, like `x0`.
    pub eps: Vec<f32>,
    /// Their noise levels, `[N]`.
    pub t: Vec<u32>,
    /// What was minimized, per image, `[N]`; the gradient is that of its mean.
    pub weighted: Vec<f32>,
}

/// A run from its beginning, in memory: the steps of [`super::train`], without its files.
///
/// Classes, dropout and what a super-resolution model enlarges are part of the steps, but not of what is told.
#[expect(
    missing_debug_implementations,
    reason = "nobody looks at a loader's threads"
)]
pub struct TracedRun {
    trainer: Trainer,
    loader: Loader,
}

impl TracedRun {
    /// A run that has seen nothing yet.
    ///
    /// # Errors
    /// If the images cannot be used, or the sizes of the network do not fit together.
    pub fn new(run: Run, cpu: Cpu) -> anyhow::Result<Self> {
        let dataset = Arc::new(Dataset::open(&run.data)?);
        dataset.check_batch_size(run.train.batch_size)?;
        let clock = Clock::at(0, 0);
        Ok(Self {
            loader: open_loader(run.pace(), &dataset, clock, cpu)?,
            trainer: Trainer::new(run, clock, cpu)?,
        })
    }

    /// Takes the next step; `None` once the run has seen all its images.
    ///
    /// # Errors
    /// If an image cannot be read, or the loss is not finite.
    pub fn step(&mut self) -> anyhow::Result<Option<TracedStep>> {
        let Some(batch) = self.loader.next_batch()? else {
            return Ok(None);
        };
        // Noise is a function of an image's place, so that this is what the step draws.
        let noise = self
            .trainer
            .noise(batch.first_image_idx, batch.n_images())?;
        let report = self.trainer.step(&batch)?;
        Ok(Some(TracedStep {
            x0: batch.pixels,
            eps: noise.eps.flatten_all()?.to_vec1()?,
            t: report.t,
            weighted: report.weighted,
        }))
    }

    /// The network as it stands.
    pub fn model(&self) -> &Model {
        self.trainer.model()
    }

    /// The average of each parameter as it stands, in the engine's layout.
    pub fn averages(&self) -> Vec<Vec<f32>> {
        let states = self.trainer.optimizer.states();
        states.map(|state| state.ema.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use p2_nn::Threads;

    use super::*;
    use crate::config::{Base, Override, resolve};
    use crate::model::{Condition, Noised, objective};

    fn traced() -> TracedRun {
        let set = ["model.dropout=0", "train.total_images=24"].map(Override::set);
        let run = resolve(&Base::Preset("smoke".into()), &set).unwrap();
        TracedRun::new(run, Cpu::best(Threads::new(2))).unwrap()
    }

    /// The losses of a step by the network that is about to take it, from what was told of the step.
    fn losses(run: &TracedRun, step: &TracedStep) -> Vec<f32> {
        let (model, trainer) = (run.model(), &run.trainer);
        let size = model.image_size();
        let images = |values: &[f32]| {
            Tensor::from_slice(values, (step.t.len(), size, size, 3), &Device::Cpu).unwrap()
        };
        let (x0, eps) = (images(&step.x0), images(&step.eps));
        let x_t = model.schedule().add_noise(&x0, &eps, &step.t).unwrap();
        let noised = Noised {
            x_t: &x_t,
            t: &step.t.iter().map(|&t| f64::from(t)).collect::<Vec<_>>(),
            condition: Condition {
                labels: &[],
                low_res: None,
            },
        };
        let output = model.predict(noised).unwrap();
        let objective = objective(&trainer.run.loss, &trainer.run.diffusion).unwrap();
        let loss = objective.loss(&output, &x0, &eps, &step.t).unwrap();
        loss.weighted.to_vec1().unwrap()
    }

    #[test]
    fn what_is_told_of_a_step_is_what_entered_its_loss() {
        // The second run stays one step behind, so that its network is the one before the step.
        let (mut run, mut before) = (traced(), traced());
        let mut n_steps = 0;
        while let Some(step) = run.step().unwrap() {
            for (loss, expected) in step.weighted.iter().zip(losses(&before, &step)) {
                assert!(
                    (loss - expected).abs() <= 1e-6 * expected,
                    "{loss} {expected}"
                );
            }
            assert_eq!(before.step().unwrap(), Some(step));
            n_steps += 1;
        }
        assert_eq!(n_steps, 3);
        assert!(before.step().unwrap().is_none());
    }

    #[test]
    fn the_average_starts_as_the_weights_and_follows_them() {
        let mut run = traced();
        let weights = |run: &TracedRun| -> Vec<Vec<f32>> {
            run.model()
                .params()
                .iter()
                .map(|param| param.values().unwrap())
                .collect()
        };
        let start = weights(&run);
        assert_eq!(run.averages(), start);
        while run.step().unwrap().is_some() {}
        assert_ne!(weights(&run), start);
        assert_ne!(run.averages(), start);
    }
}
