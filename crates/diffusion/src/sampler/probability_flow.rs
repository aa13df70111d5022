//! The probability flow by an adaptive solver: as exact as one asks for, in as many evaluations as that takes.

use candle_core::Tensor;

use super::course::Descent;
use super::dormand_prince::{Solver, Tolerance};
use super::{Clip, Course, StepReport};
use crate::{Denoiser, Result};

/// How [`probability_flow()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlowOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// How exactly the flow is followed.
    pub tolerance: Tolerance,
}

/// Follows the probability flow from the first noise of a course to its last above 0, then takes the guess.
///
/// Steps are as long as the errors of all images allow: where an image must not depend on the others of its batch,
/// give it alone. `on_step` sees each step that was taken, all with index 0.
///
/// # Shapes and units
/// As for [`super::edm()`], without noise. Only the ends of the course matter.
///
/// # Errors
/// [`Error::Constant`](crate::Error::Constant) for a tolerance that is not above 0;
/// [`Error::NotFollowed`](crate::Error::NotFollowed) if steps become too many; and as for [`super::edm()`].
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
    let FlowOptions { clip, tolerance } = options;
    tolerance.check()?;
    let sigmas = course.sigmas();
    let ends_clean = sigmas[course.n_steps()] == 0.0;
    let last = sigmas[course.n_steps() - usize::from(ends_clean)];
    let mut no_noise = super::no_noise;
    let mut run = Descent::new((denoiser, course), clip, &mut no_noise, on_step);
    let ends = [sigmas[0], last].map(f64::ln);
    let mut solver = Solver::new(run.start(x_t)?, ends, tolerance);
    while let Some(step) = solver.advance(&|x, at| slope_at(&run, x, at))? {
        let x0_hat = (step.y - step.slope)?;
        run.tell(0, step.ends.map(f64::exp), &x0_hat, step.y)?;
    }
    let x = solver.into_y();
    if ends_clean {
        return run.end(&run.denoise(&x, last)?);
    }
    run.end(&x)
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
