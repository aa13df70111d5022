//! UniPC: a predictor, and a corrector that costs no evaluation of its own.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::{Clip, Course, StepReport};
use crate::constant::{self, Constant};
use crate::{Denoiser, Result};

/// How [`unipc()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UniPcOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Guesses that the predictor uses, from 1 to 3; the corrector uses one more.
    pub order: usize,
}

/// UniPC with `B(h) = e^h - 1` on guesses of the image: one evaluation per step.
///
/// # Shapes and units
/// As for [`super::edm()`], without noise.
///
/// # Errors
/// [`Error::Constant`](crate::Error::Constant) for an order other than 1 to 3, and as for [`super::edm()`].
///
/// # Source
/// Zhao et al. 2023, arXiv 2302.04867, algorithms 5 to 8 (UniP and UniC, data prediction, B2).
pub fn unipc<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: UniPcOptions,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let UniPcOptions { clip, order } = options;
    let is_order = (1..=3).contains(&order);
    constant::check([Constant::that("order", order as f64, is_order, "1, 2 or 3")])?;
    let mut no_noise = super::no_noise;
    let mut run = Descent::new((denoiser, course), clip, &mut no_noise, on_step);
    let mut x = run.start(x_t)?;
    // Guesses and their -ln sigma, the newest first; where the last step came from.
    let mut guesses: Vec<(Tensor, f64)> = Vec::new();
    let mut from = x.clone();
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        let here = -sigma.ln();
        if !guesses.is_empty() {
            // The guess at the end of the last step corrects that step.
            let nodes = &guesses[..guesses.len().min(order)];
            x = advance(&from, nodes, Some(&x0_hat), here)?;
        }
        guesses.insert(0, (x0_hat.clone(), here));
        guesses.truncate(3);
        from = x.clone();
        x = if next > 0.0 {
            let nodes = &guesses[..guesses.len().min(order)];
            advance(&from, nodes, None, -next.ln())?
        } else {
            x0_hat.clone()
        };
        run.report(step, &x0_hat, &x)?;
    }
    run.end(&x)
}

/// A step from the newest node to `to`, both in -ln sigma; `ahead` is a guess there.
fn advance(x: &Tensor, nodes: &[(Tensor, f64)], ahead: Option<&Tensor>, to: f64) -> Result<Tensor> {
    let (newest, at) = &nodes[0];
    let h = to - at;
    let image = -(-h).exp_m1();
    let straight = combine(&[((-h).exp(), x), (image, newest)])?;
    let earlier = nodes[1..]
        .iter()
        .map(|(guess, place)| (guess, (place - at) / h));
    // Where other guesses lie, in steps from the newest node.
    let others: Vec<(&Tensor, f64)> = earlier.chain(ahead.map(|guess| (guess, 1.0))).collect();
    if others.is_empty() {
        return Ok(straight);
    }
    let places: Vec<f64> = others.iter().map(|(_, place)| *place).collect();
    let weights = slope_weights(&places, h);
    let mut terms = vec![(1.0, &straight)];
    let mut own = 0.0;
    for ((guess, place), weight) in others.iter().zip(weights) {
        let factor = image * weight / place;
        terms.push((factor, *guess));
        own -= factor;
    }
    terms.push((own, newest));
    combine(&terms)
}

/// Weights of the differences to the newest guess, so that polynomials are met: `sum w r^(k-1) = k! phi_k / B`.
///
/// A single difference gets 1/2, as published.
fn slope_weights(places: &[f64], h: f64) -> Vec<f64> {
    let n = places.len();
    if n == 1 {
        return vec![0.5];
    }
    let b = (-h).exp_m1();
    // Moments of the exponential over the step: phi_1 = (e^-h - 1) / -h, phi_(k+1) = (phi_k - 1 / k!) / -h.
    let (mut moment, mut factorial) = (b / -h - 1.0, 1.0);
    let mut right = Vec::with_capacity(n);
    for k in 1..=n {
        right.push(moment * factorial / b);
        factorial *= (k + 1) as f64;
        moment = moment / -h - 1.0 / factorial;
    }
    solve_powers(places, right)
}

/// Solves `sum_i w_i places_i^k = right_k` for k from 0, by elimination; there are at most three.
fn solve_powers(places: &[f64], mut right: Vec<f64>) -> Vec<f64> {
    let n = places.len();
    // Row k has the k-th powers; none is eliminated by a zero, because places differ.
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|k| places.iter().map(|r| r.powi(k as i32)).collect())
        .collect();
    for pivot in 0..n {
        for row in pivot + 1..n {
            let factor = rows[row][pivot] / rows[pivot][pivot];
            let above = rows[pivot].clone();
            for (value, above) in rows[row].iter_mut().zip(above) {
                *value -= factor * above;
            }
            right[row] -= factor * right[pivot];
        }
    }
    let mut weights = vec![0.0; n];
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|i| rows[row][i] * weights[i]).sum();
        weights[row] = (right[row] - known) / rows[row][row];
    }
    weights
}
