//! Schedules given by their log-SNR, and changes of one.

use p2_diffusion::{
    Density, EffectiveObjective, Error, NoiseSchedule, Objective, Prediction, Result, Stage,
    TimestepDensity, Variance, Weighting,
};

use crate::support::{check, check_absolute};

#[test]
fn sigmoid_falls_from_one_to_zero_around_its_middle() -> Result<()> {
    let schedule = NoiseSchedule::sigmoid(1000, [-3.0, 3.0], 1.0)?;
    let alpha_bar = schedule.alpha_bar();
    // By the symmetry of the sigmoid, with levels at (t + 1/2) / 1000.
    for t in [0, 100, 400] {
        check(
            "mirrored",
            &[alpha_bar[t] + alpha_bar[999 - t]],
            &[1.0],
            1e-12,
        );
    }
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let expected = (sigmoid(3.0) - sigmoid(-3.0 + 0.2505 * 6.0)) / (sigmoid(3.0) - sigmoid(-3.0));
    check("t = 250", &[alpha_bar[250]], &[expected], 1e-12);
    Ok(())
}

/// The ends and the middle of Karras et al. 2022, eq. 5, as noise per unit of data.
#[test]
fn karras_has_the_sigmas_of_its_paper() -> Result<()> {
    let schedule = NoiseSchedule::karras(1001, [0.002, 80.0], 7.0)?;
    let sigma = |t: usize| (-0.5 * schedule.log_snr()[t]).exp();
    let middle = (0.5 * (0.002_f64.powf(1.0 / 7.0) + 80.0_f64.powf(1.0 / 7.0))).powi(7);
    // alpha_bar is 1 - 4e-6 at the first level, so that 1 - alpha_bar has lost 6 digits.
    let got = [sigma(0), sigma(500), sigma(1000)];
    check("sigmas", &got, &[0.002, middle, 80.0], 1e-9);
    Ok(())
}

#[test]
fn log_normal_levels_have_its_mean_and_deviation() -> Result<()> {
    let schedule = NoiseSchedule::log_normal(4000, -1.2, 1.2)?;
    let log_sigma: Vec<f64> = schedule.log_snr().iter().map(|l| -0.5 * l).collect();
    let mean = log_sigma.iter().sum::<f64>() / 4000.0;
    let variance = log_sigma.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / 4000.0;
    check_absolute("mean", &[mean], &[-1.2], 1e-9);
    // The tails beyond the first and the last of 4000 quantiles are missing.
    check_absolute("deviation", &[variance.sqrt()], &[1.2], 2e-3);
    // 97.725 % of a normal distribution lies under two standard deviations above the mean.
    check_absolute("quantile", &[log_sigma[3908]], &[1.2], 5e-3);
    Ok(())
}

#[test]
fn a_shift_moves_every_level() -> Result<()> {
    let cosine = NoiseSchedule::cosine(1000)?;
    let shift = 2.0 * (64.0_f64 / 256.0).ln();
    let shifted = cosine.shifted(shift)?;
    for t in [0, 1, 500, 998] {
        let expected = cosine.log_snr()[t] + shift;
        check_absolute("log_snr", &[shifted.log_snr()[t]], &[expected], 1e-9);
    }
    Ok(())
}

/// Lin et al. 2023, algorithm 1: the first level stays, the last is pure noise, which eps cannot be learnt from.
#[test]
fn zero_terminal_snr_keeps_the_first_level() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    let schedule = linear.with_zero_terminal_snr()?;
    let (old, new) = (linear.alpha_bar(), schedule.alpha_bar());
    check("first", &[new[0]], &[old[0]], 1e-12);
    assert_eq!(new[999], 0.0);
    let root = |t: usize| old[t].sqrt();
    let expected = (root(500) - root(999)) * root(0) / (root(0) - root(999));
    check("t = 500", &[new[500].sqrt()], &[expected], 1e-12);
    let objective = |prediction| {
        let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
        Objective::new(&schedule, prediction, Variance::FixedSmall, p2)
    };
    assert!(matches!(
        objective(Prediction::Eps),
        Err(Error::ZeroSnr { t: 999 })
    ));
    assert!(objective(Prediction::V).is_ok() && objective(Prediction::X0).is_ok());
    // The slope of the SNR vanishes with it, so that these have a limit: 0.
    for weighting in [
        Weighting::VlbContinuous {},
        Weighting::Likelihood {},
        Weighting::Sigmoid { bias: 2.0 },
    ] {
        for prediction in [Prediction::X0, Prediction::V, Prediction::XPrev] {
            let objective = Objective::new(&schedule, prediction, Variance::FixedSmall, weighting)?;
            let weights = objective.weight_target();
            assert!(weights[999] == 0.0 && weights[998] > 0.0, "{weighting:?}");
        }
    }
    // What is minimized is known without the level that has no eps error.
    let density = TimestepDensity::new(Density::Uniform, &schedule)?;
    let v_uniform = EffectiveObjective::new(&schedule, &density, |level| {
        Weighting::VUniform {}.weight_eps(level)
    })?;
    assert_eq!(v_uniform.mass()[999], 0.0);
    assert!(v_uniform.mean_weight().is_finite());
    Ok(())
}

#[test]
fn a_refined_schedule_passes_through_its_timesteps() -> Result<()> {
    for schedule in [
        NoiseSchedule::linear(100)?,
        NoiseSchedule::cosine(100)?,
        NoiseSchedule::cosine(100)?.with_zero_terminal_snr()?,
    ] {
        let fine = schedule.refined(10)?;
        assert_eq!(fine.n_timesteps(), 991);
        for t in 0..100 {
            assert_eq!(fine.alpha_bar()[10 * t], schedule.alpha_bar()[t], "t = {t}");
        }
        let log_snr = fine.log_snr();
        assert!(log_snr.windows(2).all(|pair| pair[0] > pair[1]));
        let middle = 0.5 * (schedule.log_snr()[40] + schedule.log_snr()[41]);
        check_absolute("between", &[log_snr[405]], &[middle], 1e-9);
        // What is minimized stays what it was.
        let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
        let peak = |schedule: &NoiseSchedule| -> Result<f64> {
            let density = TimestepDensity::new(Density::Uniform, schedule)?;
            let objective = EffectiveObjective::new(schedule, &density, |l| p2.weight_eps(l))?;
            Ok(objective.share(Stage::Content))
        };
        check_absolute("content", &[peak(&fine)?], &[peak(&schedule)?], 0.01);
    }
    assert!(NoiseSchedule::linear(100)?.refined(1)? == NoiseSchedule::linear(100)?);
    Ok(())
}

#[test]
fn constants_without_meaning_are_refused() {
    for (name, schedule) in [
        ("start", NoiseSchedule::sigmoid(10, [3.0, -3.0], 1.0)),
        ("temperature", NoiseSchedule::sigmoid(10, [-3.0, 3.0], 0.0)),
        ("sigma_min", NoiseSchedule::karras(10, [0.0, 80.0], 7.0)),
        ("sigma_max", NoiseSchedule::karras(10, [1.0, 0.5], 7.0)),
        ("rho", NoiseSchedule::karras(10, [0.002, 80.0], -1.0)),
        ("mean", NoiseSchedule::log_normal(10, f64::NAN, 1.0)),
        ("std", NoiseSchedule::log_normal(10, 0.0, 0.0)),
    ] {
        let refused = matches!(&schedule, Err(Error::Constant { name: got, .. }) if *got == name);
        assert!(refused, "{name}: {schedule:?}");
    }
}
