//! Vector-Jacobian products of guesses, and densities under the probability flow, where both are known.

use std::f64::consts::{LN_2, TAU};

use candle_core::{DType, Device, Tensor};
use p2_diffusion::sampler::Tolerance;
use p2_diffusion::{
    CandleGraph, Denoised, Denoiser as _, DifferentiableDenoiser, Error, Guided, LogDensities,
    NoiseSchedule, Result, log_densities,
};

use crate::support::{bits, check_absolute, fill, normal, values};

/// Numbers per row, `[N]`, as a column of the type of `like`.
fn column(numbers: Vec<f64>, like: &Tensor) -> Result<Tensor> {
    let n = numbers.len();
    let column = Tensor::from_vec(numbers, (n, 1), &Device::Cpu)?;
    Ok(column.to_dtype(like.dtype())?)
}

/// One part of a mixture of Gaussians: weight, mean, and standard deviation along every axis.
type Part = (f64, [f64; 2], f64);

const PARTS: [Part; 3] = [
    (0.5, [-0.6, 0.4], 0.2),
    (0.2, [0.7, 0.1], 0.4),
    (0.3, [0.2, -0.5], 0.1),
];

/// The mean of the images behind `x_t`, `[N, 2]`.
fn mixture(
    schedule: &NoiseSchedule,
) -> CandleGraph<impl Fn(&Tensor, &[f64]) -> Result<Denoised> + '_> {
    CandleGraph(move |x_t: &Tensor, t: &[f64]| {
        let per_row = |f: &dyn Fn(f64) -> f64| {
            column(
                t.iter().map(|&t| f(schedule.alpha_bar_at(t))).collect(),
                x_t,
            )
        };
        let (mut total, mut sum) = (per_row(&|_| 0.0)?, x_t.zeros_like()?);
        for (weight, mean, std) in PARTS {
            let variance = |a: f64| a * std * std + 1.0 - a;
            let mean = Tensor::new(&[mean], &Device::Cpu)?.to_dtype(x_t.dtype())?;
            let center = per_row(&f64::sqrt)?.broadcast_mul(&mean)?;
            let away = (x_t - center)?;
            let exponent = away.sqr()?.sum_keepdim(1)?;
            let exponent = (exponent * per_row(&|a| -0.5 / variance(a))?)?;
            let likelihood = (exponent.exp()? * per_row(&|a| weight / variance(a))?)?;
            let gain = per_row(&|a| a.sqrt() * std * std / variance(a))?;
            let guess = away.broadcast_mul(&gain)?.broadcast_add(&mean)?;
            sum = (sum + guess.broadcast_mul(&likelihood)?)?;
            total = (total + likelihood)?;
        }
        Ok(Denoised {
            x0_hat: sum.broadcast_div(&total)?,
            variance_mix: Some(x_t.clone()),
        })
    })
}

/// Data in three dimensions, none of which is an axis of the data.
const MEAN: [f64; 3] = [0.3, -0.2, 0.1];
const VARIANCES: [f64; 3] = [0.5, 0.04, 0.002];

/// The axes of the data in its rows and columns: the reflection along (1, 2, -1).
fn axes() -> Result<Tensor> {
    let w = [1.0, 2.0, -1.0];
    let entry = |i: usize, j: usize| f64::from(u8::from(i == j)) - w[i] * w[j] / 3.0;
    let entries: Vec<f64> = (0..9).map(|k| entry(k / 3, k % 3)).collect();
    Ok(Tensor::from_vec(entries, (3, 3), &Device::Cpu)?)
}

/// The best guess of Gaussian data with full covariance, `[N, 3]`.
fn gaussian(
    schedule: &NoiseSchedule,
) -> CandleGraph<impl Fn(&Tensor, &[f64]) -> Result<Denoised> + '_> {
    CandleGraph(move |x_t: &Tensor, t: &[f64]| {
        let mean = Tensor::new(&[MEAN], &Device::Cpu)?;
        let alpha_bars: Vec<f64> = t.iter().map(|&t| schedule.alpha_bar_at(t)).collect();
        let gain = |a: f64| VARIANCES.map(|v| a.sqrt() * v / (a * v + 1.0 - a));
        let gains: Vec<f64> = alpha_bars.iter().flat_map(|&a| gain(a)).collect();
        let gains = Tensor::from_vec(gains, x_t.shape(), &Device::Cpu)?;
        let roots = column(alpha_bars.into_iter().map(f64::sqrt).collect(), x_t)?;
        let along = (x_t - roots.broadcast_mul(&mean)?)?.matmul(&axes()?)?;
        Ok(Denoised {
            x0_hat: (along * gains)?.matmul(&axes()?)?.broadcast_add(&mean)?,
            variance_mix: None,
        })
    })
}

