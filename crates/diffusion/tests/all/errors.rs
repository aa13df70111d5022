//! What is refused, and the words it is refused with.

use candle_core::{DType, Device, Tensor};
use p2_diffusion::sampler::{AncestralOptions, Clip, DdimOptions};
use p2_diffusion::{
    Denoised, Levels, LossType, NoiseLevel, NoiseSchedule, Objective, Prediction, Result, Variance,
    Weighting, sampler,
};

#[track_caller]
fn check<T>(result: Result<T>, expected: &str) {
    match result {
        Ok(_) => panic!("accepted, expected: {expected}"),
        Err(error) => assert_eq!(error.to_string(), expected),
    }
}

#[test]
fn schedules() -> Result<()> {
    let words = "expected a value above 0 and below 1 (the last may be 1)";
    check(
        NoiseSchedule::linear(0),
        "a noise schedule needs at least one level",
    );
    check(
        NoiseSchedule::cosine(0),
        "a noise schedule needs at least one level",
    );
    check(
        NoiseSchedule::linear(10),
        &format!("beta at t = 5 is 1.1155555555555556, {words}"),
    );
    check(
        NoiseSchedule::from_betas(vec![0.1, 1.0, 0.1]),
        &format!("beta at t = 1 is 1, {words}"),
    );
    check(
        NoiseSchedule::from_betas(vec![0.1, -0.1]),
        &format!("beta at t = 1 is -0.1, {words}"),
    );
    check(
        NoiseSchedule::from_betas(vec![f64::NAN]),
        &format!("beta at t = 0 is NaN, {words}"),
    );
    check(
        NoiseSchedule::from_betas(vec![1e-20]),
        &format!("beta at t = 0 is 0.00000000000000000001, {words}"),
    );
    NoiseSchedule::from_betas(vec![0.1, 1.0])?; // SNR 0 at the end
    NoiseSchedule::linear(20)?;
    Ok(())
}

#[test]
fn respacing() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let refused = |spec: &str| Levels::from_spec(&schedule, spec);
    check(
        refused("ddim300"),
        "cannot space 1000 timesteps as `ddim300`: no stride gives exactly 300 steps",
    );
    check(
        refused("10,400,10"),
        "cannot space 1000 timesteps as `10,400,10`: a section of 333 cannot give 400 steps",
    );
    check(
        refused("10,x"),
        "cannot space 1000 timesteps as `10,x`: `x` is not a number of steps",
    );
    check(
        refused("0"),
        "cannot space 1000 timesteps as `0`: `0` is not a number of steps",
    );
    let rises = "timesteps must rise, and there must be at least one";
    check(
        Levels::from_timesteps(&schedule, vec![3, 3]),
        &format!("cannot space 1000 timesteps as `[3, 3]`: {rises}"),
    );
    check(
        Levels::from_timesteps(&schedule, vec![3, 1000]),
        "timestep of image 1 is 1000, the schedule has 1000 levels",
    );
    Ok(())
}

#[test]
fn weightings() -> Result<()> {
    let linear = NoiseSchedule::linear(1000)?;
    let (x0, small) = (Prediction::X0, Variance::FixedSmall);
    let named = |weighting| Objective::new(&linear, x0, small, weighting);
    let words = "expected a finite number of at least 0";
    check(
        named(Weighting::P2 {
            k: -1.0,
            gamma: 1.0,
        }),
        &format!("k is -1, {words}"),
    );
    check(
        named(Weighting::P2Raw {
            k: 1.0,
            gamma: f64::NAN,
        }),
        &format!("gamma is NaN, {words}"),
    );
    check(
        named(Weighting::P2 {
            k: 1.0,
            gamma: -0.5,
        }),
        &format!("gamma is -0.5, {words}"),
    );
    // 1e-41 beside 1 is nothing, and becomes it: the level is left out.
    let raw = named(Weighting::P2Raw {
        k: 1.0,
        gamma: 10.0,
    })?;
    assert_eq!(raw.weight_target()[0], 0.0);
    assert!(raw.weight_target()[999] > 0.99);
    let nowhere = Weighting::FlowLogitNormal {
        mean: 100.0,
        std: 1.0,
    };
    check(
        named(nowhere),
        "the mean weight is 0, expected a finite number above 0",
    );
    let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
    check(
        Objective::of_type(LossType::Kl, &linear, x0, small, p2),
        "the variational bound weighs noise levels itself: its weighting must be simple",
    );
    let own = |f: &dyn Fn(NoiseLevel) -> f64| {
        Objective::with_weight_eps(&linear, Prediction::Eps, small, f)
    };
    check(
        own(&|_| f64::NAN),
        "weight on the eps error at t = 0 is NaN: not a finite number",
    );
    check(
        own(&|_| -1.0),
        "weight on the eps error at t = 0 is -1e0: negative",
    );
    check(
        own(&|_| 1e39),
        "weight on the eps error at t = 0 is 1e39: too large for f32",
    );
    let first_content = |level: NoiseLevel| if level.snr() < 1.0 { 1e-40 } else { 0.0 };
    check(
        own(&first_content),
        "weight on the eps error at t = 259 is 1e-40: too small for f32",
    );
    Ok(())
}

