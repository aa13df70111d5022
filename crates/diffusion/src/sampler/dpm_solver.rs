//! DPM-Solver++: the linear part of the flow exactly, the guesses of the image by polynomials; as ODE or SDE.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::euler_ancestral::leap;
use super::{Clip, Course, StepReport};
use crate::constant::{self, Constant};
use crate::{Denoiser, Result};

/// How [`dpm_multistep()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DpmOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Guesses that a step uses, from 1 (which is DDIM) to 3.
    pub order: usize,
    /// Share of fresh noise: 0 solves the ODE of the probability flow, 1 the SDE.
    pub eta: f64,
}

/// DPM-Solver++ with the guesses of earlier steps: 1M, 2M or 3M, one evaluation per step.
///
/// # Shapes and units
/// As for [`super::edm()`]; with eta above 0 one noise per step but the last.
///
/// # Errors
/// [`Error::Constant`](crate::Error::Constant) for an order other than 1 to 3 or an eta outside of `[0, 1]`, and as for
/// [`super::edm()`].
///
/// # Source
/// Lu et al. 2022, arXiv 2211.01095, algorithm 2 (2M), section 4 (3M) and appendix D (SDE); in terms of
/// `-ln sigma`, half the log-SNR. Published code of 3M has half the weight on the bend, which makes it second order.
pub fn dpm_multistep<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: DpmOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let DpmOptions { clip, order, eta } = options;
    let is_order = (1..=3).contains(&order);
    constant::check([
        Constant::that("order", order as f64, is_order, "1, 2 or 3"),
        Constant::share("eta", eta),
    ])?;
    let mut run = Descent::new((denoiser, course), clip, noise, on_step);
    let mut x = run.start(x_t)?;
    // The last guesses with the length of the step after each, in -ln sigma; the newest first.
    let mut guesses: Vec<(Tensor, f64)> = Vec::new();
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        let h = (sigma / next).ln();
        if next > 0.0 {
            let earlier = &guesses[..guesses.len().min(order - 1)];
            x = multistep(&x, &x0_hat, earlier, h, eta, order)?;
            if eta > 0.0 {
                let std = next * (-(-2.0 * eta * h).exp_m1()).sqrt();
                let fresh = run.fresh(&x)?;
                x = combine(&[(1.0, &x), (std, &fresh)])?;
            }
        } else {
            x = x0_hat.clone();
        }
        run.report(step, &x0_hat, &x)?;
        guesses.insert(0, (x0_hat, h));
        guesses.truncate(2);
    }
    run.end(&x)
}

/// One step of length `h` in -ln sigma, without its noise.
fn multistep(
    x: &Tensor,
    x0_hat: &Tensor,
    earlier: &[(Tensor, f64)],
    h: f64,
    eta: f64,
    order: usize,
) -> Result<Tensor> {
    let h_eta = h * (1.0 + eta);
    // What remains of x; the rest is the image.
    let image = -(-h_eta).exp_m1();
    let straight = combine(&[((-h_eta).exp(), x), (image, x0_hat)])?;
    // Weights of the slope and of the bend of the guesses, per step; the bend is half of a second derivative.
    let slope = 1.0 - image / h_eta;
    let bend = 1.0 - 2.0 * slope / h_eta;
    let Some((before, h1)) = earlier.first() else {
        return Ok(straight);
    };
    let r1 = h1 / h;
    let Some((long_before, h2)) = earlier.get(1) else {
        // The published 2M takes the slope at half of the step.
        let factor = if order == 2 { 0.5 * image } else { slope } / r1;
        return combine(&[(1.0, &straight), (factor, x0_hat), (-factor, before)]);
    };
    let r2 = h2 / h;
    let new = combine(&[(1.0 / r1, x0_hat), (-1.0 / r1, before)])?;
    let old = combine(&[(1.0 / r2, before), (-1.0 / r2, long_before)])?;
    // The slope now, and how it changes.
    let (lean, second) = (r1 / (r1 + r2), 1.0 / (r1 + r2));
    combine(&[
        (1.0, &straight),
        (slope * (1.0 + lean) + bend * second, &new),
        (-slope * lean - bend * second, &old),
    ])
}

/// How [`dpm_singlestep()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinglestepOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Share of fresh noise: 0 solves the ODE of the probability flow, 1 the SDE.
    pub eta: f64,
}

/// DPM-Solver++ with a guess of its own at the middle of each step: 2S, two evaluations per step.
///
/// # Shapes and units
/// As for [`super::edm()`]; with eta above 0 two noises per step but the last.
///
/// # Errors
/// As for [`dpm_multistep`], without its order.
///
/// # Source
/// Lu et al. 2022, algorithm 1 with r = 1/2; with noise as in [`super::euler_ancestral()`].
pub fn dpm_singlestep<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: SinglestepOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let SinglestepOptions { clip, eta } = options;
    constant::check([Constant::share("eta", eta)])?;
    let mut run = Descent::new((denoiser, course), clip, noise, on_step);
    let mut x = run.start(x_t)?;
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        x = if next > 0.0 {
            let middle = (sigma * next).sqrt();
            let there = leap(&mut run, &x, &x0_hat, [sigma, middle], eta)?;
            let guess = run.denoise(&there, middle)?;
            leap(&mut run, &x, &guess, [sigma, next], eta)?
        } else {
            x0_hat.clone()
        };
        run.report(step, &x0_hat, &x)?;
    }
    run.end(&x)
}
