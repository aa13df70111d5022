//! Targets, conversions, exchange rates and weightings.

use candle_core::{DType, Tensor, Var};
use p2_diffusion::{
    Error, NetworkOutput, NoiseLevel, NoiseSchedule, Objective, Prediction, Result, Variance,
    Weighting,
};

use crate::support::{bits, check, check_absolute, fill, values};

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
        let predicted = match prediction {
            Prediction::Eps => schedule.eps_from_x0(&self.x_t, x0_hat, &T)?,
            Prediction::X0 => x0_hat.clone(),
            Prediction::V => {
                let eps_hat = schedule.eps_from_x0(&self.x_t, x0_hat, &T)?;
                schedule.v_from_x0(x0_hat, &eps_hat, &T)?
            }
            Prediction::XPrev => schedule.x_prev_from_x0(&self.x_t, x0_hat, &T)?,
        };
        Ok(Tensor::cat(&[&predicted, &self.mix], 3)?)
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

#[test]
fn vb_is_scaled_with_the_length_of_the_schedule() -> Result<()> {
    // A sum over twice as many terms weighs twice as much (RESCALED_MSE of the reference code).
    let long = NoiseSchedule::linear(2000)?;
    let short = NoiseSchedule::from_betas(long.beta()[..1000].to_vec())?;
    let vb = |schedule: &NoiseSchedule| -> Result<Vec<f64>> {
        let batch = Batch::new(schedule, DType::F64)?;
        let variance = Variance::LearnedRange;
        let objective = Objective::new(schedule, Prediction::X0, variance, Weighting::Simple {})?;
        let output = batch.output(schedule, Prediction::X0, &batch.x0_hat)?;
        let loss = objective.loss(&output, &batch.x0, &batch.eps, &T)?;
        values(&loss.vb.ok_or(Error::MissingVarianceMix)?)
    };
    let doubled: Vec<f64> = vb(&short)?.iter().map(|bits| 2.0 * bits).collect();
    check("vb", &vb(&long)?, &doubled, 1e-12);
    Ok(())
}
