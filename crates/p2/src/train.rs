//! Training: the loop, and what one step of it is made of.

mod classifier;
mod clock;
mod dropout;
mod gradients;
mod held_out;
mod learning_rate;
mod levels;
mod linear_denoiser;
mod loss;
mod noise;
mod observer;
mod opened;
mod picture;
mod run;
mod state;
mod tensors;
mod trace;
mod uncertainty;

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use candle_core::Tensor;
use p2_diffusion::{LossTerms, Objective, Weighting};
use p2_nn::tape::{OpTime, Profile};
use p2_nn::unet::Dropout;
use p2_nn::{AdamW, Cpu, Node, Tape, adamw};

pub use classifier::{ClassifierOutcome, ClassifierSetup, train_classifier};
pub use clock::{Clock, Interval, Limits};
use dropout::RunDropout;
use gradients::{Gradients, adamw_step, check_loss};
pub use held_out::StageErrors;
use levels::LevelDraws;
pub use linear_denoiser::LinearDenoiser;
use loss::loss_and_gradient;
use noise::Noise;
use observer::Observer;
pub use run::{Outcome, Setup, train};
pub use trace::{TracedRun, TracedStep};
use uncertainty::LearnedUncertainty;

use crate::config::{Configuration as _, Run};
use crate::data::{Batch, Loader};
use crate::fault;
use crate::model::{Condition, Model, Noised, objective, recompute};
use crate::rng::{Draws, Stream};

/// A run in memory.
pub(crate) struct Trainer {
    run: Run,
    model: Model,
    objective: Objective,
    levels: LevelDraws,
    optimizer: AdamW,
    clock: Clock,
    op_clock: Option<fn() -> Duration>,
    profile: Profile,
}

/// What a step tells those who watch.
#[derive(Debug)]
pub(crate) struct StepReport {
    /// Noise levels, `[N]`.
    pub(crate) t: Vec<u32>,
    /// Weighted loss per image, `[N]`.
    pub(crate) weighted: Vec<f32>,
    /// What it was multiplied by, `[N]`, if levels are drawn by importance.
    pub(crate) importance: Option<Vec<f64>>,
    /// Unweighted error on the prediction per image, `[N]`.
    pub(crate) mse: Vec<f32>,
    /// Unweighted error on the noise per image, `[N]`.
    pub(crate) mse_eps: Vec<f32>,
    /// Variational term in bits per image, `[N]`, if the variance is learned.
    pub(crate) vb: Option<Vec<f32>>,
    /// Global L2 norm of the gradients, before clipping.
    pub(crate) grad_norm: f64,
    /// Learning rate of the step.
    pub(crate) lr: f64,
    /// How long the step took, waiting for its images included.
    pub(crate) seconds: f64,
}

impl Trainer {
    /// A run at its beginning, or about to be restored to where `clock` stands.
    pub(crate) fn new(run: Run, clock: Clock, cpu: Cpu) -> anyhow::Result<Self> {
        let model = Model::new(&run, cpu)?;
        Ok(Self {
            objective: learning_objective(&run, model.cpu())?,
            levels: LevelDraws::new(&run)?,
            optimizer: AdamW::new(model.params(), cpu)?,
            model,
            run,
            clock,
            op_clock: None,
            profile: Profile::default(),
        })
    }

    /// From now on times the ops of each step by `op_clock`.
    pub(crate) fn time_ops(&mut self, op_clock: fn() -> Duration) {
        self.op_clock = Some(op_clock);
        self.profile = Profile::default();
    }

    /// Where the time went since [`Self::time_ops`].
    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The network that is trained, and its noise process.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Images that the run has seen.
    pub(crate) fn images_seen(&self) -> u64 {
        self.clock.images_seen
    }

    /// Trains until the run, a limit or a signal ends it.
    fn run(
        &mut self,
        loader: &mut Loader,
        observer: &mut Observer<'_>,
        limits: &Limits,
    ) -> anyhow::Result<()> {
        while !limits.reached(&self.clock, observer.finishing_secs(self)) {
            let started = Instant::now();
            let Some(batch) = loader.next_batch()? else {
                break;
            };
            fault::point("train.step");
            let mut report = self.step(&batch)?;
            report.seconds = started.elapsed().as_secs_f64();
            observer.after_step(self, &report)?;
        }
        Ok(())
    }

