//! Mistakes in the weightings of other trainers, next to the right numbers: they are not made here.

use candle_core::{Device, Tensor};
use p2_diffusion::{
    Density, Error, ErrorUnit, NoiseLevel, NoiseSchedule, Objective, Prediction, Result,
    TimestepDensity, Variance, Weighting,
};

use crate::support::{check, values};

/// The weight at an SNR, with a slope and a predecessor as schedules have them.
fn weight(weighting: Weighting, unit: ErrorUnit, snr: f64) -> f64 {
    let level = NoiseLevel::on_schedule(snr.ln(), -12.0, snr.ln() + 0.012);
    weighting.log_weight(unit, level).exp()
}

const SNRS: [f64; 4] = [0.1, 1.0, 10.0, 100.0];

/// Scripts of Diffusers add 1 to the eps weight of min-SNR for v, and use the eps weight for x0.
#[test]
fn min_snr_is_converted() {
    let min_snr = Weighting::MinSnr { gamma: 5.0 };
    let raw = Weighting::DiffusersVMinSnr { gamma: 5.0 };
    for snr in SNRS {
        let theirs = snr.min(5.0) / snr + 1.0;
        let right = snr.min(5.0) / (snr + 1.0);
        check("v", &[weight(min_snr, ErrorUnit::V, snr)], &[right], 1e-12);
        check(
            "theirs",
            &[weight(raw, ErrorUnit::V, snr)],
            &[theirs],
            1e-12,
        );
        assert!((theirs - right).abs() > 0.5);
        check(
            "x0",
            &[weight(min_snr, ErrorUnit::X0, snr)],
            &[snr.min(5.0)],
            1e-12,
        );
        // SpeeD's baseline has the number for v, over an extra S + 1, where eps is predicted.
        check(
            "eps",
            &[weight(min_snr, ErrorUnit::Eps, snr)],
            &[snr.min(5.0) / snr],
            1e-12,
        );
        // An early min-SNR of lucidrains clamped from below: that is max-SNR.
        let max_snr = Weighting::MaxSnr { gamma: 5.0 };
        check(
            "max",
            &[weight(max_snr, ErrorUnit::X0, snr)],
            &[snr.max(5.0)],
            1e-12,
        );
    }
    // Theirs is not a number at an SNR of 0.
    let pure_noise = NoiseLevel::from_log_snr(f64::NEG_INFINITY);
    check("eps at 0", &[min_snr.weight_eps(pure_noise)], &[1.0], 1e-12);
}

/// The reference and others use the eps weight of P2 whatever is predicted.
#[test]
fn p2_is_converted() {
    let (p2, raw) = (
        Weighting::P2 { k: 1.0, gamma: 1.0 },
        Weighting::P2Raw { k: 1.0, gamma: 1.0 },
    );
    for snr in SNRS {
        let at = |weighting, unit| [weight(weighting, unit, snr)];
        check("x0", &at(p2, ErrorUnit::X0), &[snr / (1.0 + snr)], 1e-12);
        check(
            "v",
            &at(p2, ErrorUnit::V),
            &[snr / (1.0 + snr).powi(2)],
            1e-12,
        );
        check(
            "raw on v",
            &at(raw, ErrorUnit::V),
            &[1.0 / (1.0 + snr)],
            1e-12,
        );
        // One program has 1 / (S^gamma + k); another weighs by the SNR, which is the opposite.
        let half = Weighting::P2 { k: 1.0, gamma: 0.5 };
        let slipped = 1.0 / (snr.sqrt() + 1.0);
        assert!((weight(half, ErrorUnit::Eps, snr) - slipped).abs() > 0.005);
        assert!(weight(half, ErrorUnit::Eps, snr) > weight(half, ErrorUnit::Eps, 1.1 * snr));
    }
}

/// OneTrainer's P2 has a gamma of 5 by default, and one more 1 for v.
#[test]
fn onetrainer_p2_is_a_kind_of_its_own() {
    let theirs = Weighting::OnetrainerP2 { gamma: 5.0 };
    for snr in SNRS {
        let at = |unit| [weight(theirs, unit, snr)];
        check("eps", &at(ErrorUnit::Eps), &[(1.0 + snr).powi(-5)], 1e-12);
        check("v", &at(ErrorUnit::V), &[(2.0 + snr).powi(-5)], 1e-12);
    }
    check(
        "S = 1",
        &[weight(theirs, ErrorUnit::Eps, 1.0)],
        &[1.0 / 32.0],
        1e-12,
    );
    check(
        "S = 10",
        &[weight(theirs, ErrorUnit::Eps, 10.0)],
        &[6.2e-6],
        2e-3,
    );
}

