//! The probability flow by an adaptive solver: as exact as one asks for, in as many evaluations as that takes.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::{Clip, Course, StepReport};
use crate::constant::{self, Constant};
use crate::{Denoiser, Error, Result};

/// How [`probability_flow()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Error of a step relative to the size of `x`, above 0; 1e-5 by Song et al.
    pub relative: f64,
    /// Error of a step that is always allowed, above 0; 1e-5 by Song et al.
    pub absolute: f64,
}

/// Dormand and Prince's coefficients: rows of the stages, and the differences between their two results.
const STAGES: [&[f64]; 6] = [
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[
        19372.0 / 6561.0,
        -25360.0 / 2187.0,
        64448.0 / 6561.0,
        -212.0 / 729.0,
    ],
    &[
        9017.0 / 3168.0,
        -355.0 / 33.0,
        46732.0 / 5247.0,
        49.0 / 176.0,
        -5103.0 / 18656.0,
    ],
    &[
        35.0 / 384.0,
        0.0,
        500.0 / 1113.0,
        125.0 / 192.0,
        -2187.0 / 6784.0,
        11.0 / 84.0,
    ],
];
const NODES: [f64; 6] = [0.2, 0.3, 0.8, 8.0 / 9.0, 1.0, 1.0];
const ERROR: [f64; 7] = [
    71.0 / 57600.0,
    0.0,
    -71.0 / 16695.0,
    71.0 / 1920.0,
    -17253.0 / 339200.0,
    22.0 / 525.0,
    -1.0 / 40.0,
];

/// More steps than any flow needs: something is not finite, or the tolerance is below rounding.
const MAX_STEPS: usize = 10_000;

/// Follows the probability flow from the first noise of a course to its last above 0, then takes the guess.
///
/// Steps are as long as the errors of all images allow: where an image must not depend on the others of its batch,
/// give it alone. `on_step` sees each step that was taken, all with index 0.
///
/// # Shapes and units
/// As for [`super::edm()`], without noise. Only the ends of the course matter.
///
/// # Errors
/// [`Error::Constant`] for a tolerance that is not above 0; [`Error::NotFollowed`] if steps become too many; and as for
/// [`super::edm()`].
///
/// # Source
/// Song et al. 2021, arXiv 2011.13456, section 4.3, on `dx / d(ln sigma) = x - x0_hat`; Dormand and Prince 1980.
pub fn probability_flow<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: FlowOptions,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let FlowOptions {
        clip,
        relative,
        absolute,
    } = options;
    constant::check([
        Constant::positive("relative", relative),
        Constant::positive("absolute", absolute),
    ])?;
    let sigmas = course.sigmas();
    let ends_clean = sigmas[course.n_steps()] == 0.0;
    let last = sigmas[course.n_steps() - usize::from(ends_clean)];
    let mut no_noise = super::no_noise;
    let mut run = Descent::new((denoiser, course), clip, &mut no_noise, on_step);
    let mut x = run.start(x_t)?;
    let (mut at, end) = (sigmas[0].ln(), last.ln());
    let mut slope = slope_at(&run, &x, at)?;
    let mut h = (end - at) / 20.0;
    for _ in 0..MAX_STEPS {
        if at <= end {
            let x0_hat = run.denoise(&x, last)?;
            let x = if ends_clean { x0_hat } else { x };
            return run.end(&x);
        }
        h = h.max(end - at);
        let (ahead, slope_ahead, error) = step(&run, &x, &slope, at, h)?;
        let scale = combine(&[(relative, &x.abs()?.maximum(&ahead.abs()?)?)])?;
        let scaled = (error / (scale + absolute)?)?.sqr()?.mean_all()?;
        let error: f64 = scaled.to_dtype(candle_core::DType::F64)?.to_scalar()?;
        let error = error.sqrt();
        if error <= 1.0 {
            let before = at;
            // The end is met exactly, however sums round.
            at = if at + h <= end { end } else { at + h };
            (x, slope) = (ahead, slope_ahead);
            let x0_hat = (&x - &slope)?;
            run.tell(0, [before, at].map(f64::exp), &x0_hat, &x)?;
        }
        h *= (0.9 * error.powf(-0.2)).clamp(0.2, 5.0);
    }
    Err(Error::NotFollowed { n_steps: MAX_STEPS })
}

/// `dx / d(ln sigma)`.
fn slope_at<D: Denoiser + ?Sized>(
    run: &Descent<'_, D>,
    x: &Tensor,
    log_sigma: f64,
) -> Result<Tensor> {
    let x0_hat = run.denoise(x, log_sigma.exp())?;
    Ok((x - x0_hat)?)
}

/// A step: where it leads, the slope there, and the difference of two results.
fn step<D: Denoiser + ?Sized>(
    run: &Descent<'_, D>,
    x: &Tensor,
    slope: &Tensor,
    at: f64,
    h: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let mut slopes = vec![slope.clone()];
    let mut ahead = x.clone();
    for (row, node) in STAGES.iter().zip(NODES) {
        let mut terms = vec![(1.0, x)];
        terms.extend(row.iter().map(|a| h * a).zip(&slopes));
        ahead = combine(&terms)?;
        slopes.push(slope_at(run, &ahead, at + node * h)?);
    }
    let terms: Vec<_> = ERROR.iter().map(|e| h * e).zip(&slopes).collect();
    let error = combine(&terms)?;
    let slope = slopes.pop().unwrap_or_else(|| slope.clone());
    Ok((ahead, slope, error))
}
