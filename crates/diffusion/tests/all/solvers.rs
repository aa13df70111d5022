//! Samplers that go down a course: orders, moments, limits, and what they cost, on data known in closed form.

use std::cell::Cell;

use candle_core::{DType, Tensor};
use p2_diffusion::sampler::{
    Churn, Clip, CorrectorOptions, Course, DdimOptions, DpmOptions, EdmOptions,
    EulerAncestralOptions, FlowOptions, Order, Sde, SinglestepOptions, StepReport, Tolerance,
    UniPcOptions,
};
use p2_diffusion::{Denoised, Denoiser, Error, Levels, NoiseSchedule, Result, sampler};

use crate::support::{bits, check, check_absolute, fill, normal, values};

/// A mixture of Gaussians in one dimension: weight, mean and standard deviation of each.
struct Mixture {
    training: NoiseSchedule,
    parts: Vec<(f64, f64, f64)>,
    n_evaluations: Cell<usize>,
}

impl Mixture {
    fn new(parts: &[(f64, f64, f64)]) -> Result<Self> {
        Ok(Self {
            training: NoiseSchedule::linear(1000)?,
            parts: parts.to_vec(),
            n_evaluations: Cell::new(0),
        })
    }

    /// The mean of the images behind one number.
    fn guess(&self, x_t: f64, alpha_bar: f64) -> f64 {
        let (mut total, mut sum) = (0.0, 0.0);
        for &(weight, mean, std) in &self.parts {
            let variance = alpha_bar * std * std + 1.0 - alpha_bar;
            let distance = x_t - alpha_bar.sqrt() * mean;
            let likelihood =
                weight * (-0.5 * distance * distance / variance).exp() / variance.sqrt();
            let gain = alpha_bar.sqrt() * std * std / variance;
            total += likelihood;
            sum += likelihood * (mean + gain * distance);
        }
        sum / total
    }
}

impl Denoiser for Mixture {
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        self.n_evaluations.set(self.n_evaluations.get() + 1);
        let n_each = x_t.elem_count() / t.len();
        let guesses = values(x_t)?.into_iter().enumerate().map(|(i, x)| {
            let alpha_bar = self.training.alpha_bar_at(t[i / n_each]);
            self.guess(x, alpha_bar)
        });
        let guesses = Tensor::from_vec(guesses.collect::<Vec<_>>(), x_t.shape(), x_t.device())?;
        Ok(Denoised {
            x0_hat: guesses.to_dtype(x_t.dtype())?,
            variance_mix: None,
        })
    }
}

const GAUSSIAN: [(f64, f64, f64); 1] = [(1.0, 0.3, 0.5)];
const TWO: [(f64, f64, f64); 2] = [(0.4, -0.6, 0.2), (0.6, 0.5, 0.3)];

