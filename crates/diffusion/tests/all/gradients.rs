//! Gradients of the loss against finite differences, and the gradients that must not exist.

use candle_core::{DType, Device, Tensor, Var};
use p2_diffusion::{
    Error, LossTerms, LossType, NoiseSchedule, Objective, Prediction, Result, Variance, Weighting,
    discretized_gaussian_log_likelihood,
};

use crate::support::{check, check_absolute, fill, learned_variance, values};

/// Two images at t = 0, because they are taken out of the batch and put back.
const T: [u32; 4] = [6, 0, 1, 0];
const CHANNELS: usize = 2;

struct Case {
    objective: Objective,
    x0: Tensor,
    eps: Tensor,
    output: Vec<f64>,
}

impl Case {
    fn new(loss_type: LossType, prediction: Prediction, variance: Variance) -> Result<Self> {
        // Few levels, so that the range of the learned variance is wide.
        let schedule = NoiseSchedule::linear(40)?;
        // Clamped pixels fall into the first and last bin of the likelihood at t = 0.
        let x0 = fill(&[4, 3, CHANNELS], DType::F64, |i| {
            (1.5 * (1.1 * i).sin()).clamp(-1.0, 1.0)
        })?;
        let eps = fill(&[4, 3, CHANNELS], DType::F64, |i| 1.2 * (1.7 * i).cos())?;
        // The error in x0 is small, or the likelihood at t = 0 would sit on its floor.
        let off = match prediction {
            Prediction::Eps => 0.5,
            Prediction::X0 | Prediction::V | Prediction::XPrev => 0.005,
        };
        let off = fill(&[4, 3, CHANNELS], DType::F64, |i| {
            off * (2.9 * i + 0.4).sin()
        })?;
        let predicted = (prediction.target(&schedule, &x0, &eps, &T)? + off)?;
        let weighting = match loss_type.is_bound() {
            true => Weighting::Simple {},
            false => Weighting::P2 { k: 1.0, gamma: 0.5 },
        };
        let mix = learned_variance(variance, &schedule, &[4, 3, CHANNELS], &T)?;
        let halves = [Some(predicted), mix].into_iter().flatten();
        Ok(Self {
            objective: Objective::of_type(loss_type, &schedule, prediction, variance, weighting)?,
            output: values(&Tensor::cat(&halves.collect::<Vec<_>>(), 2)?)?,
            x0,
            eps,
        })
    }

    fn loss(&self, output: &Tensor) -> Result<LossTerms> {
        self.objective.loss(output, &self.x0, &self.eps, &T)
    }

    fn tensor(&self, output: &[f64]) -> Result<Tensor> {
        let shape = (4, 3, output.len() / 12);
        Ok(Tensor::from_slice(output, shape, &Device::Cpu)?)
    }

    fn gradient(&self, of: impl Fn(&LossTerms) -> Result<Tensor>) -> Result<Vec<f64>> {
        let output = Var::from_tensor(&self.tensor(&self.output)?)?;
        let grads = of(&self.loss(&output)?)?.sum_all()?.backward()?;
        values(grads.get(&output).ok_or(Error::MissingVarianceMix)?)
    }

    fn finite_differences(&self, of: impl Fn(&LossTerms) -> Result<Tensor>) -> Result<Vec<f64>> {
        let at = |i: usize, step: f64| -> Result<f64> {
            let mut output = self.output.clone();
            output[i] += step;
            let loss = self.loss(&self.tensor(&output)?)?;
            Ok(of(&loss)?.sum_all()?.to_scalar()?)
        };
        let step = 1e-5;
        let slope = |i| Ok((at(i, step)? - at(i, -step)?) / (2.0 * step));
        (0..self.output.len()).map(slope).collect()
    }
}

fn is_prediction(i: usize) -> bool {
    i % (2 * CHANNELS) < CHANNELS
}

fn vb(loss: &LossTerms) -> Result<Tensor> {
    loss.vb.clone().ok_or(Error::MissingVarianceMix)
}

