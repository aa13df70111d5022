//! Weightings as points of one family, in every unit of the error, and what they minimize.

use p2_diffusion::{
    Density, EffectiveObjective, Error, ErrorUnit, NoiseLevel, NoiseSchedule, Objective,
    TimestepDensity,
};
use p2_diffusion::{Prediction, Result, Stage, Variance, Weighting};

use crate::support::{check, check_absolute};

/// Every weighting that is no raw kind; of those that learn, what they start with.
fn all() -> Vec<Weighting> {
    vec![
        Weighting::Simple {},
        Weighting::P2 { k: 1.0, gamma: 0.5 },
        Weighting::P2Scaled {
            k: 0.5,
            gamma: 0.7,
            s: 0.8,
        },
        Weighting::Vlb {},
        Weighting::VlbContinuous {},
        Weighting::Likelihood {},
        Weighting::MinSnr { gamma: 5.0 },
        Weighting::MaxSnr { gamma: 5.0 },
        Weighting::SoftMinSnr { gamma: 4.0 },
        Weighting::TruncatedSnr {},
        Weighting::VUniform {},
        Weighting::X0Uniform {},
        Weighting::Debiased {},
        Weighting::Edm { sigma_data: 0.5 },
        Weighting::Sigmoid { bias: 2.0 },
        Weighting::FlowLogitNormal {
            mean: 0.0,
            std: 1.0,
        },
        Weighting::FlowMode { scale: 1.29 },
        Weighting::FlowCosmap {},
        Weighting::FlowSigmaSqrt {},
        Weighting::LearnedUncertainty {
            sigma_data: 0.5,
            n_features: 16,
            lr: 0.01,
        },
        Weighting::AdaptiveBuckets {
            n_buckets: 300,
            min_log_snr: -10.0,
            max_log_snr: 10.0,
            beta: 0.99,
        },
    ]
}

const UNITS: [ErrorUnit; 6] = [
    ErrorUnit::Eps,
    ErrorUnit::X0,
    ErrorUnit::V,
    ErrorUnit::XPrev,
    ErrorUnit::EdmF { sigma_data: 0.5 },
    ErrorUnit::FlowVelocity,
];

/// How much less the log-SNR is than at the level before.
const STEP: f64 = 0.012;

/// A level with a slope and a predecessor, as schedules have them.
fn level(log_snr: f64) -> NoiseLevel {
    NoiseLevel::on_schedule(log_snr, -12.0, log_snr + STEP)
}

fn log_snrs() -> impl Iterator<Item = f64> {
    (-200..=200).map(|i| f64::from(i) / 10.0)
}

/// The error of one and the same x0_hat in a unit, per error of the image: by its definition, not by the rates.
fn error_per_x0_error(unit: ErrorUnit, log_snr: f64) -> f64 {
    let snr = log_snr.exp();
    let (alpha, sigma) = ((snr / (1.0 + snr)).sqrt(), (1.0 / (1.0 + snr)).sqrt());
    match unit {
        // eps_hat = (x_t - alpha x0_hat) / sigma
        ErrorUnit::Eps => -alpha / sigma,
        ErrorUnit::X0 => 1.0,
        // v_hat = alpha eps_hat - sigma x0_hat
        ErrorUnit::V => -alpha * alpha / sigma - sigma,
        // The mean of the posterior is posterior_mean_x0 x0_hat + posterior_mean_x_t x_t.
        ErrorUnit::XPrev => {
            let before = (log_snr + STEP).exp();
            let alpha_bar_before = before / (1.0 + before);
            // 1 - alpha_bar / alpha_bar_before, without cancellation at either end.
            let beta = (before - snr) / (before * (1.0 + snr));
            beta * alpha_bar_before.sqrt() / (sigma * sigma)
        }
        // D = c_skip x + c_out F, at noise of standard deviation 1 / sqrt(S)
        ErrorUnit::EdmF { sigma_data } => {
            let noise = snr.sqrt().recip();
            (noise * noise + sigma_data * sigma_data).sqrt() / (noise * sigma_data)
        }
        // u_hat = (x_t - x0_hat) / t
        ErrorUnit::FlowVelocity => -(1.0 + snr.sqrt()),
    }
}

