//! The terms of the variational bound against their definition: divergences of two normal distributions.

use std::f64::consts::LN_2;

use candle_core::{DType, Tensor, Var};
use p2_diffusion::sampler::{AncestralOptions, Clip, p_mean_variance};
use p2_diffusion::{
    Denoised, Error, LossType, NoiseSchedule, Objective, Prediction, Result, Variance, Weighting,
    bound_terms, discretized_gaussian_log_likelihood,
};

use crate::support::{check, check_absolute, fill, learned_variance, values};

/// Two images at t = 0, because they are taken out of the batch and put back.
const T: [u32; 6] = [500, 0, 1, 900, 0, 258];
const SHAPE: [usize; 3] = [6, 4, 2];

/// Images, noised ones, and guesses at them that partly leave the range of pixels.
struct Batch {
    schedule: NoiseSchedule,
    x0: Tensor,
    x_t: Tensor,
    denoised: Denoised,
}

impl Batch {
    fn new(variance: Variance) -> Result<Self> {
        let schedule = NoiseSchedule::linear(1000)?;
        let x0 = fill(&SHAPE, DType::F64, |i| {
            (1.2 * (0.9 * i + 0.3).sin()).clamp(-1.0, 1.0)
        })?;
        let eps = fill(&SHAPE, DType::F64, |i| 1.3 * (1.7 * i).cos())?;
        let error = fill(&SHAPE, DType::F64, |i| 0.02 * (2.3 * i + 0.1).sin())?;
        Ok(Self {
            x_t: schedule.add_noise(&x0, &eps, &T)?,
            denoised: Denoised {
                x0_hat: (&x0 + error)?,
                variance_mix: learned_variance(variance, &schedule, &SHAPE, &T)?,
            },
            schedule,
            x0,
        })
    }

    /// The terms by their definition, from the moments of the two distributions.
    fn by_definition(&self, options: AncestralOptions) -> Result<Vec<f64>> {
        let Self {
            schedule, x0, x_t, ..
        } = self;
        let model = p_mean_variance(schedule, x_t, &self.denoised, &T, options)?;
        let log_variance = model.log_variance.broadcast_as(x0.shape())?;
        let log_std = log_variance.affine(0.5, 0.0)?;
        let log_likelihood = discretized_gaussian_log_likelihood(x0, &model.mean, &log_std)?;
        let log_likelihood = values(&log_likelihood)?;
        let posterior = values(&schedule.x_prev_from_x0(x_t, x0, &T)?)?;
        let (mean, log_variance) = (values(&model.mean)?, values(&log_variance)?);
        let n_elements = SHAPE[1] * SHAPE[2];
        let term = |(n, &t): (usize, &u32)| {
            let posterior_log_variance = schedule.posterior_log_variance_clipped()[t as usize];
            let elements = n * n_elements..(n + 1) * n_elements;
            let nats = elements.map(|i| {
                if t == 0 {
                    return -log_likelihood[i];
                }
                let ratio = posterior_log_variance - log_variance[i];
                let distance = (posterior[i] - mean[i]).powi(2) * (-log_variance[i]).exp();
                0.5 * (ratio.exp() - ratio - 1.0 + distance)
            });
            nats.sum::<f64>() / n_elements as f64 / LN_2
        };
        Ok(T.iter().enumerate().map(term).collect())
    }
}

#[test]
fn terms_are_divergences_of_normal_distributions() -> Result<()> {
    for variance in Variance::ALL {
        let batch = Batch::new(variance)?;
        for clip in [Clip::Off, Clip::Pixels] {
            let options = AncestralOptions { clip, variance };
            let images = (&batch.x0, &batch.x_t);
            let terms = bound_terms(&batch.schedule, images, &batch.denoised, &T, options)?;
            let name = format!("{variance:?}, {clip:?}");
            // The definition takes differences of numbers near 1.
            let expected = batch.by_definition(options)?;
            check_absolute(&name, &values(&terms)?, &expected, 1e-10);
        }
    }
    Ok(())
}

/// In f32, as in training, the loss and its gradient are those of f64, from the cleanest level to the noisiest.
#[test]
fn f32_keeps_the_digits_of_the_bound() -> Result<()> {
    const LEVELS: [u32; 8] = [0, 1, 2, 10, 258, 500, 900, 999];
    const IMAGES: [usize; 3] = [8, 16, 3];
    for schedule in [NoiseSchedule::linear(1000)?, NoiseSchedule::cosine(1000)?] {
        // The mean of a step hardly depends on the image at noisy levels: its error is rounding there, in any loss.
        for prediction in [Prediction::Eps, Prediction::X0, Prediction::V] {
            for variance in Variance::ALL {
                let (kl, simple) = (LossType::Kl, Weighting::Simple {});
                let objective = Objective::of_type(kl, &schedule, prediction, variance, simple)?;
                let mix = learned_variance(variance, &schedule, &IMAGES, &LEVELS)?;
                let run = |dtype| -> Result<[Vec<f64>; 2]> {
                    let x0 = fill(&IMAGES, dtype, |i| (0.9 * i + 0.3).sin())?;
                    let eps = fill(&IMAGES, dtype, |i| 1.3 * (1.7 * i).cos())?;
                    // Near enough for the likelihood of pixels to have a slope.
                    let error = fill(&IMAGES, dtype, |i| 0.01 * (2.3 * i + 0.1).sin())?;
                    let target = prediction.target(&schedule, &x0, &eps, &LEVELS)?;
                    let mix = mix.as_ref().map(|mix| mix.to_dtype(dtype)).transpose()?;
                    let halves = [Some((target + error)?), mix].into_iter().flatten();
                    let output = Var::from_tensor(&Tensor::cat(&halves.collect::<Vec<_>>(), 2)?)?;
                    let loss = objective.loss(&output, &x0, &eps, &LEVELS)?.weighted;
                    let grads = loss.sum_all()?.backward()?;
                    let d_output = grads.get(&output).ok_or(Error::MissingVarianceMix)?;
                    let norms = d_output.sqr()?.flatten_from(1)?.sum(1)?.sqrt()?;
                    Ok([values(&loss)?, values(&norms)?])
                };
                let name = format!("{prediction}, {variance:?}");
                let ([loss, norms], [expected_loss, expected_norms]) =
                    (run(DType::F32)?, run(DType::F64)?);
                // A difference of nearly equal variances is nothing beside the bits of other levels.
                let lost = |(got, expected): (&f64, &f64)| {
                    (got - expected).abs() > 1e-4 * expected.abs() + 1e-7
                };
                let n_lost = loss.iter().zip(&expected_loss).filter(|&pair| lost(pair));
                assert_eq!(n_lost.count(), 0, "{name}: {loss:?}, {expected_loss:?}");
                check(&name, &norms, &expected_norms, 1e-4);
            }
        }
    }
    Ok(())
}