/// Every prediction with every variance that is learned.
fn learned() -> impl Iterator<Item = (Prediction, Variance)> {
    Prediction::ALL.into_iter().flat_map(|prediction| {
        let variances = Variance::ALL.into_iter();
        variances
            .filter(|variance| variance.is_learned())
            .map(move |variance| (prediction, variance))
    })
}

#[test]
fn weighted_loss() -> Result<()> {
    for (prediction, variance) in learned() {
        let case = Case::new(LossType::RescaledMse, prediction, variance)?;
        let got = case.gradient(|loss| Ok(loss.weighted.clone()))?;
        // The prediction learns from the weighted mse alone, the mix from vb alone.
        let by_mse = case.finite_differences(|loss| Ok((&loss.weighted - vb(loss)?)?))?;
        let by_vb = case.finite_differences(vb)?;
        let pairs = by_mse.iter().zip(&by_vb).enumerate();
        let expected: Vec<f64> = pairs
            .map(|(i, (mse, vb))| if is_prediction(i) { *mse } else { *vb })
            .collect();
        let name = format!("{prediction}, {variance:?}");
        check_slopes(&name, &got, &expected, &[true, false]);
    }
    Ok(())
}

/// The slopes of each image and of each half on its own: they differ by orders of magnitude.
#[track_caller]
fn check_slopes(name: &str, got: &[f64], expected: &[f64], halves: &[bool]) {
    let image = 3 * halves.len() * CHANNELS;
    for n in 0..T.len() {
        for &half in halves {
            let is_here = |&i: &usize| halves.len() == 1 || is_prediction(i) == half;
            let here = || (n * image..(n + 1) * image).filter(is_here);
            let pick = |slopes: &[f64]| here().map(|i| slopes[i]).collect::<Vec<f64>>();
            let (got, expected) = (pick(got), pick(expected));
            let largest = expected
                .iter()
                .fold(0.0_f64, |max, slope| max.max(slope.abs()));
            let name = format!("{name}, image {n}, prediction {half}");
            assert!(largest > 1e-5, "{name}: the loss is flat, {largest:e}");
            check_absolute(&name, &got, &expected, 1e-5 * largest);
        }
    }
}

/// All of it is followed, whatever is predicted and whoever says the variance.
#[test]
fn variational_bound() -> Result<()> {
    for loss_type in [LossType::Kl, LossType::RescaledKl] {
        for prediction in Prediction::ALL {
            for variance in Variance::ALL {
                let case = Case::new(loss_type, prediction, variance)?;
                let got = case.gradient(|loss| Ok(loss.weighted.clone()))?;
                let expected = case.finite_differences(|loss| Ok(loss.weighted.clone()))?;
                let halves = [true, false];
                let halves = &halves[..if variance.is_learned() { 2 } else { 1 }];
                let name = format!("{loss_type:?}, {prediction}, {variance:?}");
                check_slopes(&name, &got, &expected, halves);
            }
        }
    }
    Ok(())
}

#[test]
fn vb_does_not_train_the_prediction() -> Result<()> {
    let case = Case::new(
        LossType::RescaledMse,
        Prediction::Eps,
        Variance::LearnedRange,
    )?;
    let got = case.gradient(vb)?;
    let would_be = case.finite_differences(vb)?;
    for i in (0..got.len()).filter(|&i| is_prediction(i)) {
        assert_eq!(got[i], 0.0, "element {i}");
        assert!(would_be[i].abs() > 1e-9, "vb is flat in element {i} anyway");
    }
    Ok(())
}

#[test]
fn mse_eps_carries_no_gradient() -> Result<()> {
    let case = Case::new(
        LossType::RescaledMse,
        Prediction::Eps,
        Variance::LearnedRange,
    )?;
    let output = Var::from_tensor(&case.tensor(&case.output)?)?;
    let loss = case.loss(&output)?;
    assert!(loss.mse_eps.sum_all()?.backward()?.get(&output).is_none());
    assert!(loss.mse.sum_all()?.backward()?.get(&output).is_some());
    Ok(())
}