fn product<D: DifferentiableDenoiser>(
    denoiser: &D,
    x_t: &Tensor,
    t: &[f64],
    v: &Tensor,
) -> Result<Tensor> {
    let (denoised, product) = denoiser.denoise_with_vjp(x_t, t, v)?;
    let alone = denoiser.denoise(x_t, t)?;
    assert_eq!(values(&denoised.x0_hat)?, values(&alone.x0_hat)?);
    assert!(!denoised.x0_hat.track_op() && !product.track_op());
    assert_eq!(
        denoised.variance_mix.is_some(),
        alone.variance_mix.is_some()
    );
    Ok(product)
}

/// Column by column of the Jacobian: `v^T J w` is the slope of `v^T x0_hat` along w.
fn check_slopes<D: DifferentiableDenoiser>(name: &str, denoiser: &D, dims: usize) -> Result<()> {
    let t = [3.0, 217.5, 700.0, 960.0];
    let shape = [t.len(), dims];
    let x_t = fill(&shape, DType::F64, |i| (1.3 * i).sin())?;
    let v = fill(&shape, DType::F64, |i| (0.7 * i + 0.2).cos())?;
    let product = product(denoiser, &x_t, &t, &v)?;
    for axis in 0..dims {
        let is_axis = |i: f64| f64::from(u8::from(i as usize % dims == axis));
        let along = fill(&shape, DType::F64, is_axis)?;
        let at = |step: f64| -> Result<Vec<f64>> {
            let x_t = (&x_t + along.affine(step, 0.0)?)?;
            values(&(denoiser.denoise(&x_t, &t)?.x0_hat * &v)?.sum(1)?)
        };
        let (ahead, behind) = (at(1e-5)?, at(-1e-5)?);
        let slopes = ahead.iter().zip(&behind).map(|(a, b)| (a - b) / 2e-5);
        let got = values(&(&product * &along)?.sum(1)?)?;
        check_absolute(name, &got, &slopes.collect::<Vec<_>>(), 1e-8);
    }
    Ok(())
}

#[test]
fn products_are_slopes_of_the_guess() -> Result<()> {
    let schedule = NoiseSchedule::cosine(1000)?;
    check_slopes("mixture", &mixture(&schedule), 2)?;
    check_slopes("gaussian", &gaussian(&schedule), 3)?;
    let shifted = CandleGraph(|x_t: &Tensor, t: &[f64]| {
        let shifted = x_t.affine(0.8, 0.1)?;
        gaussian(&schedule).denoise(&shifted, t)
    });
    let guided = Guided::new(gaussian(&schedule), shifted, 3.0, &schedule);
    check_slopes("guided", &guided, 3)?;
    check_slopes("guided within", &guided.within(-2.0..=2.0), 3)
}

#[test]
fn a_product_has_the_same_bits_in_any_batch() -> Result<()> {
    let schedule = NoiseSchedule::cosine(1000)?;
    let t = [3.0, 217.5, 700.0, 960.0, 999.0];
    let x_t = fill(&[5, 2], DType::F32, |i| (1.3 * i).sin())?;
    let v = fill(&[5, 2], DType::F32, |i| (0.7 * i + 0.2).cos())?;
    let guided = Guided::new(mixture(&schedule), mixture(&schedule), 2.0, &schedule);
    let guided = guided.within(-3.0..=3.0);
    let whole = product(&guided, &x_t, &t, &v)?;
    for row in 0..5 {
        let [x_t, v, expected] = [&x_t, &v, &whole].map(|all| all.narrow(0, row, 1));
        let got = product(&guided, &x_t?, &t[row..=row], &v?)?;
        assert_eq!(bits(&got)?, bits(&expected?)?, "row {row}");
    }
    Ok(())
}

#[test]
fn a_derivative_that_candle_does_not_know_is_refused() -> Result<()> {
    let ones = Tensor::ones((1, 2), DType::F64, &Device::Cpu)?;
    let cut = CandleGraph(|x_t: &Tensor, _: &[f64]| {
        Ok(Denoised {
            x0_hat: x_t.detach(),
            variance_mix: None,
        })
    });
    let refused = cut.denoise_with_vjp(&ones, &[5.0], &ones);
    assert!(matches!(refused, Err(Error::NoDerivative)), "{refused:?}");
    let schedule = NoiseSchedule::linear(1000)?;
    let refused = mixture(&schedule).denoise_with_vjp(&ones, &[5.0], &ones.t()?);
    assert!(
        matches!(refused, Err(Error::Shape { name: "v", .. })),
        "{refused:?}"
    );
    Ok(())
}