#[test]
fn zero_terminal_snr() -> Result<()> {
    let schedule = NoiseSchedule::from_betas(vec![0.5, 1.0])?;
    let eps = Objective::new(
        &schedule,
        Prediction::Eps,
        Variance::FixedSmall,
        Weighting::Simple {},
    );
    let words = "prediction eps needs an SNR above 0, at t = 1 it is 0";
    check(eps, words);
    let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
    check(schedule.x0_from_eps(&x, &x, &[1]), words);
    let v = Objective::new(
        &schedule,
        Prediction::V,
        Variance::LearnedRange,
        Weighting::Simple {},
    )?;
    let output = Tensor::zeros((1, 4), DType::F32, &Device::Cpu)?;
    let loss = v.loss(&output, &x, &x, &[1])?;
    assert_eq!(loss.mse.to_vec1::<f32>()?, [1.0]); // v is -x0
    assert!(loss.weighted.to_vec1::<f32>()?[0].is_finite());
    // snr^-1.5 on the eps error is snr^-0.5 on the v error.
    let unbounded = Weighting::P2 { k: 0.0, gamma: 1.5 };
    let refused = Objective::new(&schedule, Prediction::V, Variance::FixedSmall, unbounded);
    check(
        refused,
        "weight on the v error at t = 1 is inf: it grows without limit there; another prediction may bound it",
    );
    Ok(())
}

#[test]
fn tensors() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x = Tensor::ones((2, 4, 4, 3), DType::F32, &Device::Cpu)?;
    let other = Tensor::ones((2, 4, 3, 4), DType::F32, &Device::Cpu)?;
    let shape = "shape of eps is [2, 4, 3, 4], expected [2, 4, 4, 3]";
    check(schedule.add_noise(&x, &other, &[0, 1]), shape);
    check(
        schedule.add_noise(&x, &x, &[0]),
        "shape of t is [1], expected [2]",
    );
    let late = "timestep of image 1 is 1000, the schedule has 1000 levels";
    check(schedule.add_noise(&x, &x, &[0, 1000]), late);
    check(schedule.mixing_coefficients(&[0, 1000]), late);
    check(schedule.x0_from_v(&x, &x, &[0, 1000]), late);
    let learned = Variance::LearnedRange;
    let objective = Objective::new(&schedule, Prediction::Eps, learned, Weighting::Simple {})?;
    let channels = "shape of output is [2, 4, 4, 3], expected [2, 4, 4, 6]";
    check(objective.loss(&x, &x, &x, &[0, 1]), channels);
    let output = Tensor::zeros((2, 4, 4, 6), DType::F32, &Device::Cpu)?;
    check(objective.loss(&output, &x, &x, &[0, 1000]), late);
    check(objective.loss(&output, &x, &other, &[0, 1]), shape);
    Ok(())
}

#[test]
fn samplers() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x = Tensor::ones((1, 2), DType::F32, &Device::Cpu)?;
    let denoised = Denoised {
        x0_hat: x.clone(),
        variance_mix: None,
    };
    let options = AncestralOptions {
        clip: Clip::Off,
        variance: Variance::LearnedRange,
    };
    check(
        sampler::p_mean_variance(&schedule, &x, &denoised, &[5], options),
        "the variance is learned, but the denoiser returned no variance_mix",
    );
    for eta in [-0.1, 1.1, f64::NAN] {
        let options = DdimOptions {
            clip: Clip::Off,
            eta,
        };
        check(
            sampler::ddim_step(&schedule, &x, &denoised, &[5], options),
            &format!("eta is {eta}, expected a number in [0, 1]"),
        );
    }
    let options = DdimOptions {
        clip: Clip::Off,
        eta: 1.0,
    };
    let step = sampler::ddim_step(&schedule, &x, &denoised, &[5], options)?;
    let noise = Tensor::ones((2, 1), DType::F32, &Device::Cpu)?;
    check(
        step.sample(&noise),
        "shape of noise is [2, 1], expected [1, 2]",
    );
    Ok(())
}
