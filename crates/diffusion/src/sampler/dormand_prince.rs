//! Dormand and Prince's method of order 5(4): steps as long as their errors allow.

use candle_core::{DType, Tensor};

use super::course::combine;
use crate::constant::{self, Constant};
use crate::{Error, Result};

/// How exact a solution shall be: the error that each step may make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Relative to the size of what is solved for, above 0; 1e-5 by Song et al.
    pub relative: f64,
    /// Allowed whatever the size, above 0; 1e-5 by Song et al.
    pub absolute: f64,
}

impl Tolerance {
    /// The same number for both.
    #[must_use]
    pub fn of(tolerance: f64) -> Self {
        Self {
            relative: tolerance,
            absolute: tolerance,
        }
    }

    pub(crate) fn check(self) -> Result<()> {
        constant::check([
            Constant::positive("relative", self.relative),
            Constant::positive("absolute", self.absolute),
        ])
    }
}

/// What is solved for.
pub(crate) trait State: Clone {
    /// A sum of states, each times a number.
    fn combine(terms: &[(f64, &Self)]) -> Result<Self>;

    /// How many times the allowed error this error of a step is, whose ends are `[before, after]`.
    fn excess(&self, ends: [&Self; 2], tolerance: Tolerance) -> Result<f64>;
}

impl State for Tensor {
    fn combine(terms: &[(f64, &Self)]) -> Result<Self> {
        combine(terms)
    }

    fn excess(&self, [before, after]: [&Self; 2], tolerance: Tolerance) -> Result<f64> {
        let size = before.abs()?.maximum(&after.abs()?)?;
        let allowed = size.affine(tolerance.relative, tolerance.absolute)?;
        let square = (self / allowed)?.sqr()?.mean_all()?;
        let square: f64 = square.to_dtype(DType::F64)?.to_scalar()?;
        Ok(square.sqrt())
    }
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

/// More steps than any flow needs: the tolerance is below rounding.
const MAX_STEPS: usize = 10_000;

/// A solution in progress of `dy / ds = slope(y, s)`, from one s to another.
///
/// # Source
/// Dormand and Prince 1980, A family of embedded Runge-Kutta formulae, table 2.
pub(crate) struct Solver<Y> {
    y: Y,
    /// At `y`; not known before the first step.
    slope: Option<Y>,
    at: f64,
    end: f64,
    /// Length of the next step, of the sign of `end - at`.
    h: f64,
    tolerance: Tolerance,
    /// Taken or refused.
    n_steps: usize,
}

/// A step that was taken.
pub(crate) struct Step<'a, Y> {
    /// Where it began and ended.
    pub(crate) ends: [f64; 2],
    /// At its end.
    pub(crate) y: &'a Y,
    /// At its end.
    pub(crate) slope: &'a Y,
}

impl<Y: State> Solver<Y> {
    /// A solution at its beginning.
    pub(crate) fn new(y: Y, [at, end]: [f64; 2], tolerance: Tolerance) -> Self {
        Self {
            y,
            slope: None,
            at,
            end,
            h: (end - at) / 20.0,
            tolerance,
            n_steps: 0,
        }
    }

    /// Goes one step; `None` at the end.
    ///
    /// # Errors
    /// [`Error::NotFollowed`] if steps become too many or too short, and whatever `slope_at` returns.
    pub(crate) fn advance(
        &mut self,
        slope_at: &dyn Fn(&Y, f64) -> Result<Y>,
    ) -> Result<Option<Step<'_, Y>>> {
        if self.at == self.end {
            return Ok(None);
        }
        let slope = match self.slope.take() {
            Some(slope) => slope,
            None => slope_at(&self.y, self.at)?,
        };
        loop {
            let left = self.end - self.at;
            let is_last = self.h.abs() >= left.abs();
            let h = if is_last { left } else { self.h };
            if self.n_steps == MAX_STEPS || self.at + h == self.at {
                let n_steps = self.n_steps;
                return Err(Error::NotFollowed { n_steps });
            }
            self.n_steps += 1;
            let tried = attempt((&self.y, &slope), self.at, h, slope_at)?;
            let excess = tried.error.excess([&self.y, &tried.y], self.tolerance)?;
            // What is not finite may be so only for the length of the step.
            let factor = if excess.is_finite() {
                (0.9 * excess.powf(-0.2)).clamp(0.2, 5.0)
            } else {
                0.2
            };
            self.h = h * factor;
            if excess <= 1.0 {
                let before = self.at;
                // The end is met exactly, however sums round.
                self.at = if is_last { self.end } else { before + h };
                self.y = tried.y;
                return Ok(Some(Step {
                    ends: [before, self.at],
                    y: &self.y,
                    slope: self.slope.insert(tried.slope),
                }));
            }
        }
    }

    /// What was solved for.
    pub(crate) fn into_y(self) -> Y {
        self.y
    }
}

/// Where a step leads, the slope there, and the difference of two results.
struct Attempt<Y> {
    y: Y,
    slope: Y,
    error: Y,
}

fn attempt<Y: State>(
    (y, slope): (&Y, &Y),
    at: f64,
    h: f64,
    slope_at: &dyn Fn(&Y, f64) -> Result<Y>,
) -> Result<Attempt<Y>> {
    let mut slopes = vec![slope.clone()];
    let mut ahead = y.clone();
    for (row, node) in STAGES.iter().zip(NODES) {
        let mut terms = vec![(1.0, y)];
        terms.extend(row.iter().map(|a| h * a).zip(&slopes));
        ahead = Y::combine(&terms)?;
        slopes.push(slope_at(&ahead, at + node * h)?);
    }
    let terms: Vec<_> = ERROR.iter().map(|e| h * e).zip(&slopes).collect();
    Ok(Attempt {
        y: ahead,
        error: Y::combine(&terms)?,
        slope: slopes.pop().unwrap_or_else(|| slope.clone()),
    })
}
