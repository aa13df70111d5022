//! Weightings and densities that learn from the errors they see.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Var};
use p2_diffusion::{
    Adjustment, Density, Error, LossHistory, NoiseLevel, NoiseSchedule, Objective, Prediction,
    Result, StateTensor, StatefulWeighting, Variance, Weighting,
};

use crate::support::{check, fill, values};

const BUCKETS: Weighting = Weighting::AdaptiveBuckets {
    n_buckets: 6,
    min_log_snr: -2.0,
    max_log_snr: 2.0,
    beta: 0.75,
};

fn objective(prediction: Prediction, weighting: Weighting) -> Result<Objective> {
    let schedule = NoiseSchedule::cosine(100)?;
    Objective::new(&schedule, prediction, Variance::FixedSmall, weighting)
}

/// Factors at log-SNRs, which need not be on a schedule.
fn factors(objective: &Objective, log_snr: &[f64]) -> Result<Vec<f64>> {
    let levels: Vec<_> = log_snr
        .iter()
        .map(|&l| NoiseLevel::from_log_snr(l))
        .collect();
    let stateful = objective.stateful().ok_or(Error::MissingState)?;
    let adjustments = stateful.adjust(&levels)?;
    Ok(adjustments.iter().map(|a| a.log_factor.exp()).collect())
}

/// The borders lie at -2, -1, 0, 1 and 2; the first and the last bucket have no end.
#[test]
fn each_bucket_has_a_moving_mean_of_its_own() -> Result<()> {
    let mut objective = objective(Prediction::Eps, BUCKETS)?;
    let log_snr = [f64::NEG_INFINITY, -2.0, -1.9, -1.0, 0.5, 1.5, 2.1, 1e9];
    check("start", &factors(&objective, &log_snr)?, &[1.0; 8], 0.0);
    let level = NoiseLevel::from_log_snr;
    let stateful = objective.stateful_mut().unwrap();
    // Two images in one bucket both count, in their order.
    stateful.learn(&[level(-1.5), level(-1.2), level(1e9)], &[0.2, 0.6, 0.0])?;
    let mean: f64 = 0.75 * (0.75 + 0.25 * 0.2) + 0.25 * 0.6;
    let expected = [
        1.0,
        1.0,
        1.0 / mean,
        1.0 / mean,
        1.0,
        1.0,
        1.0 / 0.75,
        1.0 / 0.75,
    ];
    check("learned", &factors(&objective, &log_snr)?, &expected, 1e-6);
    // However small the error, a weight does not grow without limit.
    let stateful = objective.stateful_mut().unwrap();
    for _ in 0..1000 {
        stateful.learn(&[level(0.5)], &[0.0])?;
    }
    check("limit", &factors(&objective, &[0.5])?, &[1e7], 1e-9);
    Ok(())
}

/// One and the same denoiser gives one and the same loss, whatever it is said to predict, before and after.
#[test]
fn what_is_learned_does_not_depend_on_the_prediction() -> Result<()> {
    let t = [3, 30, 60, 97];
    let (x0, eps) = (
        fill(&[4, 12], DType::F64, |i| (0.37 * i).sin())?,
        fill(&[4, 12], DType::F64, |i| (1.3 * i).cos())?,
    );
    let guess = (&x0 + fill(&[4, 12], DType::F64, |i| 0.1 * (0.9 * i).sin())?)?;
    let mut seen = Vec::new();
    for prediction in Prediction::ALL {
        let mut objective = objective(prediction, BUCKETS)?;
        let schedule = objective.schedule().clone();
        let x_t = schedule.add_noise(&x0, &eps, &t)?;
        // The noise that goes with the guess in x_t.
        let a: Vec<f64> = t
            .iter()
            .map(|&t| schedule.alpha_bar()[t as usize])
            .collect();
        let column = |f: fn(f64) -> f64| fill(&[4, 1], DType::F64, |i| f(a[i as usize]));
        let rest = (x_t - guess.broadcast_mul(&column(f64::sqrt)?)?)?;
        let noise = rest.broadcast_div(&column(|a| (1.0 - a).sqrt())?)?;
        let output = prediction.target(&schedule, &guess, &noise, &t)?;
        let before = objective.loss(&output, &x0, &eps, &t)?;
        let mse: Vec<f32> = before.mse.to_dtype(DType::F32)?.to_vec1()?;
        objective.learn(&t, &mse)?;
        let after = objective.loss(&output, &x0, &eps, &t)?;
        assert!(values(&before.weighted)? != values(&after.weighted)?);
        seen.push([values(&before.weighted)?, values(&after.weighted)?].concat());
    }
    check("x0", &seen[1], &seen[0], 1e-6);
    check("v", &seen[2], &seen[0], 1e-6);
    check("x-prev", &seen[3], &seen[0], 1e-6);
    Ok(())
}

