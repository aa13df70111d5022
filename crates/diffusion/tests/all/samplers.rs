//! Samplers on Gaussian data, where the best denoiser and the result are known in closed form.

use candle_core::{DType, Device, Tensor};
use p2_diffusion::sampler::{AncestralOptions, Clip, Course, DdimOptions};
use p2_diffusion::{
    Denoised, Denoiser, Error, Levels, NetworkOutput, NoiseSchedule, Prediction, Result, Variance,
    sampler,
};

use crate::support::{check, check_absolute, fill, values};

/// Data with this mean and standard deviation.
#[derive(Clone, Copy)]
struct Gaussian {
    mean: f64,
    std: f64,
}

/// The best possible denoiser, `E[x0 given x_t]`.
struct Best {
    training: NoiseSchedule,
    data: Gaussian,
}

impl Denoiser for Best {
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        let alpha_bar = self.training.alpha_bar()[t[0] as usize];
        let (mean, variance) = (self.data.mean, self.data.std.powi(2));
        let gain = alpha_bar.sqrt() * variance / (alpha_bar * variance + 1.0 - alpha_bar);
        Ok(Denoised {
            x0_hat: x_t.affine(gain, mean - gain * alpha_bar.sqrt() * mean)?,
            variance_mix: None,
        })
    }
}

/// How a sampler is run: with which noise, from where.
type Run<'a> = &'a dyn Fn(&Best, Tensor, &mut dyn FnMut(usize) -> Result<Tensor>) -> Result<Tensor>;

/// Mean and variance of what a sampler makes of standard normal noise.
///
/// The samplers are linear here: point j of the batch gets a noise of 1 at step j and of 0 else, the last but
/// one point starts at 1 instead, and the last gets no noise at all, which gives the mean.
fn moments(best: &Best, n_steps: usize, run: Run<'_>) -> Result<[f64; 2]> {
    let mut start = vec![0.0; n_steps + 2];
    start[n_steps] = 1.0;
    let start = Tensor::from_vec(start, (n_steps + 2, 1), &Device::Cpu)?;
    let mut noise = |i: usize| -> Result<Tensor> {
        fill(&[n_steps + 2, 1], DType::F64, |j| {
            f64::from(u8::from(j == i as f64))
        })
    };
    let ends = values(&run(best, start, &mut noise)?)?;
    let mean = ends[n_steps + 1];
    let variance = ends.iter().map(|end| (end - mean).powi(2)).sum();
    Ok([mean, variance])
}

fn ancestral(
    levels: &Levels,
    variance: Variance,
) -> impl Fn(&Best, Tensor, &mut dyn FnMut(usize) -> Result<Tensor>) -> Result<Tensor> {
    let options = AncestralOptions {
        clip: Clip::Off,
        variance,
    };
    move |best, x, noise| sampler::ancestral(best, x, levels, options, noise, &mut |_| Ok(()))
}

fn ddim(
    levels: &Levels,
    eta: f64,
) -> impl Fn(&Best, Tensor, &mut dyn FnMut(usize) -> Result<Tensor>) -> Result<Tensor> {
    let options = DdimOptions {
        clip: Clip::Off,
        eta,
    };
    move |best, x, noise| sampler::ddim(best, x, levels, options, noise, &mut |_| Ok(()))
}

