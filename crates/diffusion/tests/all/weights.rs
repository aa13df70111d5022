//! Targets, conversions, exchange rates and weightings.

use std::f64::consts::LN_2;

use candle_core::{DType, Tensor, Var};
use p2_diffusion::sampler::{AncestralOptions, Clip};
use p2_diffusion::{
    Error, LossType, NetworkOutput, NoiseLevel, NoiseSchedule, Objective, Prediction, Result,
    Variance, Weighting, bound_terms,
};

use crate::support::{bits, check, check_absolute, fill, learned_variance, values};

const T: [u32; 6] = [0, 1, 100, 500, 900, 999];
const SHAPE: [usize; 4] = [6, 2, 3, 2];

struct Batch {
    x0: Tensor,
    eps: Tensor,
    x_t: Tensor,
    x0_hat: Tensor,
    mix: Tensor,
}

impl Batch {
    fn new(schedule: &NoiseSchedule, dtype: DType) -> Result<Self> {
        let x0 = fill(&SHAPE, dtype, |i| (0.9 * i + 0.3).sin())?;
        let eps = fill(&SHAPE, dtype, |i| 1.3 * (1.7 * i).cos())?;
        Ok(Self {
            x_t: schedule.add_noise(&x0, &eps, &T)?,
            x0_hat: fill(&SHAPE, dtype, |i| {
                (0.9 * i + 0.3).sin() + 0.01 * (2.3 * i + 0.1).sin()
            })?,
            mix: fill(&SHAPE, dtype, |i| 0.8 * (3.1 * i).sin())?,
            x0,
            eps,
        })
    }

    /// What a network would return that means `x0_hat`.
    fn output(
        &self,
        schedule: &NoiseSchedule,
        prediction: Prediction,
        x0_hat: &Tensor,
    ) -> Result<Tensor> {
        let predicted = self.predicted(schedule, prediction, x0_hat)?;
        Ok(Tensor::cat(&[&predicted, &self.mix], 3)?)
    }

    /// The same without what it says of the variance.
    fn predicted(
        &self,
        schedule: &NoiseSchedule,
        prediction: Prediction,
        x0_hat: &Tensor,
    ) -> Result<Tensor> {
        match prediction {
            Prediction::Eps => schedule.eps_from_x0(&self.x_t, x0_hat, &T),
            Prediction::X0 => Ok(x0_hat.clone()),
            Prediction::V => {
                let eps_hat = schedule.eps_from_x0(&self.x_t, x0_hat, &T)?;
                schedule.v_from_x0(x0_hat, &eps_hat, &T)
            }
            Prediction::XPrev => schedule.x_prev_from_x0(&self.x_t, x0_hat, &T),
        }
    }
}

#[test]
fn conversions_invert_each_other() -> Result<()> {
    let schedule = NoiseSchedule::cosine(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    let x0 = values(&batch.x0)?;
    let eps = schedule.eps_from_x0(&batch.x_t, &batch.x0, &T)?;
    // eps_from_x0 divides by sqrt(1 - alpha_bar), 0.006 at t = 0.
    check_absolute("eps", &values(&eps)?, &values(&batch.eps)?, 1e-12);
    let v = schedule.v_from_x0(&batch.x0, &batch.eps, &T)?;
    let x_prev = schedule.x_prev_from_x0(&batch.x_t, &batch.x0, &T)?;
    for (prediction, predicted) in [
        (Prediction::Eps, &batch.eps),
        (Prediction::X0, &batch.x0),
        (Prediction::V, &v),
        (Prediction::XPrev, &x_prev),
    ] {
        let target = prediction.target(&schedule, &batch.x0, &batch.eps, &T)?;
        assert_eq!(values(&target)?, values(predicted)?, "{prediction}");
        let x0_hat = prediction.x0_hat(&schedule, predicted, &batch.x_t, &T)?;
        // x0_from_eps divides by sqrt(alpha_bar), 5e-5 at t = 999.
        check_absolute(&prediction.to_string(), &values(&x0_hat)?, &x0, 1e-10);
    }
    let coefficients = schedule.mixing_coefficients(&T)?;
    for (n, &t) in T.iter().enumerate() {
        let alpha_bar = schedule.alpha_bar()[t as usize];
        assert_eq!(coefficients.sqrt_alpha_bar[n], alpha_bar.sqrt() as f32);
        let noise = coefficients.sqrt_one_minus_alpha_bar[n];
        assert_eq!(noise, (1.0 - alpha_bar).sqrt() as f32);
    }
    Ok(())
}

#[test]
fn output_is_split_into_prediction_and_mix() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    for prediction in Prediction::ALL {
        let values_of = batch.output(&schedule, prediction, &batch.x0_hat)?;
        let output = NetworkOutput {
            values: &values_of,
            prediction,
            variance: Variance::LearnedRange,
        };
        let denoised = output.denoised(&schedule, &batch.x_t, &T)?;
        let x0_hat = values(&denoised.x0_hat)?;
        check_absolute("x0_hat", &x0_hat, &values(&batch.x0_hat)?, 1e-11);
        let mix = denoised.variance_mix.ok_or(Error::MissingVarianceMix)?;
        assert_eq!(values(&mix)?, values(&batch.mix)?);
    }
    Ok(())
}

