//! Euler steps that go down further than they have to, and fresh noise back up.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::{Clip, Course, StepReport};
use crate::constant::{self, Constant};
use crate::{Denoiser, Result};

/// How [`euler_ancestral()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EulerAncestralOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Share of fresh noise from 0 (deterministic) to 1 (as ancestral sampling).
    pub eta: f64,
}

/// How far down a step goes, and how much fresh noise then leads up to `next`.
fn down_and_up(sigma: f64, next: f64, eta: f64) -> [f64; 2] {
    let up = eta * next * (1.0 - (next / sigma).powi(2)).max(0.0).sqrt();
    let up = up.min(next);
    [(next * next - up * up).sqrt(), up]
}

/// Euler steps with fresh noise.
///
/// # Shapes and units
/// As for [`super::edm()`]; one noise per step but the last.
///
/// # Errors
/// [`Error::Constant`](crate::Error::Constant) if eta is not in `[0, 1]`, and as for [`super::edm()`].
///
/// # Source
/// Song et al. 2021, arXiv 2010.02502, eq. 16, in terms of sigma: with eta 1 it is ancestral sampling with the small
/// variance.
pub fn euler_ancestral<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: EulerAncestralOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let EulerAncestralOptions { clip, eta } = options;
    constant::check([Constant::share("eta", eta)])?;
    let mut run = Descent::new((denoiser, course), clip, noise, on_step);
    let mut x = run.start(x_t)?;
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        x = leap(&mut run, &x, &x0_hat, [sigma, next], eta)?;
        run.report(step, &x0_hat, &x)?;
    }
    run.end(&x)
}

/// From one noise to another as if the guess were right, with fresh noise.
pub(super) fn leap<D: Denoiser + ?Sized>(
    run: &mut Descent<'_, D>,
    x: &Tensor,
    x0_hat: &Tensor,
    [sigma, next]: [f64; 2],
    eta: f64,
) -> Result<Tensor> {
    let [down, up] = down_and_up(sigma, next, eta);
    let ratio = down / sigma;
    let x = combine(&[(ratio, x), (1.0 - ratio, x0_hat)])?;
    if up == 0.0 {
        return Ok(x);
    }
    let fresh = run.fresh(&x)?;
    combine(&[(1.0, &x), (up, &fresh)])
}
