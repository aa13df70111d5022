//! Numbers printed by the reference code (`jychoi118/P2-weighting` at `3da0947`, torch 1.13, f32) on inputs
//! that are one formula of the index: `x0`, `eps` and the output below, filled in NCHW order.

use candle_core::{DType, Tensor};
use p2_diffusion::sampler::{AncestralOptions, Clip, DdimOptions};
use p2_diffusion::{
    Denoised, LossTerms, LossType, NetworkOutput, NoiseSchedule, Objective, Prediction, Result,
    Variance, Weighting, bound_terms, condition_mean, condition_score,
    discretized_gaussian_log_likelihood, prior_bpd, sampler,
};

use crate::support::{check, fill_nchw, values};

const T: [u32; 5] = [0, 10, 258, 500, 999];
const DTYPES: [DType; 2] = [DType::F32, DType::F64];
/// The goldens have seven digits, computed in f32.
const TOLERANCE: f64 = 1e-5;

struct Inputs {
    schedule: NoiseSchedule,
    x0: Tensor,
    eps: Tensor,
    output: Tensor,
    x_t: Tensor,
}

impl Inputs {
    fn new(dtype: DType) -> Result<Self> {
        let schedule = NoiseSchedule::linear(1000)?;
        let images = [5, 3, 4, 4];
        let x0 = fill_nchw(&images, dtype, |i| {
            (1.2 * (0.113 * i).sin()).clamp(-1.0, 1.0)
        })?;
        let eps = fill_nchw(&images, dtype, |i| 1.2 * (0.171 * i).cos())?;
        let output = fill_nchw(&[5, 6, 4, 4], dtype, |i| 0.3 * (0.021 * i + 0.5).sin())?;
        let x_t = schedule.add_noise(&x0, &eps, &T)?;
        Ok(Self {
            schedule,
            x0,
            eps,
            output,
            x_t,
        })
    }

    fn loss(&self, weighting: Weighting) -> Result<LossTerms> {
        let (prediction, variance) = (Prediction::Eps, Variance::LearnedRange);
        let objective = Objective::new(&self.schedule, prediction, variance, weighting)?;
        objective.loss(&self.output, &self.x0, &self.eps, &T)
    }

    fn denoised(&self) -> Result<Denoised> {
        let output = NetworkOutput {
            values: &self.output,
            prediction: Prediction::Eps,
            variance: Variance::LearnedRange,
        };
        output.denoised(&self.schedule, &self.x_t, &T)
    }
}

/// Element [n, 0, 0, 0] of each image.
fn corners(x: &Tensor) -> Result<Vec<f64>> {
    values(&x.narrow(1, 0, 1)?.narrow(2, 0, 1)?.narrow(3, 0, 1)?)
}

/// Sum of each image.
fn sums(x: &Tensor) -> Result<Vec<f64>> {
    values(&x.to_dtype(DType::F64)?.flatten_from(1)?.sum(1)?)
}

#[test]
fn weighted_mse() -> Result<()> {
    #[rustfmt::skip]
    let rows = [
        (0.0, 1.0, [6.857131e-1, 8.190968e-1, 7.249153e-1, 7.371084e-1, 7.790148e-1]),
        (0.5, 1.0, [6.857131e-3, 3.836161e-2, 5.124671e-1, 7.078557e-1, 7.789991e-1]),
        (1.0, 1.0, [6.857131e-5, 1.796629e-3, 3.622802e-1, 6.797639e-1, 7.789834e-1]),
        (1.0, 0.5, [6.857474e-5, 1.798602e-3, 4.829616e-1, 1.261395, 1.557904]),
    ];
    for dtype in DTYPES {
        let inputs = Inputs::new(dtype)?;
        for (gamma, k, expected) in rows {
            let loss = inputs.loss(Weighting::P2 { k, gamma })?;
            let mse = &values(&loss.mse)?;
            check("mse", mse, &rows[0].2, TOLERANCE);
            check("mse_eps", &values(&loss.mse_eps)?, mse, 0.0);
            // In f64, because at t = 0 vb is 30,000 times the weighted mse.
            let table = NoiseSchedule::linear(1000)?;
            let objective = Objective::new(
                &table,
                Prediction::Eps,
                Variance::LearnedRange,
                Weighting::P2 { k, gamma },
            )?;
            let weighted = mse.iter().zip(T);
            let weighted = weighted.map(|(mse, t)| mse * objective.weight_target()[t as usize]);
            let weighted: Vec<f64> = weighted.collect();
            check("weighted mse", &weighted, &expected, TOLERANCE);
            let vb = values(&loss.vb.ok_or(p2_diffusion::Error::MissingVarianceMix)?)?;
            let total: Vec<f64> = weighted.iter().zip(&vb).map(|(mse, vb)| mse + vb).collect();
            check("weighted", &values(&loss.weighted)?, &total, 1e-6);
        }
    }
    Ok(())
}

