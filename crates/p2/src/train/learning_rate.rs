//! How the learning rate and the length of the average change with the images seen.

use std::f64::consts::PI;

use crate::config::Pace;
use crate::config::section::{Decay, Ema, Optim};

/// The learning rate of the step that starts at `images_seen`.
pub(crate) fn at(optim: &Optim, pace: Pace, images_seen: u64) -> f64 {
    let total = pace.total_images;
    let warmup = optim.warmup_images.0;
    if images_seen < warmup {
        // The first step already moves a little: it counts its own batch.
        let reached = (images_seen + pace.batch_size as u64).min(warmup);
        return optim.lr * reached as f64 / warmup as f64;
    }
    let progress = (images_seen - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    let progress = progress.min(1.0);
    optim.lr
        * match optim.decay {
            Decay::None => 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        }
}

/// The share of its old value that the average keeps in a step of `n_images`.
///
/// # Source
/// Karras et al. 2022, arXiv 2206.00364, appendix F.2: a half-life in images, shorter at first.
pub(super) fn ema_decay(ema: &Ema, images_seen: u64, n_images: usize) -> f64 {
    let mut halflife = ema.halflife_images.0 as f64;
    if ema.rampup_ratio > 0.0 {
        halflife = halflife.min(images_seen as f64 * ema.rampup_ratio);
    }
    if halflife > 0.0 {
        0.5f64.powf(n_images as f64 / halflife)
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Base, Configuration as _, Count, Override, RunConfig, resolve};

    fn run(set: &[&str]) -> RunConfig {
        let set: Vec<Override> = set
            .iter()
            .map(|assignment| Override::set(assignment))
            .collect();
        let run = resolve(&Base::Preset("smoke".into()), &set).unwrap();
        run.config().clone()
    }

    fn at(run: &RunConfig, images_seen: u64) -> f64 {
        super::at(&run.optim, run.pace(), images_seen)
    }

    #[test]
    fn it_warms_up_on_a_line_and_then_decays() {
        let common = [
            "optim.lr=2.0",
            "optim.warmup_images=100",
            "train.total_images=300",
            "train.batch_size=10",
            "train.micro_batch_size=10",
        ];
        for (decay, expected) in [
            ("none", [0.2, 1.2, 2.0, 2.0, 2.0, 2.0]),
            ("linear", [0.2, 1.2, 2.0, 2.0, 1.0, 0.0]),
            ("cosine", [0.2, 1.2, 2.0, 2.0, 1.0, 0.0]),
        ] {
            let decay = format!("optim.decay={decay}");
            let run = run(&[&common[..], &[&decay]].concat());
            for (images_seen, expected) in [0, 50, 90, 100, 200, 300].into_iter().zip(expected) {
                let lr = at(&run, images_seen);
                assert!(
                    (lr - expected).abs() < 1e-12,
                    "{decay} at {images_seen}: {lr}"
                );
            }
        }
        let cosine = run(&[&common[..], &["optim.decay=cosine"]].concat());
        assert!((at(&cosine, 150) - (1.0 + (PI / 4.0).cos())).abs() < 1e-12);
    }

    #[test]
    fn the_average_halves_in_its_halflife_and_follows_at_first() {
        let ema = Ema {
            halflife_images: Count(1000),
            rampup_ratio: 0.05,
        };
        assert_eq!(ema_decay(&ema, 0, 10), 0.0);
        assert!((ema_decay(&ema, 10_000, 500) - 0.5).abs() < 1e-12); // half-life 500 so far
        assert!((ema_decay(&ema, 1_000_000, 1000) - 0.5).abs() < 1e-12);
        let steps: f64 = (0..100).map(|_| ema_decay(&ema, 1_000_000, 10)).product();
        assert!((steps - 0.5).abs() < 1e-9);
    }
}
