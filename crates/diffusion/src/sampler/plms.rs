//! PLMS: DDIM steps along a mean of the last four guesses of the noise.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::{Clip, Course, StepReport};
use crate::{Denoiser, Result};

/// Pseudo linear multi-step sampling (PNDM without its Runge-Kutta start): one evaluation per step.
///
/// # Shapes and units
/// As for [`super::edm()`], without noise.
///
/// # Errors
/// As for [`super::edm()`].
///
/// # Source
/// Liu et al. 2022, arXiv 2202.09778, eq. 11 and 12, with the weights that uneven steps of sigma need (55, -59, 37 and -9
/// of 24 are those of even ones); the first steps use as many guesses as there are.
pub fn plms<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    clip: Clip,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let mut no_noise = super::no_noise;
    let mut run = Descent::new((denoiser, course), clip, &mut no_noise, on_step);
    let mut x = run.start(x_t)?;
    // Guesses of the noise and their sigmas, the newest first.
    let mut guesses: Vec<(Tensor, f64)> = Vec::new();
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        let eps = eps_hat(&x, &x0_hat, sigma)?;
        guesses.insert(0, (eps, sigma));
        guesses.truncate(4);
        let nodes: Vec<f64> = guesses.iter().map(|(_, sigma)| *sigma).collect();
        let weights = adams_bashforth(&nodes, next);
        let terms: Vec<_> = weights
            .into_iter()
            .zip(guesses.iter().map(|g| &g.0))
            .collect();
        let mean = combine(&terms)?;
        x = combine(&[(1.0, &x), (next - sigma, &mean)])?;
        run.report(step, &x0_hat, &x)?;
    }
    run.end(&x)
}

/// The noise that goes with a guess of the image.
fn eps_hat(x: &Tensor, x0_hat: &Tensor, sigma: f64) -> Result<Tensor> {
    combine(&[(1.0 / sigma, x), (-1.0 / sigma, x0_hat)])
}

/// Weights of what is known at nodes, the newest first, in the mean from there to `end`: the integral of the polynomials
/// that are 1 at one node and 0 at the others.
fn adams_bashforth(nodes: &[f64], end: f64) -> Vec<f64> {
    let (middle, half) = (0.5 * (nodes[0] + end), 0.5 * (end - nodes[0]));
    // Gauss and Legendre's two points are exact up to the third degree, which four nodes need.
    let places = [-1.0, 1.0].map(|sign| middle + sign * half / 3.0_f64.sqrt());
    let polynomial = |i: usize, x: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(j, _)| *j != i);
        others
            .map(|(_, node)| (x - node) / (nodes[i] - node))
            .product()
    };
    (0..nodes.len())
        .map(|i| places.iter().map(|&x| 0.5 * polynomial(i, x)).sum())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::adams_bashforth;

    #[test]
    fn even_steps_have_the_published_weights() {
        let published = [55.0, -59.0, 37.0, -9.0];
        for (got, expected) in adams_bashforth(&[1.0, 2.0, 3.0, 4.0], 0.0)
            .iter()
            .zip(published)
        {
            assert!((got - expected / 24.0).abs() < 1e-12, "{got}");
        }
    }
}