/// Noise from next to nothing to so much that no image is left.
fn wide() -> Result<NoiseSchedule> {
    NoiseSchedule::karras(1000, [0.02, 1e6], 7.0)
}

/// The density of one point, `[1, D]`, by all axes as probes: the trace without noise.
fn exact<D: DifferentiableDenoiser>(
    denoiser: &D,
    schedule: &NoiseSchedule,
    x: &Tensor,
) -> Result<f64> {
    let dims = x.elem_count();
    let probes = Tensor::eye(dims, DType::F64, &Device::Cpu)?.affine((dims as f64).sqrt(), 0.0)?;
    let rows = x.broadcast_as((dims, dims))?.contiguous()?;
    let densities = log_densities(denoiser, schedule, &rows, &probes, Tolerance::of(1e-9))?;
    assert_eq!(densities.n_dims, dims);
    Ok(densities.nats.iter().sum::<f64>() / dims as f64)
}

/// Along each axis of the data the flow stretches by the ratio of the spreads, and ends in what counts as normal.
#[test]
fn the_density_of_a_gaussian_is_known() -> Result<()> {
    for schedule in [wide()?, NoiseSchedule::linear(1000)?] {
        let sigma = |l: Option<&f64>| l.map_or(f64::NAN, |l| (-0.5 * l).exp());
        let [low, high] = [schedule.log_snr().first(), schedule.log_snr().last()].map(sigma);
        let shrink = 1.0 / (1.0 + high * high).sqrt();
        for point in [MEAN, [0.1, 0.4, -0.3], [-1.2, 0.1, 0.9]] {
            let x = Tensor::new(&[point], &Device::Cpu)?;
            let away = (&x - Tensor::new(&[MEAN], &Device::Cpu)?)?.matmul(&axes()?)?;
            let stretch = VARIANCES.map(|v| ((v + high * high) / (v + low * low)).sqrt() * shrink);
            let mean = Tensor::new(&[MEAN], &Device::Cpu)?.affine(shrink, 0.0)?;
            let noise = (&away * Tensor::new(&[stretch], &Device::Cpu)?)?.matmul(&axes()?)?;
            let square = values(&(noise + mean)?.sqr()?)?.iter().sum::<f64>();
            let expected = -0.5 * (square + 3.0 * TAU.ln())
                + stretch.iter().map(|stretch| stretch.ln()).sum::<f64>();
            let got = exact(&gaussian(&schedule), &schedule, &x)?;
            check_absolute("nats", &[got], &[expected], 1e-6);
            // That of the data, with the noise of the first level, but for what is not quite normal at the end.
            let of_data = values(&away)?.into_iter().zip(VARIANCES).map(|(away, v)| {
                let variance = v + low * low;
                -0.5 * (away * away / variance + (TAU * variance).ln())
            });
            let allowed = if high > 1e5 { 1e-4 } else { 0.1 };
            check_absolute("data", &[got], &[of_data.sum()], allowed);
        }
    }
    Ok(())
}

#[test]
fn the_density_of_a_mixture_is_known() -> Result<()> {
    let schedule = wide()?;
    for point in [[-0.6, 0.4], [0.1, 0.1], [0.3, -0.45], [1.5, 1.0]] {
        let got = exact(
            &mixture(&schedule),
            &schedule,
            &Tensor::new(&[point], &Device::Cpu)?,
        )?;
        let density = PARTS.map(|(weight, mean, std)| {
            let variance = std * std + 0.02 * 0.02;
            let square = (point[0] - mean[0]).powi(2) + (point[1] - mean[1]).powi(2);
            weight * (-0.5 * square / variance).exp() / (TAU * variance)
        });
        let expected = density.iter().sum::<f64>().ln();
        check_absolute("nats", &[got], &[expected], 1e-4);
    }
    Ok(())
}