type Noise<'a> = &'a mut dyn FnMut(usize) -> Result<Tensor>;
type Run = Box<dyn Fn(&Mixture, &Tensor, &Course, Noise<'_>) -> Result<Tensor>>;

fn quiet(_: StepReport<'_>) -> Result<()> {
    Ok(())
}

fn edm(order: Order, churn: Churn) -> Run {
    let options = EdmOptions {
        clip: Clip::Off,
        order,
        churn,
    };
    Box::new(move |best, x, course, noise| {
        sampler::edm(best, x, course, options, noise, &mut quiet)
    })
}

fn euler_ancestral(eta: f64) -> Run {
    let options = EulerAncestralOptions {
        clip: Clip::Off,
        eta,
    };
    Box::new(move |best, x, course, noise| {
        sampler::euler_ancestral(best, x, course, options, noise, &mut quiet)
    })
}

fn dpm(order: usize, eta: f64) -> Run {
    let options = DpmOptions {
        clip: Clip::Off,
        order,
        eta,
    };
    Box::new(move |best, x, course, noise| {
        sampler::dpm_multistep(best, x, course, options, noise, &mut quiet)
    })
}

fn singlestep(eta: f64) -> Run {
    let options = SinglestepOptions {
        clip: Clip::Off,
        eta,
    };
    Box::new(move |best, x, course, noise| {
        sampler::dpm_singlestep(best, x, course, options, noise, &mut quiet)
    })
}

fn unipc(order: usize) -> Run {
    let options = UniPcOptions {
        clip: Clip::Off,
        order,
    };
    Box::new(move |best, x, course, _| sampler::unipc(best, x, course, options, &mut quiet))
}

fn plms() -> Run {
    Box::new(|best, x, course, _| sampler::plms(best, x, course, Clip::Off, &mut quiet))
}

fn flow(tolerance: f64) -> Run {
    let options = FlowOptions {
        clip: Clip::Off,
        tolerance: Tolerance::of(tolerance),
    };
    Box::new(move |best, x, course, _| {
        sampler::probability_flow(best, x, course, options, &mut quiet)
    })
}

fn predictor_corrector(sde: Sde, n_corrections: usize) -> Run {
    let options = CorrectorOptions {
        clip: Clip::Off,
        sde,
        n_corrections,
        // Langevin steps are exact in the limit of small ones.
        snr: 0.03,
    };
    Box::new(move |best, x, course, noise| {
        sampler::predictor_corrector(best, x, course, options, noise, &mut quiet)
    })
}

fn no_noise(_: usize) -> Result<Tensor> {
    Err(Error::Caller("a deterministic sampler drew noise".into()))
}

/// Steps between two sigmas, even in the logarithm or in sigma itself; not to no noise, which is no power of a step.
fn course(
    training: &NoiseSchedule,
    [from, to]: [f64; 2],
    n: usize,
    is_log: bool,
) -> Result<Course> {
    let sigma = |i: usize| {
        let share = i as f64 / n as f64;
        if is_log {
            from * (to / from).powf(share)
        } else {
            from + share * (to - from)
        }
    };
    Course::from_sigmas((0..=n).map(sigma).collect(), training)
}

/// The exponent p of the error, `c h^p`.
fn order(best: &Mixture, run: &Run, ends: [f64; 2], is_log: bool) -> Result<f64> {
    let x = fill(&[5, 1], DType::F64, |i| 0.7 * i - 1.5)?;
    let training = &best.training;
    let exact = flow(1e-12)(best, &x, &course(training, ends, 1, true)?, &mut no_noise)?;
    let error = |n: usize| -> Result<f64> {
        let got = run(best, &x, &course(training, ends, n, is_log)?, &mut no_noise)?;
        let errors = values(&(got - &exact)?)?;
        Ok(errors.iter().map(|error| error.abs()).fold(0.0, f64::max))
    };
    Ok((error(128)? / error(256)?).log2())
}

#[test]
fn deterministic_samplers_have_their_order() -> Result<()> {
    for parts in [&GAUSSIAN[..], &TWO] {
        let best = Mixture::new(parts)?;
        for (name, run, expected, is_log) in [
            ("euler", edm(Order::First, Churn::NONE), 1.0, true),
            ("heun", edm(Order::Second, Churn::NONE), 2.0, true),
            ("1M", dpm(1, 0.0), 1.0, true),
            ("2M", dpm(2, 0.0), 2.0, true),
            ("3M", dpm(3, 0.0), 3.0, true),
            ("2S", singlestep(0.0), 2.0, true),
            ("UniPC 1", unipc(1), 2.0, true),
            ("UniPC 2", unipc(2), 3.0, true),
            ("UniPC 3", unipc(3), 4.0, true),
            ("PLMS", plms(), 4.0, true),
        ] {
            // Guesses hardly change at the start, where there are too few of them for the order.
            let ends = if is_log { [150.0, 0.1] } else { [5.0, 1.0] };
            let got = order(&best, &run, ends, is_log)?;
            assert!((got - expected).abs() < 0.4, "{name}: {got}");
        }
    }
    Ok(())
}

/// `x - mean` shrinks like the standard deviation of the noised data.
#[test]
fn the_probability_flow_of_a_gaussian_is_known() -> Result<()> {
    let best = Mixture::new(&GAUSSIAN)?;
    let course = course(&best.training, [20.0, 0.05], 1, true)?;
    let x_t = fill(&[4, 1], DType::F64, |i| 0.9 * i - 1.2)?;
    let got = flow(1e-10)(&best, &x_t, &course, &mut no_noise)?;
    let spread = |sigma: f64| (0.25 + sigma * sigma).sqrt();
    let total = |sigma: f64| (1.0 + sigma * sigma).sqrt();
    let expected = values(&x_t)?.into_iter().map(|x_t| {
        let x = 0.3 + (x_t * total(20.0) - 0.3) * spread(0.05) / spread(20.0);
        x / total(0.05)
    });
    check_absolute("flow", &values(&got)?, &expected.collect::<Vec<_>>(), 1e-8);
    Ok(())
}

/// Without fresh noise Euler, 1M, ancestral Euler and DDIM are one sampler.
#[test]
fn without_noise_the_stochastic_samplers_are_deterministic() -> Result<()> {
    let best = Mixture::new(&TWO)?;
    let levels = Levels::from_spec(&best.training, "20")?;
    let course = Course::through(&levels, &best.training)?;
    let x = fill(&[6, 1], DType::F64, |i| 0.5 * i - 1.3)?;
    let run = |run: Run| -> Result<Vec<f64>> { values(&run(&best, &x, &course, &mut no_noise)?) };
    let options = DdimOptions {
        clip: Clip::Off,
        eta: 0.0,
    };
    let ddim = sampler::ddim(
        &best,
        x.clone(),
        &levels,
        options,
        &mut no_noise,
        &mut quiet,
    )?;
    let ddim = values(&ddim)?;
    for (name, same) in [
        ("euler", edm(Order::First, Churn::NONE)),
        ("1M", dpm(1, 0.0)),
        ("euler-ancestral", euler_ancestral(0.0)),
    ] {
        check_absolute(name, &run(same)?, &ddim, 1e-9);
    }
    // And DDIM with noise is ancestral Euler with the same noise.
    let mut fresh = |i: usize| fill(&[6, 1], DType::F64, |j| (0.8 * j + 1.7 * i as f64).sin());
    let euler = euler_ancestral(1.0)(&best, &x, &course, &mut fresh)?;
    let options = DdimOptions {
        eta: 1.0,
        ..options
    };
    // DDIM counts levels down, the others noises up.
    let mut by_level = |i: usize| fresh(19 - i);
    let ddim = sampler::ddim(&best, x, &levels, options, &mut by_level, &mut quiet)?;
    check_absolute("eta 1", &values(&euler)?, &values(&ddim)?, 1e-9);
    Ok(())
}

/// Mean and standard deviation of Gaussian data, within four standard errors of as many numbers.
#[test]
fn stochastic_samplers_draw_the_data() -> Result<()> {
    let best = Mixture::new(&GAUSSIAN)?;
    let karras = Course::karras(600, 7.0, &best.training)?;
    let all = Course::through(&Levels::all(&best.training), &best.training)?;
    let churn = Churn {
        amount: 30.0,
        sigmas: [0.05, 50.0],
        noise: 1.0,
    };
    let shape = [100, 64];
    let n = (shape[0] * shape[1]) as f64;
    for (name, run) in [
        ("heun with churn", edm(Order::Second, churn)),
        ("euler-ancestral", euler_ancestral(1.0)),
        ("1M SDE", dpm(1, 1.0)),
        ("2M SDE", dpm(2, 1.0)),
        ("3M SDE", dpm(3, 1.0)),
        ("2S SDE", singlestep(1.0)),
        ("VP", predictor_corrector(Sde::Vp, 1)),
        ("VE", predictor_corrector(Sde::Ve, 1)),
    ] {
        // The VP SDE takes steps of even beta.
        let course = if name == "VP" { &all } else { &karras };
        let mut noise = |i: usize| normal(&shape, 1 + i as u64);
        let drawn = values(&run(&best, &normal(&shape, 0)?, course, &mut noise)?)?;
        let mean = drawn.iter().sum::<f64>() / n;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        // The standard error of a mean, and of a variance of normal numbers.
        let (of_mean, of_variance) = (0.5 / n.sqrt(), 0.25 * (2.0 / n).sqrt());
        check_absolute(name, &[mean], &[0.3], 4.0 * of_mean);
        check_absolute(name, &[variance], &[0.25], 4.0 * of_variance);
    }
    Ok(())
}

#[test]
fn evaluations_and_noises_are_what_is_said() -> Result<()> {
    let best = Mixture::new(&TWO)?;
    let course = Course::karras(10, 7.0, &best.training)?;
    let x = fill(&[2, 3], DType::F64, f64::sin)?;
    let churn = Churn {
        amount: 3.0,
        ..Churn::NONE
    };
    for (name, run, n_evaluations, n_noises) in [
        ("euler", edm(Order::First, Churn::NONE), 10, 0),
        ("heun", edm(Order::Second, churn), 19, 10),
        ("euler-ancestral", euler_ancestral(0.5), 10, 9),
        ("2M", dpm(2, 0.0), 10, 0),
        ("3M SDE", dpm(3, 0.7), 10, 9),
        ("2S", singlestep(0.0), 19, 0),
        ("2S SDE", singlestep(1.0), 19, 18),
        ("UniPC", unipc(3), 10, 0),
        ("PLMS", plms(), 10, 0),
        ("VP", predictor_corrector(Sde::Vp, 2), 28, 27),
    ] {
        best.n_evaluations.set(0);
        let mut asked = Vec::new();
        let mut noise = |i: usize| {
            asked.push(i);
            fill(&[2, 3], DType::F64, |j| (j + i as f64).cos())
        };
        let got = run(&best, &x, &course, &mut noise)?;
        assert!(values(&got)?.iter().all(|x| x.is_finite()), "{name}");
        assert_eq!(best.n_evaluations.get(), n_evaluations, "{name}");
        assert_eq!(asked, (0..n_noises).collect::<Vec<_>>(), "{name}");
    }
    Ok(())
}

#[test]
fn an_image_has_the_same_bits_in_any_batch() -> Result<()> {
    let best = Mixture::new(&TWO)?;
    let course = Course::karras(6, 7.0, &best.training)?;
    let x = fill(&[3, 5], DType::F32, |i| (1.1 * i).sin())?;
    let noise = |i: usize| fill(&[3, 5], DType::F32, |j| (0.7 * j + 2.3 * i as f64).cos());
    for run in [
        edm(
            Order::Second,
            Churn {
                amount: 2.0,
                ..Churn::NONE
            },
        ),
        euler_ancestral(1.0),
        dpm(3, 1.0),
        singlestep(0.5),
        unipc(3),
        plms(),
        predictor_corrector(Sde::Vp, 1),
    ] {
        let whole = run(&best, &x, &course, &mut |i| noise(i))?;
        for row in 0..3 {
            let mut alone = |i: usize| Ok(noise(i)?.narrow(0, row, 1)?);
            let got = run(&best, &x.narrow(0, row, 1)?, &course, &mut alone)?;
            assert_eq!(bits(&got)?, bits(&whole.narrow(0, row, 1)?)?);
        }
    }
    Ok(())
}

#[test]
fn times_and_noise_levels_are_inverse() -> Result<()> {
    for schedule in [
        NoiseSchedule::linear(1000)?,
        NoiseSchedule::cosine(1000)?.with_zero_terminal_snr()?,
    ] {
        for t in [0.0, 0.25, 17.0, 500.5, 997.9, 998.7] {
            let alpha_bar = schedule.alpha_bar_at(t);
            let got = schedule.time_of(alpha_bar.ln() - (-alpha_bar).ln_1p());
            check_absolute("time", &[got], &[t], 1e-8);
        }
        assert_eq!(schedule.time_of(1e3), 0.0);
        assert!(schedule.alpha_bar_at(-0.1).is_nan() && schedule.alpha_bar_at(999.1).is_nan());
    }
    assert_eq!(NoiseSchedule::linear(1000)?.time_of(-1e3), 999.0);
    Ok(())
}

#[test]
fn courses_and_options_without_meaning_are_refused() -> Result<()> {
    let best = Mixture::new(&GAUSSIAN)?;
    let training = &best.training;
    let refused = |sigmas: &[f64]| Course::from_sigmas(sigmas.to_vec(), training).is_err();
    assert!(refused(&[]) && refused(&[1.0]) && refused(&[1.0, 1.0]) && refused(&[1.0, -1.0]));
    assert!(refused(&[1.0, f64::NAN]) && refused(&[f64::NAN, 1.0]));
    assert!(Course::karras(0, 7.0, training).is_err() && Course::karras(5, 0.0, training).is_err());
    let pure = training.with_zero_terminal_snr()?;
    let all = Course::through(&Levels::all(&pure), &pure);
    assert!(matches!(all, Err(Error::PureNoise { t: 999 })), "{all:?}");
    let course = Course::karras(4, 7.0, training)?;
    check(
        "last",
        &course.sigmas()[3..],
        &[(1e-4_f64 / 0.9999).sqrt(), 0.0],
        1e-9,
    );
    let x = fill(&[1, 1], DType::F64, |_| 0.5)?;
    for run in [
        dpm(4, 0.0),
        dpm(2, 1.5),
        singlestep(-0.1),
        euler_ancestral(2.0),
        unipc(0),
        unipc(4),
        flow(0.0),
    ] {
        let refused = run(&best, &x, &course, &mut no_noise);
        assert!(
            matches!(refused, Err(Error::Constant { .. })),
            "{refused:?}"
        );
    }
    Ok(())
}