#[test]
fn known_moments() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    let levels = Levels::from_spec(&training, "50")?;
    let best = |mean, std| Best {
        training: training.clone(),
        data: Gaussian { mean, std },
    };
    // Standard normal data: with variance beta each step is exact; the last takes the mean,
    // sqrt(alpha_bar) x.
    let standard = best(0.0, 1.0);
    let large = ancestral(&levels, Variance::FixedLarge);
    // The step at i = 1 has beta[1], not the clipped entry; only entry 0 is clipped and never used.
    check_absolute(
        "large",
        &moments(&standard, 50, &large)?,
        &[0.0, training.alpha_bar()[0]],
        1e-12,
    );
    // A single image as data: whatever the noise, it is found.
    let point = best(0.3, 0.0);
    for variance in [Variance::FixedSmall, Variance::FixedLarge] {
        let run = ancestral(&levels, variance);
        check_absolute("point", &moments(&point, 50, &run)?, &[0.3, 0.0], 1e-12);
    }
    // Deterministic DDIM on standard normal data turns (x0_hat, eps_hat) by the angle between two levels.
    let mut previous = 1.0_f64;
    let angle_cosines = levels.schedule().alpha_bar().iter().map(|&a| {
        let cosine = (a * previous).sqrt() + ((1.0 - a) * (1.0 - previous)).sqrt();
        previous = a;
        cosine
    });
    let product: f64 = angle_cosines.product();
    let run = ddim(&levels, 0.0);
    check_absolute(
        "ddim",
        &moments(&standard, 50, &run)?,
        &[0.0, product.powi(2)],
        1e-12,
    );
    // Any data: the data's moments, as steps become small.
    let data = best(-0.4, 0.5);
    let all = Levels::all(&training);
    for (name, got) in [
        (
            "small",
            moments(&data, 1000, &ancestral(&all, Variance::FixedSmall))?,
        ),
        (
            "large",
            moments(&data, 1000, &ancestral(&all, Variance::FixedLarge))?,
        ),
        ("ddim", moments(&data, 1000, &ddim(&all, 0.0))?),
    ] {
        check_absolute(name, &got, &[-0.4, 0.25], 0.01);
    }
    Ok(())
}

#[test]
fn ddim_with_eta_1_is_ancestral_with_the_small_variance() -> Result<()> {
    let training = NoiseSchedule::cosine(1000)?;
    let levels = Levels::from_spec(&training, "20")?;
    let best = Best {
        training,
        data: Gaussian {
            mean: 0.1,
            std: 0.6,
        },
    };
    let small = moments(&best, 20, &ancestral(&levels, Variance::FixedSmall))?;
    check(
        "moments",
        &moments(&best, 20, &ddim(&levels, 1.0))?,
        &small,
        1e-10,
    );
    let deterministic = moments(&best, 20, &ddim(&levels, 0.0))?;
    assert!(
        (deterministic[1] - small[1]).abs() > 1e-3,
        "the comparison is blind"
    );
    Ok(())
}

#[test]
fn noise_and_reports_come_once_per_step() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    let levels = Levels::from_spec(&training, "4")?;
    let best = Best {
        training,
        data: Gaussian {
            mean: 0.0,
            std: 1.0,
        },
    };
    let start = Tensor::ones((1, 2), DType::F64, &Device::Cpu)?;
    for (eta, expected) in [(0.0, &[][..]), (0.5, &[3, 2, 1])] {
        let options = DdimOptions {
            clip: Clip::Pixels,
            eta,
        };
        let (mut asked, mut seen) = (Vec::new(), Vec::new());
        let mut last = Vec::new();
        let x0 = sampler::ddim(
            &best,
            start.clone(),
            &levels,
            options,
            &mut |i| {
                asked.push(i);
                Ok(start.ones_like()?)
            },
            &mut |step| {
                seen.push((step.i, step.t));
                last = values(step.x)?;
                assert!(values(step.x0_hat)?.iter().all(|x| x.abs() <= 1.0));
                Ok(())
            },
        )?;
        assert_eq!(asked, expected);
        assert_eq!(seen, [(3, 999.0), (2, 666.0), (1, 333.0), (0, 0.0)]);
        assert_eq!(last, values(&x0)?);
    }
    let options = AncestralOptions {
        clip: Clip::Off,
        variance: Variance::FixedSmall,
    };
    let mut asked = Vec::new();
    let stop_at_1 = sampler::ancestral(
        &best,
        start.clone(),
        &levels,
        options,
        &mut |i| {
            asked.push(i);
            Ok(start.ones_like()?)
        },
        &mut |step| match step.i {
            1 => Err(Error::Caller("enough".into())),
            _ => Ok(()),
        },
    );
    assert_eq!(
        stop_at_1.err().map(|error| error.to_string()),
        Some("enough".into())
    );
    assert_eq!(asked, [3, 2, 1]);
    Ok(())
}