    /// One optimizer step on a batch, whose gradient is summed over micro-batches.
    pub(crate) fn step(&mut self, batch: &Batch) -> anyhow::Result<StepReport> {
        let mut gradients = Gradients::zero(self.model.params());
        let mut report = StepReport::empty();
        let (n, schedule) = (batch.n_images(), self.objective.schedule());
        for first in (0..n).step_by(self.run.train.micro_batch_size) {
            let n_part = self.run.train.micro_batch_size.min(n - first);
            let noise = self.noise(batch.first_image_idx + first as u64, n_part)?;
            let images = noise.add_to(batch.pixels_of(first, n_part), schedule)?;
            let times = self.levels.times(&noise.t);
            let low_res = self.low_res(&images.x0, batch.first_image_idx + first as u64)?;
            let output = self.record(batch, first, (&images.x_t, low_res.as_ref()), &times)?;
            let importance = self.levels.importance(&noise.t)?;
            // Each image counts the same, however many share its micro-batch.
            let d_weighted = shares(n, n_part, importance.as_deref());
            let (loss, d_output) =
                loss_and_gradient(&self.objective, &output, &images, &noise, &d_weighted)?;
            let files = &batch.files[first..first + n_part];
            let levels = (noise.t.as_slice(), times.as_slice());
            check_loss(
                &loss.weighted,
                levels,
                schedule.log_snr(),
                files,
                self.clock.step + 1,
            )?;
            gradients.add(output.backward(&d_output)?)?;
            let profile = output.tape().profile();
            profile.iter().for_each(|&op| self.profile.add(op));
            report.extend(&loss, noise.t, importance)?;
        }
        let times = self.levels.times(&report.t);
        report.grad_norm = gradients.checked_norm(&times, &batch.files, self.clock.step + 1)?;
        report.lr = learning_rate::at(&self.run.optim, self.run.pace(), self.clock.images_seen);
        let started = self.op_clock.map(|clock| clock());
        let (optim, step) = (&self.run.optim, self.clock.step + 1);
        let ema_decay = learning_rate::ema_decay(&self.run.ema, self.clock.images_seen, n);
        let step = adamw::Step {
            ema_decay,
            ..adamw_step(optim, report.lr, report.grad_norm, step)
        };
        self.optimizer.step(gradients.tensors(), step)?;
        if let (Some(clock), Some(started)) = (self.op_clock, started) {
            self.profile.add(OpTime {
                name: "optimizer",
                forward: clock() - started,
                backward: Duration::ZERO,
            });
        }
        self.objective.learn(&report.t, &report.mse)?;
        self.levels.learn(&report.t, &report.weighted)?;
        self.clock.advance(n);
        Ok(report)
    }

    /// The network's output for the noised images of a batch from `first` on, recorded.
    fn record(
        &self,
        batch: &Batch,
        first: usize,
        (x_t, low_res): (&Tensor, Option<&Tensor>),
        t: &[f64],
    ) -> anyhow::Result<Node> {
        let labels = self.labels(batch, first, t.len());
        let noised = Noised {
            x_t,
            t,
            condition: Condition {
                labels: &labels,
                low_res,
            },
        };
        let dropout: Rc<dyn Dropout> = Rc::new(RunDropout {
            seed: self.run.train.seed,
            first_image_idx: batch.first_image_idx + first as u64,
            probability: self.run.model.dropout,
            isa: self.model.cpu().isa,
        });
        let recompute = recompute(self.run.train.recompute);
        let tape = Tape::recording(self.model.cpu(), recompute);
        let tape = match self.op_clock {
            Some(clock) => tape.timed(clock),
            None => tape,
        };
        self.model.record(&tape, noised, Some(&dropout))
    }