/// Debiased on v is sqrt(S) / (1 + S); kohya has 1 / (1 + S), OneTrainer 1 / sqrt(1 + S).
#[test]
fn debiased_on_v_follows_from_its_eps_weight() {
    for snr in SNRS {
        let debiased = weight(Weighting::Debiased {}, ErrorUnit::V, snr);
        check("ours", &[debiased], &[snr.sqrt() / (1.0 + snr)], 1e-12);
        let kohya = weight(Weighting::KohyaDebiasedV {}, ErrorUnit::V, snr);
        check("kohya", &[kohya], &[1.0 / (1.0 + snr)], 1e-12);
        check("apart", &[debiased / kohya], &[snr.sqrt()], 1e-12);
    }
}

/// A clamp at 5 on 1 / c_out^2 for sigma_data = 0.4 binds everywhere (pixel-forge); the weight itself varies.
#[test]
fn edm_is_not_clamped() {
    let edm = Weighting::Edm { sigma_data: 0.4 };
    for snr in [1e-3, 1.0, 1e3] {
        let got = weight(edm, ErrorUnit::X0, snr);
        check("1 / c_out^2", &[got], &[snr + 6.25], 1e-12);
    }
}

/// SpeeD's log-normal baseline has `/ 2 * s^2` in the exponent, which multiplies by the variance.
#[test]
fn the_log_normal_density_divides_by_its_variance() -> Result<()> {
    let schedule = NoiseSchedule::karras(1000, [0.002, 80.0], 7.0)?;
    let (mean, std) = (-0.4, 0.5);
    let density = TimestepDensity::new(Density::LogNormal { mean, std }, &schedule)?;
    let levels: Vec<NoiseLevel> = schedule.noise_levels().collect();
    let per_log_snr = |t: usize| density.probability()[t] / -levels[t].dlog_snr_dt();
    let z = |t: usize| (-0.5 * levels[t].log_snr() - mean) / std;
    let expected = (0.5 * (z(300).powi(2) - z(500).powi(2))).exp();
    check(
        "ratio",
        &[per_log_snr(500) / per_log_snr(300)],
        &[expected],
        1e-9,
    );
    Ok(())
}

/// The loss is the mean of w(t) times the error, not w of the mean level times the mean error.
#[test]
fn each_image_has_its_own_weight() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
    let objective = Objective::new(&schedule, Prediction::Eps, Variance::FixedSmall, p2)?;
    let eps = Tensor::new(&[[3.0_f64], [1.0]], &Device::Cpu)?;
    let zeros = eps.zeros_like()?;
    let t = [10, 990];
    let loss = objective.loss(&zeros, &zeros, &eps, &t)?;
    let level = |t: u32| NoiseLevel::from_log_snr(schedule.log_snr()[t as usize]);
    let expected = [9.0 * p2.weight_eps(level(10)), p2.weight_eps(level(990))];
    check("weighted", &values(&loss.weighted)?, &expected, 1e-6);
    Ok(())
}

/// Raw kinds are refused for predictions that their program does not have with them.
#[test]
fn raw_kinds_know_their_predictions() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    for (weighting, allowed) in [
        (Weighting::P2Raw { k: 1.0, gamma: 1.0 }, [true; 4]),
        (
            Weighting::OnetrainerP2 { gamma: 1.0 },
            [true, false, true, false],
        ),
        (
            Weighting::DiffusersVMinSnr { gamma: 5.0 },
            [false, false, true, false],
        ),
        (Weighting::KohyaDebiasedV {}, [false, false, true, false]),
    ] {
        for (prediction, is_allowed) in Prediction::ALL.into_iter().zip(allowed) {
            let objective = Objective::new(&schedule, prediction, Variance::FixedSmall, weighting);
            let is_refused = matches!(objective, Err(Error::RawWeighting { .. }));
            assert_eq!(is_refused, !is_allowed, "{weighting:?} {prediction}");
        }
    }
    Ok(())
}