#[test]
fn ddim_can_be_run_backwards() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    let guess = fill(&[2, 3], DType::F64, |i| (0.8 * i).sin())?;
    let x_t = fill(&[2, 3], DType::F64, |i| 1.7 * (1.1 * i).cos())?;
    let denoised = Denoised {
        x0_hat: guess,
        variance_mix: None,
    };
    let options = DdimOptions {
        clip: Clip::Off,
        eta: 0.0,
    };
    let up = sampler::ddim_reverse_step(&training, &x_t, &denoised, &[3, 700], Clip::Off)?;
    let down = sampler::ddim_step(&training, &up, &denoised, &[4, 701], options)?;
    check_absolute("x_t", &values(&down.mean)?, &values(&x_t)?, 1e-12);
    assert_ne!(values(&up)?, values(&x_t)?);
    Ok(())
}

/// The noise that DDIM would have made an image of: the error falls like the step.
#[test]
fn images_become_noise_and_come_back() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    for training in [linear.with_zero_terminal_snr()?, linear] {
        let mut errors = Vec::new();
        for n_steps in [50, 100, 200, 400] {
            errors.push(round_trip(&training, n_steps)?);
        }
        assert!(errors[3].iter().all(|&error| error < 0.03), "{errors:?}");
        for pair in errors.windows(2) {
            for (before, after) in pair[0].iter().zip(pair[1]) {
                let order = (before / after).log2();
                assert!((order - 1.0).abs() < 0.2, "{errors:?}");
            }
        }
    }
    Ok(())
}

/// The largest errors of an image that came back, and of the noise that it was.
fn round_trip(training: &NoiseSchedule, n_steps: usize) -> Result<[f64; 2]> {
    let (mean, std) = (-0.4, 0.5);
    let best = Best {
        training: training.clone(),
        data: Gaussian { mean, std },
    };
    let x0 = fill(&[7, 1], DType::F64, |i| 0.5 * i - 1.9)?;
    let levels = Levels::from_spec(training, &n_steps.to_string())?;
    let code = sampler::ddim_encode(&best, &x0, &levels)?;
    let mut no_noise = |_| Err(Error::Caller("a deterministic sampler drew noise".into()));
    let again = ddim(&levels, 0.0)(&best, code.clone(), &mut no_noise)?;
    // As many standard deviations from the mean as the image is.
    let alpha_bar = training.alpha_bar()[999];
    let noise_std = (1.0 - (1.0 - std * std) * alpha_bar).sqrt();
    let expected = x0.affine(noise_std / std, 0.0)?;
    let expected = (expected + mean * (alpha_bar.sqrt() - noise_std / std))?;
    let largest = |x: Tensor| -> Result<f64> {
        let sizes = values(&x)?.into_iter().map(f64::abs);
        Ok(sizes.fold(0.0, f64::max))
    };
    Ok([largest((again - &x0)?)?, largest((code - expected)?)?])
}

/// A run must not keep the activations of all its steps alive for a backward pass that never comes.
#[test]
fn samplers_build_no_graph() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    let levels = Levels::from_spec(&training, "3")?;
    let weight = candle_core::Var::new(&[[0.5f64]], &Device::Cpu)?;
    let network = |x_t: &Tensor, _t: &[f64]| -> Result<Denoised> {
        Ok(Denoised {
            x0_hat: x_t.broadcast_mul(&weight)?,
            variance_mix: Some(x_t.broadcast_mul(&weight)?),
        })
    };
    let options = AncestralOptions {
        clip: Clip::Off,
        variance: Variance::LearnedRange,
    };
    let start = Tensor::ones((1, 2), DType::F64, &Device::Cpu)?;
    let mut noise = |_| Ok(start.clone());
    let x0 = sampler::ancestral(
        &network,
        start.clone(),
        &levels,
        options,
        &mut noise,
        &mut |_| Ok(()),
    )?;
    assert!(!x0.track_op());
    let seen = network(&start, &[0.0])?;
    assert!(seen.x0_hat.track_op(), "the comparison is blind");
    Ok(())
}

