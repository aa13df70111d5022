//! Numbers of the two published schedules, of P2 weights on them, and of respacing.

use p2_diffusion::{
    Error, Levels, NoiseLevel, NoiseSchedule, Result, Stage, Weighting, space_timesteps,
};

use crate::support::{check, check_absolute};

fn p2_weights(schedule: &NoiseSchedule, gamma: f64) -> Vec<f64> {
    let p2 = Weighting::P2 { k: 1.0, gamma };
    schedule
        .noise_levels()
        .map(|level| p2.weight_eps(level))
        .collect()
}

/// Share of the sum that falls on each stage.
fn shares(schedule: &NoiseSchedule, weights: &[f64]) -> [f64; 3] {
    let total: f64 = weights.iter().sum();
    Stage::ALL.map(|stage| {
        let timesteps = stage.timesteps(schedule);
        let part = &weights[timesteps.start as usize..timesteps.end as usize];
        part.iter().sum::<f64>() / total
    })
}

fn vlb_weights(schedule: &NoiseSchedule, gamma: f64) -> Vec<f64> {
    let multiplier = schedule.vlb_multiplier();
    let weights = p2_weights(schedule, gamma);
    multiplier.iter().zip(weights).map(|(m, w)| m * w).collect()
}

fn peak(values: &[f64]) -> Option<usize> {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]))
}

#[test]
fn schedules() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    let cosine = NoiseSchedule::cosine(1000)?;
    let at = |t: &[usize]| -> Vec<f64> { t.iter().map(|&t| linear.alpha_bar()[t]).collect() };
    check(
        "alpha_bar",
        &at(&[0, 250, 500]),
        &[0.9999, 0.521423, 0.0777967],
        1e-6,
    );
    check("last", &at(&[999]), &[4.035829765e-5], 1e-9);
    check(
        "betas",
        &[linear.beta()[0], linear.beta()[999]],
        &[1e-4, 0.02],
        1e-14,
    );
    check(
        "cosine",
        &[cosine.beta()[0], cosine.beta()[999]],
        &[4.128422482e-5, 0.999],
        1e-9,
    );
    check("cosine", &[cosine.alpha_bar()[500]], &[0.492285], 1e-6);
    let clipped = linear.posterior_log_variance_clipped();
    check("clipped", &clipped[..2], &[-9.81672514, -9.81672514], 1e-9);
    check(
        "variance",
        &linear.posterior_variance()[1..2],
        &[5.45318766e-5],
        1e-8,
    );
    assert_eq!(linear.posterior_variance()[0], 0.0);
    check(
        "large",
        &linear.large_log_variance()[..2],
        &[clipped[0], linear.beta()[1].ln()],
        0.0,
    );
    let one_minus: Vec<f64> = [0, 10, 100, 250, 500, 750, 999]
        .map(|t: usize| 1.0 - linear.alpha_bar()[t])
        .to_vec();
    let expected = [
        1e-4, 0.00219343, 0.104858, 0.478577, 0.922203, 0.9967, 0.99996,
    ];
    check("1 - alpha_bar", &one_minus, &expected, 5e-6);
    Ok(())
}

#[test]
fn posterior_of_x0_and_x_t() -> Result<()> {
    // The mean of q(x_{t-1} given x_t, x0) on the noiseless path x_t = sqrt(alpha_bar) x0 stays on it.
    let schedule = NoiseSchedule::cosine(1000)?;
    let mut previous = 1.0_f64;
    for t in 0..1000 {
        let on_path = schedule.alpha_bar()[t].sqrt();
        let mean = schedule.posterior_mean_x0()[t] + schedule.posterior_mean_x_t()[t] * on_path;
        check("mean", &[mean], &[previous.sqrt()], 1e-11);
        previous = schedule.alpha_bar()[t];
    }
    Ok(())
}

