//! PLMS: DDIM steps along a mean of the last four guesses of the noise.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::{Clip, Course, StepReport};
use crate::{Denoiser, Result};

/// Adams and Bashforth's weights of the newest guess and those before it.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// Pseudo linear multi-step sampling (PNDM without its Runge-Kutta start): one evaluation per step, two in the first.
///
/// # Shapes and units
/// As for [`super::edm()`], without noise.
///
/// # Errors
/// As for [`super::edm()`].
///
/// # Source
/// Liu et al. 2022, arXiv 2202.09778, eq. 11 and 12; the first step is Heun's on the guesses of the noise.
pub fn plms<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    clip: Clip,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let mut run = Descent {
        denoiser,
        course,
        clip,
        noise: &mut super::no_noise,
        on_step,
        n_noises: 0,
    };
    let mut x = run.start(x_t)?;
    // Guesses of the noise, the newest first.
    let mut guesses: Vec<Tensor> = Vec::new();
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        let eps = eps_hat(&x, &x0_hat, sigma)?;
        let mean = if guesses.is_empty() && next > 0.0 {
            let ahead = combine(&[(1.0, &x), (next - sigma, &eps)])?;
            let there = eps_hat(&ahead, &run.denoise(&ahead, next)?, next)?;
            combine(&[(0.5, &eps), (0.5, &there)])?
        } else {
            let all = std::iter::once(&eps).chain(&guesses);
            let weights = WEIGHTS[guesses.len()];
            let terms: Vec<_> = weights.iter().copied().zip(all).collect();
            combine(&terms)?
        };
        x = combine(&[(1.0, &x), (next - sigma, &mean)])?;
        run.report(step, &x0_hat, &x)?;
        guesses.insert(0, eps);
        guesses.truncate(3);
    }
    run.end(&x)
}

/// The noise that goes with a guess of the image.
fn eps_hat(x: &Tensor, x0_hat: &Tensor, sigma: f64) -> Result<Tensor> {
    combine(&[(1.0 / sigma, x), (-1.0 / sigma, x0_hat)])
}