/// A network that says the logarithm of beta draws as with the fixed large variance.
#[test]
fn a_learned_variance_is_taken_as_it_is() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x_t = fill(&[3, 2], DType::F64, |i| (1.9 * i + 0.2).sin())?;
    let t = [999, 500, 1];
    let log_variance: Vec<f64> = t
        .iter()
        .map(|&t| schedule.beta()[t as usize].ln())
        .collect();
    let log_variance = Tensor::from_vec(log_variance, (3, 1), &Device::Cpu)?;
    let denoised = Denoised {
        x0_hat: x_t.affine(0.5, 0.0)?,
        variance_mix: Some(log_variance.broadcast_as((3, 2))?.contiguous()?),
    };
    let draw = |variance| -> Result<Vec<f64>> {
        let options = AncestralOptions {
            clip: Clip::Off,
            variance,
        };
        let step = sampler::p_mean_variance(&schedule, &x_t, &denoised, &t, options)?;
        values(&step.sample(&x_t)?)
    };
    let (learned, large) = (draw(Variance::Learned)?, draw(Variance::FixedLarge)?);
    check_absolute("sample", &learned, &large, 1e-14);
    assert!(draw(Variance::FixedSmall)? != learned);
    Ok(())
}

/// A network that says what the best denoiser guesses, in its own words.
struct Network {
    best: Best,
    prediction: Prediction,
}

impl Denoiser for Network {
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        let training = &self.best.training;
        let timesteps: Vec<u32> = t.iter().map(|t| t.round() as u32).collect();
        let x0_hat = self.best.denoise(x_t, t)?.x0_hat;
        let eps_hat = training.eps_from_x0(x_t, &x0_hat, t)?;
        let predicted = self
            .prediction
            .target(training, &x0_hat, &eps_hat, &timesteps)?;
        let output = NetworkOutput {
            values: &predicted,
            prediction: self.prediction,
            variance: Variance::FixedSmall,
        };
        output.denoised(training, x_t, t)
    }
}

/// Steps over many timesteps at once are those of the guessed image, not of what the network was trained to step to.
#[test]
fn a_sampler_steps_alike_whatever_the_network_predicts() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    let start = fill(&[3, 2], DType::F64, |i| (1.9 * i + 0.2).sin())?;
    let levels = Levels::from_spec(&training, "10")?;
    let draw = |denoiser: &dyn Denoiser| {
        let options = AncestralOptions {
            clip: Clip::Off,
            variance: Variance::FixedSmall,
        };
        let mut noise = |i: usize| fill(&[3, 2], DType::F64, |j| (j + 7.0 * i as f64).cos());
        let start = start.clone();
        let drawn = sampler::ancestral(denoiser, start, &levels, options, &mut noise, &mut |_| {
            Ok(())
        });
        values(&drawn?)
    };
    let best = || Best {
        training: training.clone(),
        data: Gaussian {
            mean: 0.2,
            std: 0.5,
        },
    };
    let expected = draw(&best())?;
    for prediction in Prediction::ALL {
        let got = draw(&Network {
            best: best(),
            prediction,
        })?;
        check_absolute(&prediction.to_string(), &got, &expected, 1e-9);
    }
    Ok(())
}

/// The mean of a step is one at timesteps: a course through them is fine, one between them is refused.
#[test]
fn x_prev_means_something_at_timesteps_alone() -> Result<()> {
    let training = NoiseSchedule::linear(1000)?;
    let network = Network {
        best: Best {
            training: training.clone(),
            data: Gaussian {
                mean: 0.2,
                std: 0.5,
            },
        },
        prediction: Prediction::XPrev,
    };
    let x_t = fill(&[3, 2], DType::F64, |i| (1.9 * i + 0.2).sin())?;
    let levels = Levels::from_spec(&training, "10")?;
    let draw = |course: &Course| sampler::plms(&network, &x_t, course, Clip::Off, &mut |_| Ok(()));
    draw(&Course::through(&levels, &training)?)?;
    let between = draw(&Course::karras(10, 7.0, &training)?);
    assert!(matches!(between, Err(Error::BetweenTimesteps { t }) if t.fract() != 0.0));
    let late = training.x0_from_x_prev(&x_t, &x_t, &[0.0, 1.0, 1000.0]);
    assert!(matches!(late, Err(Error::Timestep { image_idx: 2, .. })));
    Ok(())
}
