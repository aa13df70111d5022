//! How well a classifier does on held-out images, at fixed noise levels with fixed noise.

use p2_diffusion::Stage;

use crate::classifier::{Classifier, cross_entropy, ranks};
use crate::data::{Dataset, Split};
use crate::rng::{Draws, Stream};
use crate::train::held_out::{SEED, indices, spread};
use crate::train::noise::normal_images;
use crate::train::values;

/// Means over held-out images.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct HeldOut {
    /// Cross-entropy in nats.
    pub loss: f64,
    /// Share of images whose class has the highest score.
    pub accuracy: f64,
    /// Share of images whose class is among the five highest.
    pub accuracy_5: f64,
}

/// The classifier on held-out images at levels of a stage, each seen once; clean ones if it knows no others.
///
/// - `lane`: place of the stage among all
pub(super) fn evaluate(
    classifier: &Classifier,
    dataset: &Dataset,
    (lane, stage): (u64, Stage),
    batch_size: usize,
    go_on: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<HeldOut> {
    let images = indices(dataset);
    let (mut loss, mut n_first, mut n_five) = (0.0, 0, 0);
    for (batch_idx, batch) in images.chunks(batch_size).enumerate() {
        go_on()?;
        let (x0, labels) = dataset.images(Split::HeldOut, batch.iter().copied())?;
        let (x_t, t) = if classifier.is_noised() {
            let levels = stage.timesteps(classifier.schedule());
            let t = spread(levels, batch_idx * batch_size, batch.len());
            let eps = normal_images(batch.len(), classifier.image_size(), |i| {
                Draws::at_lane(SEED, Stream::HeldOut, batch[i] as u64, lane)
            })?;
            (classifier.schedule().add_noise(&x0, &eps, &t)?, t)
        } else {
            (x0, vec![0; batch.len()])
        };
        let times: Vec<f64> = t.into_iter().map(f64::from).collect();
        let scores = classifier.scores(&x_t, &times)?;
        let losses = values(&cross_entropy(&scores, &labels)?)?;
        loss += losses.into_iter().map(f64::from).sum::<f64>();
        let ranks = ranks(&scores, &labels)?;
        n_first += ranks.iter().filter(|&&rank| rank == 0).count();
        n_five += ranks.iter().filter(|&&rank| rank < 5).count();
    }
    let n_images = images.len() as f64;
    Ok(HeldOut {
        loss: loss / n_images,
        accuracy: n_first as f64 / n_images,
        accuracy_5: n_five as f64 / n_images,
    })
}