/// Random signs are off by what other signs say that they are off.
#[test]
fn the_estimate_of_the_trace_has_no_bias() -> Result<()> {
    let schedule = wide()?;
    let denoiser = gaussian(&schedule);
    let x = Tensor::new(&[[0.1, 0.4, -0.3]], &Device::Cpu)?;
    let expected = exact(&denoiser, &schedule, &x)?;
    let n = 500;
    let signs = normal(&[n, 3], 11)?;
    let signs = signs.broadcast_div(&signs.abs()?)?;
    let rows = x.broadcast_as((n, 3))?.contiguous()?;
    let densities = log_densities(&denoiser, &schedule, &rows, &signs, Tolerance::of(1e-6))?;
    let mean = densities.nats.iter().sum::<f64>() / n as f64;
    let squares = densities.nats.iter().map(|nats| (nats - mean).powi(2));
    let error = (squares.sum::<f64>() / (n * (n - 1)) as f64).sqrt();
    assert!(
        error > 0.01 && error < 0.2,
        "the comparison is blind: {error}"
    );
    assert!((mean - expected).abs() < 4.0 * error, "{mean} {expected}");
    Ok(())
}

#[test]
fn less_exactness_needs_fewer_evaluations() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x = Tensor::new(&[[0.1, 0.4, -0.3]], &Device::Cpu)?;
    let run = |tolerance: f64| -> Result<LogDensities> {
        let (denoiser, tolerance) = (gaussian(&schedule), Tolerance::of(tolerance));
        log_densities(&denoiser, &schedule, &x, &x.ones_like()?, tolerance)
    };
    let (exact, coarse, rough) = (run(1e-10)?, run(1e-5)?, run(1e-3)?);
    assert!(rough.n_evaluations < coarse.n_evaluations);
    assert!(coarse.n_evaluations < exact.n_evaluations / 3);
    check_absolute("1e-5", &coarse.nats, &exact.nats, 1e-3);
    check_absolute("1e-3", &rough.nats, &exact.nats, 0.1);
    Ok(())
}

/// Three bits for each number of a uniform distribution over eight cells, whatever their size.
#[test]
fn nats_become_bits() {
    for cell in [1.0_f64, 1.0 / 128.0, 1.0 / 127.5] {
        let densities = LogDensities {
            nats: vec![-5.0 * (8.0 * cell).ln(), -5.0 * (16.0 * cell).ln()],
            n_dims: 5,
            n_evaluations: 0,
        };
        let bits: Vec<f64> = densities.bits_per_dim(cell).collect();
        check_absolute("bits", &bits, &[3.0, 4.0], 1e-12);
    }
    // As Song et al. have it for [-1, 1] in 256 cells.
    let densities = LogDensities {
        nats: vec![2.0 * LN_2],
        n_dims: 1,
        n_evaluations: 0,
    };
    let bits: Vec<f64> = densities.bits_per_dim(1.0 / 128.0).collect();
    check_absolute("bits", &bits, &[7.0 - 2.0], 1e-12);
}

#[test]
fn what_has_no_density_is_refused() -> Result<()> {
    let schedule = NoiseSchedule::linear(1000)?;
    let x = Tensor::new(&[[0.1, 0.4, -0.3]], &Device::Cpu)?;
    let run = |schedule: &NoiseSchedule, tolerance: f64, probes: &Tensor| {
        let denoiser = gaussian(schedule);
        log_densities(&denoiser, schedule, &x, probes, Tolerance::of(tolerance))
    };
    let refused = run(&schedule, 0.0, &x);
    assert!(
        matches!(refused, Err(Error::Constant { .. })),
        "{refused:?}"
    );
    let refused = run(&schedule, 1e-5, &x.t()?);
    assert!(
        matches!(refused, Err(Error::Shape { name: "probes", .. })),
        "{refused:?}"
    );
    let single = NoiseSchedule::from_betas(vec![0.5])?;
    let refused = run(&single, 1e-5, &x);
    assert!(
        matches!(refused, Err(Error::PureNoise { .. })),
        "{refused:?}"
    );
    // What is not finite comes to an end soon.
    let refused = run(&schedule, 1e-5, &x.affine(f64::INFINITY, 0.0)?);
    assert!(
        matches!(refused, Err(Error::NotFollowed { n_steps }) if n_steps < 40),
        "{refused:?}"
    );
    // A schedule that ends in pure noise is left at its last level before.
    let pure = schedule.with_zero_terminal_snr()?;
    let got = exact(&gaussian(&pure), &pure, &x)?;
    check_absolute(
        "pure",
        &[got],
        &[exact(&gaussian(&schedule), &schedule, &x)?],
        0.05,
    );
    Ok(())
}
