//! How often timesteps are drawn.

use p2_diffusion::{Density, EffectiveObjective, Error, NoiseSchedule, Result, TimestepDensity};

use crate::support::{check, check_absolute};

#[test]
fn uniform_timesteps_are_equally_likely() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let density = TimestepDensity::new(Density::Uniform, &schedule)?;
    let mut counts = vec![0; 1000];
    for draw in 0..7000 {
        counts[density.timestep((f64::from(draw) + 0.5) / 7000.0)? as usize] += 1;
    }
    assert!(counts.iter().all(|&count| count == 7));
    assert_eq!(density.timestep(0.0)?, 0);
    assert_eq!(density.timestep(1.0_f64.next_down())?, 999);
    for u in [1.0, -1e-9, f64::NAN] {
        let refused = density.timestep(u);
        assert!(matches!(refused, Err(Error::Uniform { .. })), "{u}");
    }
    Ok(())
}

/// Even draws have the moments of the density, on any schedule that reaches far enough.
#[test]
fn levels_have_the_moments_of_their_density() -> Result<()> {
    for schedule in [
        NoiseSchedule::cosine(4000)?,
        NoiseSchedule::karras(4000, [1e-4, 1e4], 7.0)?,
        NoiseSchedule::karras(4000, [1e-4, 1e4], 7.0)?.with_zero_terminal_snr()?,
    ] {
        for (density, mean, deviation) in [
            (
                Density::LogNormal {
                    mean: -0.4,
                    std: 0.6,
                },
                0.8,
                1.2,
            ),
            // A Laplace density of scale b has a standard deviation of b sqrt(2).
            (
                Density::Laplace {
                    mean: 0.3,
                    scale: 0.5,
                },
                0.3,
                0.5 * 2.0_f64.sqrt(),
            ),
        ] {
            let density = TimestepDensity::new(density, &schedule)?;
            let n = 100_000;
            let mut log_snr = Vec::with_capacity(n);
            for draw in 0..n {
                let t = density.timestep((draw as f64 + 0.5) / n as f64)?;
                log_snr.push(schedule.log_snr()[t as usize]);
            }
            let got = log_snr.iter().sum::<f64>() / n as f64;
            let variance = log_snr.iter().map(|l| (l - got).powi(2)).sum::<f64>() / n as f64;
            check_absolute("mean", &[got], &[mean], 0.02);
            check_absolute("deviation", &[variance.sqrt()], &[deviation], 0.02);
        }
    }
    Ok(())
}

/// SpeeD draws the first timesteps more often by a constant factor.
#[test]
fn speed_favors_the_first_timesteps() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let speed = Density::Speed {
        n_first: 700,
        ratio: 5.0,
    };
    let density = TimestepDensity::new(speed, &schedule)?;
    let probability = density.probability();
    check("sum", &[probability.iter().sum()], &[1.0], 1e-12);
    check(
        "ratio",
        &[probability[699] / probability[700]],
        &[5.0],
        1e-12,
    );
    // 700 of 5 and 300 of 1: 3500 of 3800 draws fall on the first.
    assert_eq!(density.timestep(3500.0 / 3800.0 - 1e-9)?, 699);
    assert_eq!(density.timestep(3500.0 / 3800.0 + 1e-9)?, 700);
    Ok(())
}

/// Drawing by a density and weighing by 1 is the objective of drawing evenly and weighing by the density.
#[test]
fn a_density_and_a_weight_make_the_objective_together() -> Result<()> {
    let schedule = NoiseSchedule::cosine(1000)?;
    let uniform = TimestepDensity::new(Density::Uniform, &schedule)?;
    let laplace = Density::Laplace {
        mean: 0.0,
        scale: 0.5,
    };
    let drawn = TimestepDensity::new(laplace, &schedule)?;
    let by_density = EffectiveObjective::new(&schedule, &drawn, |_| 1.0)?;
    let by_weight = EffectiveObjective::new(&schedule, &uniform, |level| {
        (-level.log_snr().abs() / 0.5).exp() * level.dlog_snr_dt().abs()
    })?;
    check("mass", by_density.mass(), by_weight.mass(), 1e-9);
    check_absolute("peak", &[by_density.peak_log_snr()], &[0.0], 0.01);
    Ok(())
}

#[test]
fn constants_without_meaning_are_refused() -> Result<()> {
    let schedule = NoiseSchedule::linear(100)?;
    for (name, density) in [
        (
            "std",
            Density::LogNormal {
                mean: 0.0,
                std: 0.0,
            },
        ),
        (
            "mean",
            Density::Laplace {
                mean: f64::NAN,
                scale: 1.0,
            },
        ),
        (
            "scale",
            Density::Laplace {
                mean: 0.0,
                scale: -1.0,
            },
        ),
        (
            "ratio",
            Density::Speed {
                n_first: 10,
                ratio: 0.0,
            },
        ),
    ] {
        let refused = TimestepDensity::new(density, &schedule);
        let is_named = matches!(&refused, Err(Error::Constant { name: got, .. }) if *got == name);
        assert!(is_named, "{name}: {refused:?}");
    }
    let far = Density::LogNormal {
        mean: 1e4,
        std: 0.1,
    };
    let refused = TimestepDensity::new(far, &schedule);
    assert!(matches!(refused, Err(Error::NoObjective { .. })));
    Ok(())
}

/// The densities of a straight path's time, by the formulas that they are drawn with.
#[test]
fn densities_of_the_time_are_those_of_their_draws() -> Result<()> {
    let schedule = NoiseSchedule::karras(20_000, [1e-4, 1e4], 7.0)?;
    let at = |density, u: f64| -> Result<f64> {
        let t = TimestepDensity::new(density, &schedule)?.timestep(u)?;
        // On a straight path the ratio of noise to signal is t / (1 - t).
        Ok(1.0 / (1.0 + (0.5 * schedule.log_snr()[t as usize]).exp()))
    };
    for u in [0.1, 0.3, 0.5, 0.8, 0.95] {
        for scale in [-0.9, 0.0, 1.29] {
            // Time falls with this u, timesteps rise with that of `timestep`.
            let mirrored = 1.0 - u;
            let bent = (std::f64::consts::FRAC_PI_2 * mirrored).cos().powi(2) - 1.0 + mirrored;
            let expected = 1.0 - mirrored - scale * bent;
            let got = at(Density::FlowMode { scale }, u)?;
            check_absolute("mode", &[got], &[expected], 2e-3);
        }
        let expected = 1.0 - 1.0 / ((std::f64::consts::FRAC_PI_2 * u).tan() + 1.0);
        check_absolute("cosmap", &[at(Density::FlowCosmap, u)?], &[expected], 2e-3);
    }
    let refused = TimestepDensity::new(Density::FlowMode { scale: 1.8 }, &schedule);
    assert!(matches!(
        refused,
        Err(Error::Constant { name: "scale", .. })
    ));
    Ok(())
}