#[test]
fn stages() -> Result<()> {
    #[rustfmt::skip]
    let rows = [
        (NoiseSchedule::linear(1000)?, 259, 674, 1000),
        (NoiseSchedule::cosine(1000)?, 496, 936, 1000),
        (NoiseSchedule::linear(4000)?, 1035, 2702, 4000),
    ];
    for (schedule, content, coarse, end) in rows {
        let ranges = Stage::ALL.map(|stage| stage.timesteps(&schedule));
        assert_eq!(ranges, [0..content, content..coarse, coarse..end]);
        for (t, level) in schedule.noise_levels().enumerate() {
            let here = Stage::of(level).timesteps(&schedule);
            assert!(here.contains(&(t as u32)), "t = {t}");
        }
    }
    let linear: Vec<f64> = NoiseSchedule::linear(1000)?
        .noise_levels()
        .map(NoiseLevel::snr)
        .collect();
    check("ends", &[linear[0], linear[999]], &[9999.0, 4.036e-5], 1e-4);
    check(
        "bounds",
        &[linear[259], linear[674]],
        &[0.9905, 0.009954],
        1e-4,
    );
    let cosine: Vec<f64> = NoiseSchedule::cosine(1000)?
        .noise_levels()
        .map(NoiseLevel::snr)
        .collect();
    check("ends", &[cosine[0], cosine[999]], &[24221.0, 2.43e-9], 2e-3);
    Ok(())
}

#[test]
fn p2_weights_on_the_schedules() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    let cosine = NoiseSchedule::cosine(1000)?;
    #[rustfmt::skip]
    let means = [
        (&linear, [0.80589, 0.72449, 0.64243]),
        (&cosine, [0.64195, 0.50442, 0.37846]),
    ];
    for (schedule, expected) in means {
        let mean = |gamma| p2_weights(schedule, gamma).iter().sum::<f64>() / 1000.0;
        check_absolute("mean", &[0.5, 1.0, 2.0].map(mean), &expected, 5e-6);
    }
    #[rustfmt::skip]
    let eps_shares = [
        (&linear, 0.0, [0.259, 0.415, 0.326]),
        (&linear, 0.5, [0.1256, 0.4703, 0.4041]),
        (&linear, 1.0, [0.0693, 0.4816, 0.4491]),
        (&linear, 2.0, [0.0249, 0.4697, 0.5054]),
        (&cosine, 0.0, [0.496, 0.440, 0.064]),
        (&cosine, 0.5, [0.2929, 0.6075, 0.0995]),
        (&cosine, 1.0, [0.1819, 0.6916, 0.1265]),
        (&cosine, 2.0, [0.0758, 0.7562, 0.1680]),
    ];
    for (schedule, gamma, expected) in eps_shares {
        let got = shares(schedule, &p2_weights(schedule, gamma));
        check_absolute("share of weight", &got, &expected, 6e-5);
    }
    #[rustfmt::skip]
    let vlb_shares = [
        (&linear, 0.0, [0.206, 0.525, 0.269]),
        (&linear, 1.0, [0.072, 0.574, 0.354]),
        (&cosine, 0.0, [0.501, 0.490, 0.010]),
        (&cosine, 1.0, [0.251, 0.730, 0.019]),
    ];
    for (schedule, gamma, expected) in vlb_shares {
        let got = shares(schedule, &vlb_weights(schedule, gamma));
        check_absolute("share of the bound", &got, &expected, 6e-4);
    }
    Ok(())
}