#[test]
fn the_gradient_of_one_denoiser_is_the_same_in_all_units() {
    for weighting in all() {
        for log_snr in log_snrs() {
            // d/dx0_hat of weight * error^2, with an error of the image of 1.
            let gradient = |unit: ErrorUnit| {
                let factor = error_per_x0_error(unit, log_snr);
                2.0 * weighting.log_weight(unit, level(log_snr)).exp() * factor * factor
            };
            let got: Vec<f64> = UNITS.into_iter().map(gradient).collect();
            check(
                &format!("{weighting:?} at {log_snr}"),
                &got,
                &[got[0]; 6],
                1e-6,
            );
            assert!(
                got[0] > 0.0 && got[0].is_finite(),
                "{weighting:?} at {log_snr}"
            );
        }
    }
}

#[test]
fn members_of_the_family_differ_by_a_constant() {
    let scaled = |k, gamma, s| Weighting::P2Scaled { k, gamma, s };
    let (bias, sigma_data) = (1.3_f64, 0.5_f64);
    for (member, k, gamma, s, constant) in [
        (Weighting::SoftMinSnr { gamma: 4.0 }, 4.0, 1.0, 1.0, 4.0),
        (Weighting::Simple {}, 3.0, 0.0, 1.0, 1.0),
        (Weighting::Debiased {}, 0.0, 0.5, 1.0, 1.0),
        (Weighting::VUniform {}, 1.0, -1.0, -1.0, 1.0),
        (Weighting::P2 { k: 0.7, gamma: 0.8 }, 0.7, 0.8, 1.0, 1.0),
        (
            Weighting::Edm { sigma_data },
            sigma_data * sigma_data,
            -1.0,
            -1.0,
            1.0 / (sigma_data * sigma_data),
        ),
        // The slope of the schedule is the same at all levels here: -12.
        (
            Weighting::Sigmoid { bias },
            bias.exp(),
            1.0,
            1.0,
            6.0 * bias.exp(),
        ),
    ] {
        for log_snr in log_snrs() {
            let got = member.weight_eps(level(log_snr));
            let expected = constant * scaled(k, gamma, s).weight_eps(level(log_snr));
            check(
                &format!("{member:?} at {log_snr}"),
                &[got],
                &[expected],
                1e-12,
            );
        }
    }
}

/// Natural forms, as the papers print them, at moderate levels where they are safe to compute.
#[test]
fn weights_are_those_of_the_papers() {
    for log_snr in [-6.0, -1.0, 0.0, 0.5, 3.0, 7.0_f64] {
        let s = log_snr.exp();
        let t = 1.0 / (1.0 + s.sqrt());
        let level = level(log_snr);
        for (weighting, unit, expected) in [
            (
                Weighting::MinSnr { gamma: 5.0 },
                ErrorUnit::Eps,
                s.min(5.0) / s,
            ),
            (Weighting::MinSnr { gamma: 5.0 }, ErrorUnit::X0, s.min(5.0)),
            (
                Weighting::MinSnr { gamma: 5.0 },
                ErrorUnit::V,
                s.min(5.0) / (s + 1.0),
            ),
            (Weighting::MaxSnr { gamma: 5.0 }, ErrorUnit::X0, s.max(5.0)),
            (
                Weighting::SoftMinSnr { gamma: 4.0 },
                ErrorUnit::X0,
                4.0 * s / (s + 4.0),
            ),
            (Weighting::TruncatedSnr {}, ErrorUnit::X0, s.max(1.0)),
            (Weighting::VUniform {}, ErrorUnit::X0, 1.0 + s),
            (Weighting::VUniform {}, ErrorUnit::V, 1.0),
            (Weighting::X0Uniform {}, ErrorUnit::X0, 1.0),
            (Weighting::Debiased {}, ErrorUnit::V, s.sqrt() / (1.0 + s)),
            (Weighting::Edm { sigma_data: 0.5 }, ErrorUnit::X0, s + 4.0),
            (
                Weighting::Edm { sigma_data: 0.5 },
                ErrorUnit::EdmF { sigma_data: 0.5 },
                1.0,
            ),
            (Weighting::Vlb {}, ErrorUnit::Eps, (STEP.exp() - 1.0) / 2.0),
            (Weighting::VlbContinuous {}, ErrorUnit::Eps, 6.0),
            (Weighting::Likelihood {}, ErrorUnit::Eps, 12.0),
            (
                Weighting::Sigmoid { bias: -1.0 },
                ErrorUnit::Eps,
                6.0 / (1.0 + (log_snr + 1.0).exp()),
            ),
            (
                Weighting::FlowSigmaSqrt {},
                ErrorUnit::FlowVelocity,
                1.0 / (t * t),
            ),
            (
                Weighting::FlowCosmap {},
                ErrorUnit::FlowVelocity,
                2.0 / (std::f64::consts::PI * (1.0 - 2.0 * t + 2.0 * t * t)),
            ),
            (
                Weighting::FlowMode { scale: 0.0 },
                ErrorUnit::FlowVelocity,
                1.0,
            ),
        ] {
            let got = weighting.log_weight(unit, level).exp();
            check(
                &format!("{weighting:?} at {log_snr}"),
                &[got],
                &[expected],
                1e-12,
            );
        }
    }
}