#[test]
fn hybrid_loss() -> Result<()> {
    let vb = [1.890020, 8.925527e-2, 5.529065e-3, 5.861081e-3, 1.146863e-2];
    let weighted = [1.890089, 9.105191e-2, 3.678093e-1, 6.856250e-1, 7.904520e-1];
    for dtype in DTYPES {
        let loss = Inputs::new(dtype)?.loss(Weighting::P2 { k: 1.0, gamma: 1.0 })?;
        let got = loss.vb.as_ref().map(values).transpose()?;
        check("vb", &got.unwrap_or_default(), &vb, TOLERANCE);
        check("weighted", &values(&loss.weighted)?, &weighted, TOLERANCE);
    }
    Ok(())
}

/// The bound as the loss itself, and T times it.
#[test]
fn kl_loss() -> Result<()> {
    let expected = [1.890020, 8.925527e-2, 5.529065e-3, 5.861081e-3, 1.146863e-2];
    for (loss_type, factor) in [(LossType::Kl, 1.0), (LossType::RescaledKl, 1000.0)] {
        for dtype in DTYPES {
            let inputs = Inputs::new(dtype)?;
            let objective = Objective::of_type(
                loss_type,
                &inputs.schedule,
                Prediction::Eps,
                Variance::LearnedRange,
                Weighting::Simple {},
            )?;
            let loss = objective.loss(&inputs.output, &inputs.x0, &inputs.eps, &T)?;
            let expected = expected.map(|bits| factor * bits);
            check("kl", &values(&loss.weighted)?, &expected, TOLERANCE);
        }
    }
    Ok(())
}

/// The bound's terms, which are the hybrid loss's where guesses are not clipped, and its constant part.
#[test]
fn bound() -> Result<()> {
    let vb = [1.890020, 8.925527e-2, 5.529065e-3, 5.861081e-3, 1.146863e-2];
    let prior = [
        1.901537e-5,
        1.608171e-5,
        1.692151e-5,
        2.026017e-5,
        1.754778e-5,
    ];
    for dtype in DTYPES {
        let inputs = Inputs::new(dtype)?;
        let options = AncestralOptions {
            clip: Clip::Off,
            variance: Variance::LearnedRange,
        };
        let images = (&inputs.x0, &inputs.x_t);
        let denoised = inputs.denoised()?;
        let terms = bound_terms(&inputs.schedule, images, &denoised, &T, options)?;
        check("vb", &values(&terms)?, &vb, TOLERANCE);
        let got = values(&prior_bpd(&inputs.schedule, &inputs.x0)?)?;
        check("prior", &got, &prior, 1e-4);
    }
    Ok(())
}

#[test]
fn raw_weight_on_x0() -> Result<()> {
    let expected = [
        7.280084e-5,
        1.137725e-3,
        3.612351e-1,
        5.889930e-1,
        7.337329e-1,
    ];
    for dtype in DTYPES {
        let inputs = Inputs::new(dtype)?;
        let objective = Objective::new(
            &inputs.schedule,
            Prediction::X0,
            Variance::FixedLarge,
            Weighting::P2Raw { k: 1.0, gamma: 1.0 },
        )?;
        let output = inputs.output.narrow(3, 0, 3)?;
        let loss = objective.loss(&output, &inputs.x0, &inputs.eps, &T)?;
        check("raw", &values(&loss.weighted)?, &expected, TOLERANCE);
        assert!(loss.vb.is_none());
    }
    Ok(())
}

#[test]
fn reverse_step() -> Result<()> {
    let x_t = [1.2e-2, -9.272588e-1, -1.351698, 8.275044e-1, 1.871413e-1];
    let mean = [
        1.056225e-2,
        -9.285201e-1,
        -1.348479,
        8.256838e-1,
        1.851319e-1,
    ];
    let log_variance = [-9.422754, -8.195770, -5.254739, -4.599498, -3.912024];
    let x0_hat = [1.056225e-2, -9.365140e-1, -1.0, 1.0, -1.0];
    for dtype in DTYPES {
        let inputs = Inputs::new(dtype)?;
        let options = AncestralOptions {
            clip: Clip::Pixels,
            variance: Variance::LearnedRange,
        };
        let denoised = inputs.denoised()?;
        let step = sampler::p_mean_variance(&inputs.schedule, &inputs.x_t, &denoised, &T, options)?;
        check("x_t", &corners(&inputs.x_t)?, &x_t, TOLERANCE);
        check("mean", &corners(&step.mean)?, &mean, TOLERANCE);
        check(
            "log_variance",
            &corners(&step.log_variance)?,
            &log_variance,
            TOLERANCE,
        );
        check("x0_hat", &corners(&step.x0_hat)?, &x0_hat, TOLERANCE);
    }
    Ok(())
}