#[test]
fn weights_in_units_of_the_bound() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    let baseline = linear.vlb_multiplier();
    let spots = [100, 500, 900].map(|t: usize| baseline[t]);
    check_absolute("lambda_t", &spots, &[50.02, 90.75, 54.45], 6e-3);
    let slope = |t: usize| 1.0 / (linear.log_snr()[t - 1] - linear.log_snr()[t]);
    check_absolute(
        "slope",
        &[100, 500, 900].map(slope),
        &[49.62, 91.17, 54.95],
        6e-3,
    );
    assert_eq!(peak(&baseline), Some(348));
    check_absolute("peak", &[baseline[348]], &[100.65], 6e-3);
    check_absolute(
        "snr at the peak",
        &[linear.log_snr()[348].exp()],
        &[0.403],
        6e-4,
    );
    for (gamma, expected) in [(0.5, 430), (1.0, 477), (2.0, 534)] {
        assert_eq!(peak(&vlb_weights(&linear, gamma)), Some(expected));
    }
    for (gamma, first_above, gain) in [(0.5, 350, 1.182), (1.0, 372, 1.318)] {
        let p2 = vlb_weights(&linear, gamma);
        let ratio = baseline.iter().sum::<f64>() / p2.iter().sum::<f64>();
        let is_above: Vec<bool> = (0..1000).map(|t| p2[t] * ratio > baseline[t]).collect();
        assert_eq!(is_above.iter().position(|&above| above), Some(first_above));
        assert!(is_above[first_above..].iter().all(|&above| above));
        check_absolute("gain", &[ratio], &[gain], 6e-4);
    }
    Ok(())
}

#[test]
fn respacing() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    #[rustfmt::skip]
    let rows = [
        ("250", 250, 124_875, 9.84995008),
        ("25", 25, 12_487, 7.79302937),
        ("ddim25", 25, 12_000, 7.33411048),
    ];
    for (spec, n_steps, index_sum, beta_sum) in rows {
        let levels = Levels::from_spec(&training, spec)?;
        assert_eq!(levels.n_steps(), n_steps);
        assert_eq!(levels.timesteps().iter().sum::<u32>(), index_sum);
        check(
            spec,
            &[levels.schedule().beta().iter().sum()],
            &[beta_sum],
            1e-8,
        );
        let kept = levels.timesteps().iter().zip(levels.schedule().alpha_bar());
        for (&t, &alpha_bar) in kept {
            assert_eq!(alpha_bar, training.alpha_bar()[t as usize]);
        }
    }
    let all = space_timesteps("250", &training)?;
    assert_eq!(all[..6], [0, 4, 8, 12, 16, 20]);
    assert_eq!(all[247..], [991, 995, 999]);
    assert_eq!((all[100], all[200]), (401, 802));
    let three = space_timesteps("10,10,10", &training)?;
    assert_eq!((three.len(), &three[..3]), (30, &[0, 37, 74][..]));
    assert_eq!(
        [three[9], three[10], three[19], three[20], three[29]],
        [333, 334, 666, 667, 999]
    );
    assert_eq!(space_timesteps("1", &training)?, [0]);
    assert_eq!(space_timesteps("", &training)?.len(), 1000);
    assert_eq!(
        Levels::from_spec(&training, "1000")?.timesteps(),
        Levels::all(&training).timesteps()
    );
    Ok(())
}

#[test]
fn respacing_rounds_half_to_even() -> Result<()> {
    // Over 0 to 5 in 3 steps: 0, 2.5, 5.
    let training = NoiseSchedule::from_betas(vec![0.1; 6])?;
    assert_eq!(space_timesteps("3", &training)?, [0, 2, 5]);
    // Over 0 to 7 in 3 steps: 0, 3.5, 7.
    let training = NoiseSchedule::from_betas(vec![0.1; 8])?;
    assert_eq!(space_timesteps("3", &training)?, [0, 4, 7]);
    Ok(())
}

#[test]
fn ddim_strides() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    for n_steps in [10, 20, 25, 30, 40, 50, 100, 200, 250, 334, 500, 1000] {
        let spec = format!("ddim{n_steps}");
        assert_eq!(space_timesteps(&spec, &training)?.len(), n_steps);
    }
    assert_eq!(space_timesteps("ddim30", &training)?[..2], [0, 34]);
    assert_eq!(space_timesteps("ddim25", &training)?.last(), Some(&960));
    for n_steps in [60, 75, 80, 300] {
        let spec = format!("ddim{n_steps}");
        let refused = space_timesteps(&spec, &training);
        assert!(matches!(refused, Err(Error::Respacing { .. })), "{spec}");
    }
    Ok(())
}