/// Densities over the time of a straight path have an integral of 1.
#[test]
fn flow_weights_are_densities() {
    for weighting in [
        Weighting::FlowLogitNormal {
            mean: 0.0,
            std: 1.0,
        },
        Weighting::FlowLogitNormal {
            mean: -0.5,
            std: 0.7,
        },
        Weighting::FlowMode { scale: 1.29 },
        Weighting::FlowMode { scale: -0.5 },
        Weighting::FlowCosmap {},
    ] {
        let n = 20_000;
        let at = |i: i32| {
            let t = (f64::from(i) + 0.5) / f64::from(n);
            let log_snr = 2.0 * ((1.0 - t) / t).ln();
            let level = NoiseLevel::from_log_snr(log_snr);
            weighting.log_weight(ErrorUnit::FlowVelocity, level).exp()
        };
        let integral = (0..n).map(at).sum::<f64>() / f64::from(n);
        // The density of mode sampling has poles of integrable height at both ends for some scales.
        check_absolute(&format!("{weighting:?}"), &[integral], &[1.0], 1e-3);
    }
}

fn uniform(schedule: &NoiseSchedule) -> Result<TimestepDensity> {
    TimestepDensity::new(Density::Uniform, schedule)
}

#[test]
fn shares_and_means_are_those_of_the_dossier() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    let cosine = NoiseSchedule::cosine(1000)?;
    for (schedule, gamma, mean, shares) in [
        (&linear, 0.0, 1.0, [0.259, 0.415, 0.326]),
        (&linear, 0.5, 0.80589, [0.1256, 0.4703, 0.4041]),
        (&linear, 1.0, 0.72449, [0.0693, 0.4816, 0.4491]),
        (&linear, 2.0, 0.64243, [0.0249, 0.4697, 0.5054]),
        (&cosine, 0.0, 1.0, [0.496, 0.440, 0.064]),
        (&cosine, 0.5, 0.64195, [0.2929, 0.6075, 0.0995]),
        (&cosine, 1.0, 0.50442, [0.1819, 0.6916, 0.1265]),
        (&cosine, 2.0, 0.37846, [0.0758, 0.7562, 0.1680]),
    ] {
        let p2 = Weighting::P2 { k: 1.0, gamma };
        let objective =
            EffectiveObjective::new(schedule, &uniform(schedule)?, |level| p2.weight_eps(level))?;
        check_absolute("mean", &[objective.mean_weight()], &[mean], 5e-6);
        let got = Stage::ALL.map(|stage| objective.share(stage));
        check_absolute("shares", &got, &shares, 5.1e-5);
    }
    Ok(())
}

