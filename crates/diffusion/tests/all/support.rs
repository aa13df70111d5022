//! Inputs and comparisons shared by the tests.

use candle_core::{DType, Device, Tensor};
use p2_diffusion::{NoiseSchedule, Result, Variance};

/// `f(0), f(1), ..` as a tensor of the shape, row-major.
pub(crate) fn fill(shape: &[usize], dtype: DType, f: impl Fn(f64) -> f64) -> Result<Tensor> {
    let n_elements: usize = shape.iter().product();
    let values: Vec<f64> = (0..n_elements).map(|i| f(i as f64)).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
}

/// The same, filled as `[N, C, H, W]` like the reference code does, returned as `[N, H, W, C]`.
pub(crate) fn fill_nchw(shape: &[usize], dtype: DType, f: impl Fn(f64) -> f64) -> Result<Tensor> {
    Ok(fill(shape, dtype, f)?.permute((0, 2, 3, 1))?.contiguous()?)
}

/// All elements in f64, row-major.
pub(crate) fn values(x: &Tensor) -> Result<Vec<f64>> {
    Ok(x.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?)
}

/// The bits of all f32 elements.
pub(crate) fn bits(x: &Tensor) -> Result<Vec<u32>> {
    let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

/// Panics unless each number is near its expectation, relative to it.
#[track_caller]
pub(crate) fn check(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}: {got:?}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let distance = (got - expected).abs();
        assert!(
            distance <= tolerance * expected.abs(),
            "{name}[{i}]: got {got:e}, expected {expected:e}"
        );
    }
}

/// Panics unless each number is near its expectation, in absolute terms.
#[track_caller]
pub(crate) fn check_absolute(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}: {got:?}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let distance = (got - expected).abs();
        assert!(
            distance <= tolerance,
            "{name}[{i}]: got {got:e}, expected {expected:e}"
        );
    }
}

/// What a network may say of a learned variance: about the middle of the range, on either scale.
pub(crate) fn learned_variance(
    variance: Variance,
    schedule: &NoiseSchedule,
    shape: &[usize],
    t: &[u32],
) -> Result<Option<Tensor>> {
    let mix = fill(shape, DType::F64, |i| 0.8 * (3.1 * i).sin())?;
    match variance {
        Variance::FixedSmall | Variance::FixedLarge => Ok(None),
        Variance::LearnedRange => Ok(Some(mix)),
        Variance::Learned => {
            let mut column = vec![1; shape.len()];
            column[0] = t.len();
            let posterior = schedule.posterior_log_variance_clipped();
            let posterior: Vec<f64> = t.iter().map(|&t| posterior[t as usize]).collect();
            let posterior = Tensor::from_vec(posterior, column, &Device::Cpu)?;
            Ok(Some(mix.broadcast_add(&posterior)?))
        }
    }
}

/// Standard normal numbers, a function of the seed: Box and Muller's on a counter mixed by SplitMix64.
pub(crate) fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let uniform = |i: u64| {
        let mut z = (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) as f64 + 0.5) / 2.0_f64.powi(64)
    };
    fill(shape, DType::F64, |i| {
        let i = 2 * i as u64;
        (-2.0 * uniform(i).ln()).sqrt() * (std::f64::consts::TAU * uniform(i + 1)).cos()
    })
}