/// One denoiser's error, stated in whatever is predicted, gives the same loss and the same gradient.
#[test]
fn loss_does_not_depend_on_the_target() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    let min_snr_5 = |level: NoiseLevel| (5.0 / level.snr()).min(1.0);
    let p2 = Weighting::P2 { k: 0.7, gamma: 0.8 };
    for is_named in [true, false] {
        let mut expected: Option<[Vec<f64>; 4]> = None;
        for prediction in Prediction::ALL {
            let variance = Variance::LearnedRange;
            let objective = if is_named {
                Objective::new(&schedule, prediction, variance, p2)?
            } else {
                Objective::with_weight_eps(&schedule, prediction, variance, min_snr_5)?
            };
            let x0_hat = Var::from_tensor(&batch.x0_hat)?;
            let output = batch.output(&schedule, prediction, &x0_hat)?;
            let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?;
            let grads = loss.weighted.sum_all()?.backward()?;
            let d_x0_hat = grads.get(&x0_hat).ok_or(Error::MissingVarianceMix)?;
            let got = [
                values(&loss.weighted)?,
                values(&loss.mse_eps)?,
                values(&loss.vb.ok_or(Error::MissingVarianceMix)?)?,
                values(d_x0_hat)?,
            ];
            let expected = expected.get_or_insert_with(|| got.clone());
            for (got, expected) in got.iter().zip(expected.iter()) {
                check(&prediction.to_string(), got, expected, 1e-8);
            }
        }
    }
    Ok(())
}

/// The bound of one denoiser, whatever it predicts: the terms that are reported, and one gradient.
#[test]
fn the_bound_does_not_depend_on_the_target() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    for variance in Variance::ALL {
        let mix = learned_variance(variance, &schedule, &SHAPE, &T)?;
        let mut expected: Option<Vec<f64>> = None;
        for prediction in Prediction::ALL {
            let name = format!("{prediction}, {variance:?}");
            let simple = Weighting::Simple {};
            let kl = LossType::Kl;
            let objective = Objective::of_type(kl, &schedule, prediction, variance, simple)?;
            let x0_hat = Var::from_tensor(&batch.x0_hat)?;
            let predicted = batch.predicted(&schedule, prediction, &x0_hat)?;
            let halves = [Some(&predicted), mix.as_ref()].into_iter().flatten();
            let output = Tensor::cat(&halves.collect::<Vec<_>>(), 3)?;
            let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?;
            let output = NetworkOutput {
                values: &output,
                prediction,
                variance,
            };
            let denoised = output.denoised(&schedule, &batch.x_t, &T)?;
            let clip = Clip::Off;
            let options = AncestralOptions { clip, variance };
            let images = (&batch.x0, &batch.x_t);
            let terms = bound_terms(&schedule, images, &denoised, &T, options)?;
            // At t = 999 the mean of the step hardly depends on the image.
            check(&name, &values(&loss.weighted)?, &values(&terms)?, 1e-6);
            let grads = loss.weighted.sum_all()?.backward()?;
            let got = values(grads.get(&x0_hat).ok_or(Error::MissingVarianceMix)?)?;
            check(&name, &got, expected.get_or_insert(got.clone()), 1e-6);
        }
    }
    Ok(())
}