#[test]
fn the_peak_of_p2_on_the_cosine_schedule_is_known() -> Result<()> {
    let cosine = NoiseSchedule::cosine(1000)?;
    for gamma in [0.0, 0.5, 1.0, 2.0] {
        let p2 = Weighting::P2 { k: 1.0, gamma };
        let objective =
            EffectiveObjective::new(&cosine, &uniform(&cosine)?, |level| p2.weight_eps(level))?;
        let expected = -(1.0 + 2.0 * gamma).ln();
        check_absolute("peak", &[objective.peak_log_snr()], &[expected], 0.01);
        let density = objective.density();
        let log_snr = cosine.log_snr();
        let integral: f64 = (1..1000)
            .map(|t| 0.5 * (density[t] + density[t - 1]) * (log_snr[t - 1] - log_snr[t]))
            .sum();
        check_absolute("integral", &[integral], &[1.0], 0.01);
    }
    Ok(())
}

/// At an SNR of 1e-30 and 1e30 every pair has a finite weight and gradient; at 0 a finite one or none.
#[test]
fn extreme_levels_have_finite_weights_or_are_refused() {
    for weighting in all() {
        for unit in UNITS {
            for log_snr in [1e-30_f64.ln(), 1e30_f64.ln()] {
                let log_weight = weighting.log_weight(unit, level(log_snr));
                let factor = error_per_x0_error(unit, log_snr);
                let gradient = 2.0 * log_weight.exp() * factor * factor;
                assert!(
                    log_weight.exp().is_finite() && gradient.is_finite(),
                    "{weighting:?} in {unit:?} at {log_snr}"
                );
            }
            let pure_noise = NoiseLevel::on_schedule(f64::NEG_INFINITY, f64::NEG_INFINITY, -8.0);
            let log_weight = weighting.log_weight(unit, pure_noise);
            assert!(!log_weight.is_nan(), "{weighting:?} in {unit:?} at 0");
        }
    }
}

/// The bound's last term on a schedule that ends in pure noise is half the SNR before it, on the x0 error.
#[test]
fn the_last_term_of_the_bound_is_finite_on_x0() {
    let pure_noise = NoiseLevel::on_schedule(f64::NEG_INFINITY, f64::NEG_INFINITY, -8.0);
    let weight = |unit| Weighting::Vlb {}.log_weight(unit, pure_noise).exp();
    let expected = 0.5 * (-8.0_f64).exp();
    check("x0", &[weight(ErrorUnit::X0)], &[expected], 1e-9);
    check("v", &[weight(ErrorUnit::V)], &[expected], 1e-9);
    assert_eq!(weight(ErrorUnit::Eps), f64::INFINITY);
}

#[test]
fn pairs_have_their_limit_at_zero_snr_or_are_refused() -> Result<()> {
    // Ends in pure noise: the last beta is 1.
    let mut betas = NoiseSchedule::linear(100)?.beta().to_vec();
    betas[99] = 1.0;
    let schedule = NoiseSchedule::from_betas(betas)?;
    let objective = |weighting, prediction| {
        Objective::new(&schedule, prediction, Variance::FixedSmall, weighting)
    };
    for weighting in [
        Weighting::Simple {},
        Weighting::P2 { k: 1.0, gamma: 1.0 },
        Weighting::MinSnr { gamma: 5.0 },
        Weighting::SoftMinSnr { gamma: 4.0 },
        Weighting::Debiased {},
    ] {
        let weights = objective(weighting, Prediction::V)?;
        assert_eq!(weights.weight_target()[99], 0.0, "{weighting:?}");
        let refused = objective(weighting, Prediction::Eps);
        assert!(matches!(refused, Err(Error::ZeroSnr { t: 99 })));
    }
    for weighting in [Weighting::VUniform {}, Weighting::TruncatedSnr {}] {
        check(
            "1 on v",
            &[objective(weighting, Prediction::V)?.weight_target()[99]],
            &[1.0],
            1e-12,
        );
        check(
            "1 on x0",
            &[objective(weighting, Prediction::X0)?.weight_target()[99]],
            &[1.0],
            1e-12,
        );
    }
    // The slope of the SNR ends with the SNR.
    for weighting in [
        Weighting::VlbContinuous {},
        Weighting::Sigmoid { bias: 0.0 },
    ] {
        let weights = objective(weighting, Prediction::V)?;
        assert_eq!(weights.weight_target()[99], 0.0, "{weighting:?}");
    }
    Ok(())
}