/// Far from the mean of a tiny variance the likelihood of a pixel is flat, in f32 too.
#[test]
fn a_tiny_variance_has_a_gradient() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let simple = Weighting::Simple {};
    let objective = Objective::new(&schedule, Prediction::X0, Variance::Learned, simple)?;
    let x0 = Tensor::new(&[[-1f32, -0.5, 0.5, 1.0]], &Device::Cpu)?;
    let log_variance = -100.0;
    let output = [
        0f32,
        0.0,
        0.0,
        0.0,
        log_variance,
        log_variance,
        log_variance,
        log_variance,
    ];
    let output = Var::new(&[output], &Device::Cpu)?;
    let loss = objective.loss(&output, &x0, &x0, &[0])?;
    let grads = loss.weighted.sum_all()?.backward()?;
    let d_output = values(grads.get(&output).ok_or(Error::MissingVarianceMix)?)?;
    check_absolute("log variance", &d_output[4..], &[0.0; 4], 0.0);
    Ok(())
}

/// Natural logarithm of the probability of a pixel's bin, `off` above the mean.
fn log_likelihood(x: f64, off: f64, log_std: f64) -> f64 {
    let cdf = |z: f64| {
        let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        1.0 / (1.0 + (-scale * (z + 0.044715 * z.powi(3))).exp())
    };
    let [above, below] = [1.0, -1.0].map(|side| (off + side / 255.0) / log_std.exp());
    let probability = match x {
        -1.0 => cdf(above),
        // 1 - cdf(below), without its rounding error.
        1.0 => cdf(-below),
        _ if off > 0.0 => cdf(-below) - cdf(-above),
        _ => cdf(above) - cdf(below),
    };
    probability.ln()
}

#[test]
fn improbable_pixels_keep_their_likelihood_and_its_gradient_in_f32() -> Result<()> {
    // Pixels 4 to 7 standard deviations from the mean: probabilities from 2e-4 down to 6e-12, where
    // 1 minus a probability has no digits left.
    let far = [28.0, 34.0, 40.0, 45.0].map(|off| off / 1024.0);
    let pixels = [(-1.0, -1.0), (0.0, -1.0), (0.0, 1.0), (1.0, 1.0)];
    let (log_std, step) = (-5.0, 1e-4);
    for (x, side) in pixels {
        let means = far.map(|off| (x - side * off) as f32);
        let x32 = Tensor::full(x as f32, far.len(), &Device::Cpu)?;
        let mean = Tensor::new(&means, &Device::Cpu)?;
        let spread = Var::from_tensor(&Tensor::full(log_std as f32, far.len(), &Device::Cpu)?)?;
        let got = discretized_gaussian_log_likelihood(&x32, &mean, &spread)?;
        let at = |log_std| far.map(|off| log_likelihood(x, side * off, log_std));
        let name = format!("pixel {x}, {side}");
        check(&name, &values(&got)?, &at(log_std), 1e-5);
        let grads = got.sum_all()?.backward()?;
        let slope = values(grads.get(&spread).ok_or(Error::MissingVarianceMix)?)?;
        let (after, before) = (at(log_std + step), at(log_std - step));
        let expected: Vec<f64> = after
            .iter()
            .zip(before)
            .map(|(after, before)| (after - before) / (2.0 * step))
            .collect();
        check(&name, &slope, &expected, 1e-4);
    }
    Ok(())
}

#[test]
fn a_pixel_far_outside_has_the_least_likelihood_and_no_gradient() -> Result<()> {
    let x = Tensor::new(&[-1f32, 0.0, 0.0, 1.0], &Device::Cpu)?;
    let mean = Tensor::new(&[1f32, -2.0, 2.0, -1.0], &Device::Cpu)?;
    let log_std = Var::new(&[-20f32, -20.0, -5.0, -20.0], &Device::Cpu)?;
    let got = discretized_gaussian_log_likelihood(&x, &mean, &log_std)?;
    check("least", &values(&got)?, &[1e-12_f64.ln(); 4], 1e-6);
    let grads = got.sum_all()?.backward()?;
    let slope = values(grads.get(&log_std).ok_or(Error::MissingVarianceMix)?)?;
    assert_eq!(slope, [0.0; 4]);
    Ok(())
}