    /// The classes of n images of a batch from `first` on; some are lost.
    fn labels(&self, batch: &Batch, first: usize, n: usize) -> Vec<u32> {
        let (seed, dropout) = (self.run.train.seed, self.run.model.label_dropout);
        let image_idx = batch.first_image_idx + first as u64;
        let labels = (image_idx..).zip(&batch.labels[first..first + n]);
        labels
            .map(|(image_idx, &label)| match self.model.no_class() {
                Some(no_class)
                    if Draws::at(seed, Stream::LabelDropout, image_idx).uniform() < dropout =>
                {
                    no_class
                }
                _ => label,
            })
            .collect()
    }

    /// The noise and the noise levels of the n images of the run from `image_idx` on.
    fn noise(&self, image_idx: u64, n: usize) -> anyhow::Result<Noise> {
        let images = image_idx..image_idx + n as u64;
        let size = self.model.image_size();
        Noise::draw(self.run.train.seed, images, size, &self.levels)
    }

    /// What a super-resolution model is to enlarge to the images of the run from `image_idx` on, with some noise.
    ///
    /// # Source
    /// Ho et al. 2021, arXiv 2106.15282, section 4.2 (Gaussian conditioning augmentation; the model is not told how
    /// much).
    fn low_res(&self, x0: &Tensor, image_idx: u64) -> anyhow::Result<Option<Tensor>> {
        let (seed, most) = (self.run.train.seed, self.run.model.low_res_noise);
        let Some(low_res) = self.model.low_res(x0)? else {
            return Ok(None);
        };
        if most == 0.0 {
            return Ok(Some(low_res));
        }
        let n_values = low_res.elem_count() / low_res.dim(0)?.max(1);
        let mut noise = vec![0.0; low_res.elem_count()];
        for (image_idx, noise) in (image_idx..).zip(noise.chunks_exact_mut(n_values)) {
            let mut draws = Draws::at(seed, Stream::LowRes, image_idx);
            let std = most * draws.uniform();
            draws.fill_normal(noise);
            noise.iter_mut().for_each(|noise| *noise *= std as f32);
        }
        let noise = Tensor::from_vec(noise, low_res.shape(), low_res.device())?;
        Ok(Some((low_res + noise)?))
    }
}

impl StepReport {
    fn empty() -> Self {
        let (t, weighted, mse, mse_eps) = (vec![], vec![], vec![], vec![]);
        Self {
            t,
            weighted,
            importance: None,
            mse,
            mse_eps,
            vb: None,
            grad_norm: 0.0,
            lr: 0.0,
            seconds: 0.0,
        }
    }

    fn extend(
        &mut self,
        loss: &LossTerms,
        t: Vec<u32>,
        importance: Option<Vec<f64>>,
    ) -> anyhow::Result<()> {
        self.weighted.extend(values(&loss.weighted)?);
        self.mse.extend(values(&loss.mse)?);
        self.mse_eps.extend(values(&loss.mse_eps)?);
        if let Some(vb) = &loss.vb {
            self.vb.get_or_insert_default().extend(values(vb)?);
        }
        if let Some(importance) = importance {
            self.importance.get_or_insert_default().extend(importance);
        }
        self.t.extend(t);
        Ok(())
    }
}

/// What a run minimizes, with the state of a weighting that learns.
fn learning_objective(run: &Run, cpu: Cpu) -> anyhow::Result<Objective> {
    let objective = objective(&run.loss, &run.diffusion)?;
    let Weighting::LearnedUncertainty { n_features, lr, .. } = run.loss.weighting else {
        return Ok(objective);
    };
    let learned = LearnedUncertainty::new(n_features, lr, run.train.seed, cpu)?;
    Ok(objective.with_stateful(Box::new(learned)))
}

/// What the weighted losses of a micro-batch, `[N]`, are multiplied by to give its part of the mean over n images.
fn shares(n: usize, n_part: usize, importance: Option<&[f64]>) -> Vec<f64> {
    let share = 1.0 / n as f64;
    match importance {
        Some(importance) => importance.iter().map(|factor| factor * share).collect(),
        None => vec![share; n_part],
    }
}

/// The numbers of a `[N]` tensor.
pub(crate) fn values(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    tensor.to_vec1().context("cannot read a loss")
}