/// A classifier whose gradient is 0.1 x, in both forms of the reference.
#[test]
fn classifier_guidance() -> Result<()> {
    let by_mean = [4.099646, 7.030406, 5.008079, 10.49275, -7.600600];
    let by_score = [4.099651, 7.030424, 5.008092, 10.49281, -7.600755];
    for dtype in DTYPES {
        let inputs = Inputs::new(dtype)?;
        let (schedule, x_t) = (&inputs.schedule, &inputs.x_t);
        let options = AncestralOptions {
            clip: Clip::Pixels,
            variance: Variance::LearnedRange,
        };
        let (denoised, gradient) = (inputs.denoised()?, x_t.affine(0.1, 0.0)?);
        let step = sampler::p_mean_variance(schedule, x_t, &denoised, &T, options)?;
        let got = condition_mean(&step, &gradient)?;
        check("mean", &sums(&got.mean)?, &by_mean, TOLERANCE);
        let moved = condition_score(schedule, &denoised, &gradient, &T, Clip::Pixels)?;
        let options = AncestralOptions {
            clip: Clip::Off,
            ..options
        };
        let got = sampler::p_mean_variance(schedule, x_t, &moved, &T, options)?;
        check("score", &sums(&got.mean)?, &by_score, TOLERANCE);
    }
    Ok(())
}

#[test]
fn ddim_steps() -> Result<()> {
    let down = [4.099609, 7.049351, 4.970968, 10.52903, -7.661509];
    let up = [4.264373, 7.088236, 4.875669, 10.51661, -7.584657];
    for dtype in DTYPES {
        let inputs = Inputs::new(dtype)?;
        let denoised = inputs.denoised()?;
        let (schedule, x_t) = (&inputs.schedule, &inputs.x_t);
        let options = DdimOptions {
            clip: Clip::Pixels,
            eta: 0.0,
        };
        let step = sampler::ddim_step(schedule, x_t, &denoised, &T, options)?;
        check("ddim_step", &sums(&step.mean)?, &down, TOLERANCE);
        let reverse = sampler::ddim_reverse_step(schedule, x_t, &denoised, &T, Clip::Pixels)?;
        check("ddim_reverse_step", &sums(&reverse)?, &up, TOLERANCE);
    }
    Ok(())
}

#[test]
fn discretized_gaussian() -> Result<()> {
    let expected = [
        -3.619462, -1.774709, -3.769938, -4.773515, -27.63102, -0.4923173,
    ];
    for dtype in DTYPES {
        let row = |values: &[f64; 6]| -> Result<Tensor> {
            Ok(Tensor::new(values, &candle_core::Device::Cpu)?.to_dtype(dtype)?)
        };
        // 0.999 in f32 is not above 0.999, so its bin is a narrow one, and hits the smallest probability.
        let x = row(&[-1.0, -0.5, 0.0, 0.5, 0.999, 1.0])?;
        let mean = row(&[-0.9, -0.5, 0.01, 0.4, 0.9, 1.1])?;
        let log_std = row(&[-3.0, -4.0, -2.0, -3.0, -5.0, -1.0])?;
        let got = discretized_gaussian_log_likelihood(&x, &mean, &log_std)?;
        check("log likelihood", &values(&got)?, &expected, TOLERANCE);
    }
    Ok(())
}

#[test]
fn the_pixel_at_the_bound_has_a_narrow_bin() -> Result<()> {
    // 0.999 is not above 0.999, in f32 as in f64: its bin has two edges, and the next pixel's has one.
    let std = (-5.0_f64).exp();
    let edge = 1.0 / (255.0 * std);
    let cdf = 0.5
        * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (edge + 0.044715 * edge.powi(3))).tanh());
    for dtype in DTYPES {
        let row = |values: [f64; 4]| -> Result<Tensor> {
            Ok(Tensor::new(&values, &candle_core::Device::Cpu)?.to_dtype(dtype)?)
        };
        let x = row([-0.9991, -0.999, 0.999, 0.9991])?;
        let got = discretized_gaussian_log_likelihood(&x, &x, &row([-5.0; 4])?)?;
        let (open, narrow) = (cdf.ln(), (2.0 * cdf - 1.0).ln());
        check(
            "log likelihood",
            &values(&got)?,
            &[open, narrow, narrow, open],
            TOLERANCE,
        );
    }
    Ok(())
}
