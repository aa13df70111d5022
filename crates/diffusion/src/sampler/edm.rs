//! Euler and Heun steps along the probability flow, with or without churn.

use candle_core::Tensor;

use super::course::{Descent, combine};
use super::{Clip, Course, StepReport};
use crate::{Denoiser, Result};

/// How well a step follows the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Euler: one evaluation of the network. Without churn this is DDIM.
    First,
    /// Heun: two evaluations, one in the last step to no noise.
    Second,
}

/// Fresh noise before each step, which the step then has to remove as well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Churn {
    /// How much, over all steps together; 0 for none.
    pub amount: f64,
    /// Least and most sigma of the steps that get it.
    pub sigmas: [f64; 2],
    /// Standard deviation of the fresh noise, near 1.
    pub noise: f64,
}

impl Churn {
    /// None: the sampler is deterministic.
    pub const NONE: Self = Self {
        amount: 0.0,
        sigmas: [0.0, f64::INFINITY],
        noise: 1.0,
    };

    /// The noise that a step starts with after churning.
    fn raised(self, sigma: f64, n_steps: usize) -> f64 {
        let [low, high] = self.sigmas;
        let gamma = if (low..=high).contains(&sigma) {
            (self.amount / n_steps as f64).min(std::f64::consts::SQRT_2 - 1.0)
        } else {
            0.0
        };
        sigma * (1.0 + gamma)
    }
}

/// How [`edm()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EdmOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Euler or Heun.
    pub order: Order,
    /// Fresh noise.
    pub churn: Churn,
}

/// The sampler of Karras et al.: Heun's (or Euler's) method, and churn.
///
/// # Shapes and units
/// - `x_t`: `[N, ..]`, standard normal; where the run starts
/// - `noise`, `on_step`: see [`crate::sampler`]; one noise per step that churns
/// - returns: like `x_t`
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if a guess or a noise is not shaped like `x_t`, and whatever the closures return.
///
/// # Source
/// Karras et al. 2022, arXiv 2206.00364, algorithms 1 and 2.
pub fn edm<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: EdmOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    let EdmOptions { clip, order, churn } = options;
    let mut run = Descent::new((denoiser, course), clip, noise, on_step);
    let mut x = run.start(x_t)?;
    for (step, sigma, next) in run.steps() {
        let raised = churn.raised(sigma, course.n_steps());
        if raised > sigma {
            let fresh = run.fresh(&x)?;
            let std = (raised * raised - sigma * sigma).sqrt();
            x = combine(&[(1.0, &x), (churn.noise * std, &fresh)])?;
        }
        let x0_hat = run.denoise(&x, raised)?;
        let ratio = next / raised;
        let mut ahead = combine(&[(ratio, &x), (1.0 - ratio, &x0_hat)])?;
        if order == Order::Second && next > 0.0 {
            let guess = run.denoise(&ahead, next)?;
            // Half the slope here, `(x - x0_hat) / raised`, and half of that ahead.
            let half = 0.5 * (next - raised);
            let (here, there) = (half / raised, half / next);
            ahead = combine(&[
                (1.0 + here, &x),
                (-here, &x0_hat),
                (there, &ahead),
                (-there, &guess),
            ])?;
        }
        x = ahead;
        run.report(step, &x0_hat, &x)?;
    }
    run.end(&x)
}