/// Remembers what it is told.
#[derive(Debug, Default)]
struct Notebook(Arc<Mutex<Vec<(f64, f64)>>>);

impl StatefulWeighting for Notebook {
    fn adjust(&self, levels: &[NoiseLevel]) -> Result<Vec<Adjustment>> {
        let adjustments = levels.iter().map(|level| Adjustment {
            log_factor: level.log_snr().tanh(),
            penalty: 5.0 + level.log_snr(),
        });
        Ok(adjustments.collect())
    }

    fn learn(&mut self, levels: &[NoiseLevel], errors: &[f64]) -> Result<()> {
        let seen = levels.iter().map(|level| level.log_snr());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(seen.zip(errors.iter().copied()));
        Ok(())
    }

    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _state: &[StateTensor]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn adjustments_scale_the_weight_and_add_a_penalty_without_gradient() -> Result<()> {
    let min_snr = Weighting::MinSnr { gamma: 5.0 };
    let seen = Arc::default();
    let plain = objective(Prediction::V, min_snr)?;
    let mut adjusted =
        objective(Prediction::V, min_snr)?.with_stateful(Box::new(Notebook(Arc::clone(&seen))));
    let t = [2, 50, 99];
    let x0 = fill(&[3, 8], DType::F64, |i| (0.3 * i).sin())?;
    let eps = fill(&[3, 8], DType::F64, |i| (0.7 * i).cos())?;
    let output = Var::from_tensor(&fill(&[3, 8], DType::F64, |i| 0.1 * i)?)?;
    let run = |objective: &Objective| -> Result<[Vec<f64>; 3]> {
        let loss = objective.loss(&output, &x0, &eps, &t)?;
        let gradients = loss.weighted.sum_all()?.backward()?;
        let gradient = gradients.get(&output).unwrap();
        Ok([
            values(&loss.weighted)?,
            values(&loss.mse)?,
            values(gradient)?,
        ])
    };
    let ([weighted, mse, gradient], [adjusted_loss, _, adjusted_gradient]) =
        (run(&plain)?, run(&adjusted)?);
    let log_snr = t.map(|t| plain.schedule().log_snr()[t as usize]);
    let factor = log_snr.map(|l| l.tanh().exp());
    for i in 0..3 {
        let expected = factor[i] * weighted[i] + 5.0 + log_snr[i];
        check("loss", &[adjusted_loss[i]], &[expected], 1e-12);
        let row = 8 * i..8 * (i + 1);
        let expected: Vec<f64> = gradient[row.clone()]
            .iter()
            .map(|g| factor[i] * g)
            .collect();
        check("gradient", &adjusted_gradient[row], &expected, 1e-12);
    }
    // It learns from the errors as they are weighed at the start.
    let mse: Vec<f32> = mse.iter().map(|&mse| mse as f32).collect();
    adjusted.learn(&t, &mse)?;
    let seen = seen.lock().unwrap();
    let (levels, errors): (Vec<f64>, Vec<f64>) = seen.iter().copied().unzip();
    check("levels", &levels, &log_snr, 0.0);
    check("errors", &errors, &weighted, 1e-6);
    Ok(())
}

#[test]
fn a_level_that_does_not_count_teaches_nothing() -> Result<()> {
    let schedule = NoiseSchedule::cosine(100)?.with_zero_terminal_snr()?;
    let mut objective = Objective::new(&schedule, Prediction::V, Variance::FixedSmall, BUCKETS)?;
    assert_eq!(objective.weight_target()[99], 0.0);
    objective.learn(&[99, 99], &[0.0, 1.0])?;
    check(
        "SNR of 0",
        &factors(&objective, &[f64::NEG_INFINITY])?,
        &[1.0],
        0.0,
    );
    Ok(())
}

#[test]
fn a_learned_uncertainty_needs_its_state() -> Result<()> {
    let uncertainty = Weighting::LearnedUncertainty {
        sigma_data: 0.5,
        n_features: 16,
        lr: 0.1,
    };
    let without = objective(Prediction::Eps, uncertainty)?;
    let x = fill(&[1, 4], DType::F32, f64::sin)?;
    let refused = without.loss(&x, &x, &x, &[5]);
    assert!(matches!(refused, Err(Error::MissingState)), "{refused:?}");
    // It starts as EDM.
    let edm = objective(Prediction::Eps, Weighting::Edm { sigma_data: 0.5 })?;
    assert_eq!(without.weight_target(), edm.weight_target());
    let with = without.with_stateful(Box::new(Notebook::default()));
    with.loss(&x, &x, &x, &[5])?;
    Ok(())
}

#[test]
fn a_state_goes_on_where_it_was_saved() -> Result<()> {
    let (mut whole, mut resumed) = (
        objective(Prediction::Eps, BUCKETS)?,
        objective(Prediction::Eps, BUCKETS)?,
    );
    whole.learn(&[5, 50, 80], &[0.1, 0.3, 0.7])?;
    let state = whole.stateful().unwrap().state()?;
    resumed.stateful_mut().unwrap().restore(&state)?;
    for objective in [&mut whole, &mut resumed] {
        objective.learn(&[5, 70], &[0.2, 0.1])?;
    }
    let states = [&whole, &resumed].map(|objective| objective.stateful().unwrap().state().unwrap());
    assert_eq!(states[0], states[1]);
    let short = [StateTensor {
        name: "errors".into(),
        values: vec![1.0; 5],
    }];
    for wrong in [&short[..], &[]] {
        let refused = resumed.stateful_mut().unwrap().restore(wrong);
        assert!(matches!(refused, Err(Error::State { .. })), "{refused:?}");
    }
    Ok(())
}

const HISTORY: Density = Density::LossSecondMoment {
    n_history: 2,
    uniform: 0.1,
};

#[test]
fn timesteps_are_drawn_by_the_root_of_their_mean_squared_loss() -> Result<()> {
    assert_eq!(LossHistory::new(Density::Uniform, 4), None);
    let mut history = LossHistory::new(HISTORY, 4).unwrap();
    // Only the last two losses count; until each timestep has two, all are drawn alike.
    history.learn(
        &[0, 0, 0, 1, 1, 2, 2, 3],
        &[9.0, 3.0, 4.0, 0.0, 1.0, 1.0, 1.0, 2.0],
    )?;
    check(
        "uniform",
        history.density()?.probability(),
        &[0.25; 4],
        1e-15,
    );
    history.learn(&[3], &[2.0])?;
    let roots = [12.5_f64.sqrt(), 0.5_f64.sqrt(), 1.0, 2.0];
    let total: f64 = roots.iter().sum();
    let expected = roots.map(|root| 0.9 * root / total + 0.1 / 4.0);
    let density = history.density()?;
    check("learned", density.probability(), &expected, 1e-12);
    // Unbiased: the mean under these draws is the mean under uniform ones.
    let importance = density.importance(&[0, 1, 2, 3])?;
    let losses = [0.3, 7.0, 2.0, 1.1];
    let drawn: f64 = (0..4)
        .map(|t| expected[t] * importance[t] * losses[t])
        .sum();
    check("mean", &[drawn], &[losses.iter().sum::<f64>() / 4.0], 1e-12);
    let mut again = LossHistory::new(HISTORY, 4).unwrap();
    again.restore(&history.state())?;
    assert_eq!(again, history);
    Ok(())
}

#[test]
fn a_history_refuses_what_does_not_fit() -> Result<()> {
    let mut history = LossHistory::new(HISTORY, 4).unwrap();
    let refused = history.learn(&[0, 4], &[1.0, 1.0]);
    let is_named = matches!(
        refused,
        Err(Error::Timestep {
            image_idx: 1,
            t: 4.0,
            ..
        })
    );
    assert!(is_named, "{refused:?}");
    assert!(matches!(history.learn(&[0], &[]), Err(Error::Shape { .. })));
    assert!(matches!(history.restore(&[]), Err(Error::State { .. })));
    assert!(history.density()?.importance(&[4]).is_err());
    // Losses of 0 leave nothing to choose by.
    history.learn(&[0, 0, 1, 1, 2, 2, 3, 3], &[0.0; 8])?;
    check("zero", history.density()?.probability(), &[0.25; 4], 1e-15);
    Ok(())
}

/// Diverges at once.
#[derive(Debug)]
struct Wild;

impl StatefulWeighting for Wild {
    fn adjust(&self, levels: &[NoiseLevel]) -> Result<Vec<Adjustment>> {
        let wild = Adjustment {
            log_factor: 1000.0,
            penalty: 0.0,
        };
        Ok(vec![wild; levels.len()])
    }

    fn learn(&mut self, _levels: &[NoiseLevel], _errors: &[f64]) -> Result<()> {
        Ok(())
    }

    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _state: &[StateTensor]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_weight_that_diverged_is_named() -> Result<()> {
    let wild = objective(Prediction::Eps, Weighting::Simple {})?.with_stateful(Box::new(Wild));
    let x = fill(&[1, 4], DType::F32, f64::sin)?;
    let refused = wild.loss(&x, &x, &x, &[5]);
    let is_named = matches!(refused, Err(Error::LearnedWeight { t: 5, .. }));
    assert!(is_named, "{refused:?}");
    Ok(())
}