/// With the posterior's variance each term is a weighted error: where there is a step, it weighs as `vlb` does.
#[test]
fn the_bound_with_a_fixed_variance_is_a_weighted_error() -> Result<()> {
    let schedule = NoiseSchedule::cosine(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    for prediction in Prediction::ALL {
        let gradient = |loss_type, weighting| -> Result<[Vec<f64>; 2]> {
            let small = Variance::FixedSmall;
            let objective = Objective::of_type(loss_type, &schedule, prediction, small, weighting)?;
            let x0_hat = Var::from_tensor(&batch.x0_hat)?;
            let output = batch.predicted(&schedule, prediction, &x0_hat)?;
            let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?.weighted;
            let later = loss.narrow(0, 1, T.len() - 1)?;
            let grads = later.sum_all()?.backward()?;
            let d_x0_hat = grads.get(&x0_hat).ok_or(Error::MissingVarianceMix)?;
            Ok([values(&later)?, values(d_x0_hat)?])
        };
        let kl = gradient(LossType::Kl, Weighting::Simple {})?;
        let vlb = gradient(LossType::Mse, Weighting::Vlb {})?;
        for (bits, nats) in kl.iter().zip(&vlb) {
            let bits: Vec<f64> = bits.iter().map(|bits| bits * LN_2).collect();
            check(&prediction.to_string(), &bits, nats, 1e-6);
        }
    }
    Ok(())
}

/// A learned variance is trained alike by the bound and by the hybrid loss; the prediction by the bound alone.
#[test]
fn the_bound_trains_a_variance_as_the_hybrid_loss_does() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    let gradient = |loss_type| -> Result<[Vec<f64>; 3]> {
        let (variance, simple) = (Variance::LearnedRange, Weighting::Simple {});
        let objective = Objective::of_type(loss_type, &schedule, Prediction::V, variance, simple)?;
        let (x0_hat, mix) = (
            Var::from_tensor(&batch.x0_hat)?,
            Var::from_tensor(&batch.mix)?,
        );
        let predicted = batch.predicted(&schedule, Prediction::V, &x0_hat)?;
        let output = Tensor::cat(&[&predicted, &mix], 3)?;
        let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?;
        let vb = loss.vb.ok_or(Error::MissingVarianceMix)?;
        let grads = vb.sum_all()?.backward()?;
        let d_x0_hat = grads.get(&x0_hat).map(values).transpose()?;
        let d_mix = grads.get(&mix).map(values).transpose()?;
        Ok([
            values(&vb)?,
            d_mix.unwrap_or_default(),
            d_x0_hat.unwrap_or_default(),
        ])
    };
    let [bound, by_bound, d_x0_hat] = gradient(LossType::Kl)?;
    let [hybrid, by_hybrid, nothing] = gradient(LossType::Mse)?;
    check("vb", &bound, &hybrid, 1e-12);
    check("d_mix", &by_bound, &by_hybrid, 1e-12);
    assert!(d_x0_hat.iter().all(|slope| *slope != 0.0));
    assert!(nothing.iter().all(|slope| *slope == 0.0));
    Ok(())
}

/// The four losses of the reference code differ in the factor of the bits.
#[test]
fn bits_are_scaled_by_the_type_of_the_loss() -> Result<()> {
    let schedule = NoiseSchedule::linear(2000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    let output = batch.output(&schedule, Prediction::X0, &batch.x0_hat)?;
    let vb = |loss_type| -> Result<Vec<f64>> {
        let (variance, simple) = (Variance::LearnedRange, Weighting::Simple {});
        let objective = Objective::of_type(loss_type, &schedule, Prediction::X0, variance, simple)?;
        let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?;
        if loss_type.is_bound() {
            assert_eq!(
                values(&loss.weighted)?,
                values(loss.vb.as_ref().ok_or(Error::MissingVarianceMix)?)?
            );
        }
        values(&loss.vb.ok_or(Error::MissingVarianceMix)?)
    };
    let bits = vb(LossType::Mse)?;
    for (loss_type, factor) in [
        (LossType::RescaledMse, 2.0),
        (LossType::Kl, 1.0),
        (LossType::RescaledKl, 2000.0),
    ] {
        let expected: Vec<f64> = bits.iter().map(|bits| factor * bits).collect();
        check(&format!("{loss_type:?}"), &vb(loss_type)?, &expected, 1e-12);
    }
    Ok(())
}

#[test]
fn exchange_rates_are_ratios_of_errors() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let batch = Batch::new(&schedule, DType::F64)?;
    let mse = |prediction| -> Result<Vec<f64>> {
        let variance = Variance::LearnedRange;
        let objective = Objective::new(&schedule, prediction, variance, Weighting::Simple {})?;
        let output = batch.output(&schedule, prediction, &batch.x0_hat)?;
        values(&objective.loss(&output, &batch.x0, &batch.eps, &T)?.mse)
    };
    let (eps, x0, v) = (
        mse(Prediction::Eps)?,
        mse(Prediction::X0)?,
        mse(Prediction::V)?,
    );
    let x_prev = mse(Prediction::XPrev)?;
    for (n, &t) in T.iter().enumerate() {
        let alpha_bar = schedule.alpha_bar()[t as usize];
        let snr = alpha_bar / (1.0 - alpha_bar);
        check("x0", &[eps[n] / x0[n]], &[snr], 1e-9);
        check("v", &[eps[n] / v[n]], &[alpha_bar], 1e-9);
        let step = schedule.posterior_mean_x0()[t as usize];
        check("x-prev", &[x0[n] / x_prev[n]], &[step.powi(-2)], 1e-7);
    }
    Ok(())
}

