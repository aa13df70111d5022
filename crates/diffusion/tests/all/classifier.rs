//! Classifier guidance where the guided distribution is known: a normal number, and a noisy sight of it as its class.

use candle_core::Tensor;
use p2_diffusion::sampler::{AncestralOptions, Clip, DdimOptions};
use p2_diffusion::{
    ClassifierGuided, Denoised, Denoiser, Error, Levels, MeanGuidance, NoiseSchedule, Result,
    Variance, condition_score, sampler,
};

use crate::support::{check_absolute, fill, values};

/// What is seen of x0, with a variance of [`SIGHT`].
const SEEN: f64 = 1.2;
const SIGHT: f64 = 0.5;

fn alpha_bar(schedule: &NoiseSchedule, t: &[f64]) -> f64 {
    schedule.alpha_bar_at(t[0])
}

/// `E[x0 given x_t]` of standard normal data.
fn denoiser(schedule: &NoiseSchedule) -> impl Fn(&Tensor, &[f64]) -> Result<Denoised> {
    let schedule = schedule.clone();
    move |x_t, t| {
        Ok(Denoised {
            x0_hat: x_t.affine(alpha_bar(&schedule, t).sqrt(), 0.0)?,
            variance_mix: None,
        })
    }
}

/// The gradient of `log p(seen given x_t)`, where x0 given x_t is normal with mean `sqrt(a) x_t` and variance `1 - a`.
fn gradient(schedule: &NoiseSchedule) -> impl Fn(&Tensor, &[f64]) -> Result<Tensor> {
    let schedule = schedule.clone();
    move |x_t, t| {
        let a = alpha_bar(&schedule, t);
        let per_distance = a.sqrt() / (1.0 - a + SIGHT);
        Ok(x_t.affine(-per_distance * a.sqrt(), per_distance * SEEN)?)
    }
}

fn guided(schedule: &NoiseSchedule, scale: f64) -> impl Denoiser {
    ClassifierGuided {
        denoiser: denoiser(schedule),
        gradient: gradient(schedule),
        scale,
        clip: Clip::Off,
        schedule: schedule.clone(),
    }
}

/// Mean and variance of what a linear sampler makes of normal noise: see `samplers.rs`.
fn moments(
    n_steps: usize,
    run: impl Fn(Tensor, &mut dyn FnMut(usize) -> Result<Tensor>) -> Result<Tensor>,
) -> Result<[f64; 2]> {
    let shape = [n_steps + 2, 1];
    let one_at = |place: usize| {
        fill(&shape, candle_core::DType::F64, move |j| {
            f64::from(u8::from(j == place as f64))
        })
    };
    let ends = values(&run(one_at(n_steps)?, &mut |i| one_at(i))?)?;
    let mean = ends[n_steps + 1];
    let variance = ends.iter().map(|end| (end - mean).powi(2)).sum();
    Ok([mean, variance])
}

/// x0 given what is seen of it.
const POSTERIOR: [f64; 2] = [SEEN / (1.0 + SIGHT), SIGHT / (1.0 + SIGHT)];

#[test]
fn the_guided_guess_is_that_of_one_who_knows_the_class() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x_t = fill(&[7, 1], candle_core::DType::F64, |i| 0.7 * i - 2.0)?;
    for t in [0.0, 10.5, 250.0, 999.0] {
        let a = schedule.alpha_bar_at(t);
        let guess = guided(&schedule, 1.0).denoise(&x_t, &[t; 7])?.x0_hat;
        // The mean of a normal number with mean m and variance 1 - a, seen with the variance SIGHT.
        let known = values(&x_t)?.into_iter().map(|x| {
            let m = a.sqrt() * x;
            m + (1.0 - a) / (1.0 - a + SIGHT) * (SEEN - m)
        });
        let known: Vec<f64> = known.collect();
        check_absolute("guess", &values(&guess)?, &known, 1e-12);
    }
    Ok(())
}

#[test]
fn samplers_draw_from_the_class() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let levels = Levels::all(&schedule);
    let ddim = DdimOptions {
        clip: Clip::Off,
        eta: 0.0,
    };
    let by_score = guided(&schedule, 1.0);
    let got = moments(1000, |x, noise| {
        sampler::ddim(&by_score, x, &levels, ddim, noise, &mut |_| Ok(()))
    })?;
    check_absolute("score, ddim", &got, &POSTERIOR, 0.01);
    let options = AncestralOptions {
        clip: Clip::Off,
        variance: Variance::FixedLarge,
    };
    let got = moments(1000, |x, noise| {
        sampler::ancestral(&by_score, x, &levels, options, noise, &mut |_| Ok(()))
    })?;
    check_absolute("score, ancestral", &got, &POSTERIOR, 0.01);
    for at_mean in [false, true] {
        let guidance = MeanGuidance {
            gradient: gradient(&schedule),
            scale: 1.0,
            at_mean,
        };
        let denoiser = denoiser(&schedule);
        let got = moments(1000, |x, noise| {
            let how = (&denoiser, &guidance);
            sampler::ancestral_guided(how, x, &levels, options, noise, &mut |_| Ok(()))
        })?;
        check_absolute("mean", &got, &POSTERIOR, 0.01);
    }
    Ok(())
}

/// With steps that are not small the place where the gradient is taken counts: the derivation's is the better one.
#[test]
fn the_gradient_at_the_mean_is_the_better_one() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let levels = Levels::from_spec(&schedule, "20")?;
    let options = AncestralOptions {
        clip: Clip::Off,
        variance: Variance::FixedLarge,
    };
    let denoiser = denoiser(&schedule);
    let got = |at_mean: bool| {
        let guidance = MeanGuidance {
            gradient: gradient(&schedule),
            scale: 1.0,
            at_mean,
        };
        moments(20, |x, noise| {
            let how = (&denoiser, &guidance);
            sampler::ancestral_guided(how, x, &levels, options, noise, &mut |_| Ok(()))
        })
    };
    let error = |[mean, variance]: [f64; 2]| {
        (mean - POSTERIOR[0])
            .abs()
            .max((variance - POSTERIOR[1]).abs())
    };
    let (at_image, at_mean) = (error(got(false)?), error(got(true)?));
    assert!(at_mean < 0.9 * at_image, "{at_mean} {at_image}");
    Ok(())
}

#[test]
fn a_scale_of_0_is_no_guidance_and_pure_noise_has_none() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x_t = fill(&[3, 1], candle_core::DType::F64, |i| i - 1.0)?;
    let t = [400.0; 3];
    let alone = denoiser(&schedule)(&x_t, &t)?.x0_hat;
    let unmoved = guided(&schedule, 0.0).denoise(&x_t, &t)?.x0_hat;
    assert_eq!(values(&alone)?, values(&unmoved)?);
    let ends_in_noise = schedule.with_zero_terminal_snr()?;
    let denoised = Denoised {
        x0_hat: alone,
        variance_mix: None,
    };
    let error = condition_score(&ends_in_noise, &denoised, &x_t, &[999_u32; 3], Clip::Off);
    assert!(matches!(error, Err(Error::ZeroSnr { t: 999 })), "{error:?}");
    Ok(())
}
