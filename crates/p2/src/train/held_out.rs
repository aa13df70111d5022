//! The held-out loss: averaged weights, fixed noise levels, fixed noise, per stage, unweighted.

use std::ops::Range;

use p2_diffusion::{Objective, Stage};
use serde::Serialize;

use super::noise::normal_images;
use super::values;
use crate::data::{Dataset, Split};
use crate::model::{Condition, Model, Noised};
use crate::rng::{Draws, Stream};

/// Held-out images that are looked at, at most.
const MAX_IMAGES: usize = 512;

/// The noise does not depend on the run's seed, so that runs compare.
pub(super) const SEED: u64 = 0;

/// Mean squared error on the noise, per stage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StageErrors {
    /// At levels with SNR over 1.
    pub clean_up: f64,
    /// At levels with SNR from 1e-2 to 1.
    pub content: f64,
    /// At levels with SNR under 1e-2.
    pub coarse: f64,
}

impl StageErrors {
    pub(super) fn try_new(
        mut error: impl FnMut(Stage) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            clean_up: error(Stage::CleanUp)?,
            content: error(Stage::Content)?,
            coarse: error(Stage::Coarse)?,
        })
    }
}

/// How many held-out images are looked at.
pub(super) fn n_images(dataset: &Dataset) -> usize {
    dataset.n_images(Split::HeldOut).min(MAX_IMAGES)
}

/// The held-out images that are looked at.
pub(super) fn indices(dataset: &Dataset) -> Vec<usize> {
    let (n_all, n) = (dataset.n_images(Split::HeldOut), n_images(dataset));
    (0..n).map(|i| i * n_all / n).collect()
}

/// The levels of n images from the first on, spread evenly over images and levels by the golden ratio.
pub(super) fn spread(levels: Range<u32>, first: usize, n: usize) -> Vec<u32> {
    let level = |i: usize| {
        let place = (0.5 + i as f64 * 0.618_033_988_749_894_9).fract();
        levels.start + (place * levels.len() as f64) as u32
    };
    (first..first + n).map(level).collect()
}

/// The error of a model on held-out images; each is seen once per stage.
///
/// `go_on` is asked before each batch, and ends the evaluation with an error.
pub(super) fn evaluate(
    (model, objective): (&Model, &Objective),
    dataset: &Dataset,
    batch_size: usize,
    go_on: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<StageErrors> {
    let images = indices(dataset);
    StageErrors::try_new(|stage| {
        let levels = stage.timesteps(model.schedule());
        let mut sum = 0.0;
        for (batch_idx, batch) in images.chunks(batch_size).enumerate() {
            go_on()?;
            let t = spread(levels.clone(), batch_idx * batch_size, batch.len());
            sum += errors(model, objective, dataset, batch, &t, stage)?;
        }
        Ok(sum / images.len() as f64)
    })
}

/// The sum of the errors of some held-out images.
fn errors(
    model: &Model,
    objective: &Objective,
    dataset: &Dataset,
    images: &[usize],
    t: &[u32],
    stage: Stage,
) -> anyhow::Result<f64> {
    let (x0, labels) = dataset.images(Split::HeldOut, images.iter().copied())?;
    let lane = Stage::ALL
        .iter()
        .position(|&other| other == stage)
        .unwrap_or(0) as u64;
    let eps = normal_images(images.len(), model.image_size(), |i| {
        Draws::at_lane(SEED, Stream::HeldOut, images[i] as u64, lane)
    })?;
    let x_t = model.schedule().add_noise(&x0, &eps, t)?;
    let times: Vec<f64> = t.iter().map(|&t| f64::from(t)).collect();
    let low_res = model.low_res(&x0)?;
    let noised = Noised {
        x_t: &x_t,
        t: &times,
        condition: Condition {
            labels: &labels,
            low_res: low_res.as_ref(),
        },
    };
    let output = model.predict(noised)?;
    let loss = objective.loss(&output, &x0, &eps, t)?;
    Ok(values(&loss.mse_eps)?.into_iter().map(f64::from).sum())
}