#[test]
fn closed_forms_of_p2() {
    for log_snr in [-30.0, -4.0, 0.0, 0.7, 5.0, 20.0_f64] {
        let level = NoiseLevel::from_log_snr(log_snr);
        let (a, noise) = (level.alpha_bar(), level.one_minus_alpha_bar());
        let weight = |gamma, prediction| {
            let p2 = Weighting::P2 { k: 1.0, gamma };
            p2.weight_target(prediction, level)
        };
        let got = [
            weight(1.0, Prediction::Eps),
            weight(1.0, Prediction::X0),
            weight(1.0, Prediction::V),
            weight(0.5, Prediction::Eps),
            weight(0.5, Prediction::X0),
            weight(0.5, Prediction::V),
        ];
        let root = noise.sqrt();
        let expected = [noise, a, a * noise, root, a / root, a * root];
        check("P2 with k = 1", &got, &expected, 1e-13);
        // Debiased estimation (Yu et al. 2023) is P2 without k.
        let debiased = Weighting::P2 { k: 0.0, gamma: 0.5 };
        check(
            "k = 0",
            &[debiased.weight_eps(level)],
            &[(-0.5 * log_snr).exp()],
            1e-13,
        );
    }
}

#[test]
fn p2_without_gamma_is_simple_to_the_last_bit() -> Result<()> {
    for schedule in [NoiseSchedule::linear(1000)?, NoiseSchedule::cosine(1000)?] {
        let batch = Batch::new(&schedule, DType::F32)?;
        for prediction in Prediction::ALL {
            let loss = |weighting| -> Result<(Vec<f64>, Vec<u32>)> {
                let variance = Variance::LearnedRange;
                let objective = Objective::new(&schedule, prediction, variance, weighting)?;
                let output = batch.output(&schedule, prediction, &batch.x0_hat)?;
                let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?;
                Ok((objective.weight_target().to_vec(), bits(&loss.weighted)?))
            };
            let simple = loss(Weighting::Simple {})?;
            assert_eq!(loss(Weighting::P2 { k: 0.3, gamma: 0.0 })?, simple);
            let weak = Weighting::P2 {
                k: 0.3,
                gamma: 1e-6,
            };
            assert_ne!(loss(weak)?, simple, "the comparison is blind");
        }
    }
    Ok(())
}

#[test]
fn raw_p2_differs_for_every_target_but_eps() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let (k, gamma) = (1.0, 0.5);
    for prediction in Prediction::ALL {
        let weights = |weighting| -> Result<Vec<f64>> {
            let variance = Variance::FixedSmall;
            let objective = Objective::new(&schedule, prediction, variance, weighting)?;
            Ok(objective.weight_target().to_vec())
        };
        let converted = weights(Weighting::P2 { k, gamma })?;
        let raw = weights(Weighting::P2Raw { k, gamma })?;
        let rates = schedule
            .noise_levels()
            .map(|level| prediction.exchange_rate(level));
        let expected: Vec<f64> = raw
            .iter()
            .zip(rates)
            .map(|(raw, rate)| raw * rate)
            .collect();
        check("converted", &converted, &expected, 1e-13);
        assert_eq!(
            converted == raw,
            prediction == Prediction::Eps,
            "{prediction}"
        );
    }
    Ok(())
}
