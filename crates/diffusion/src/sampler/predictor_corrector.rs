//! The reverse SDE step by step, with Langevin steps in between that correct each noise level.

use candle_core::Tensor;

use super::course::{Descent, combine, shrink};
use super::{Clip, Course, StepReport};
use crate::constant::{self, Constant};
use crate::{Denoiser, Result, per_image};

/// Which SDE noised the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sde {
    /// It keeps their variance: `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`.
    Vp,
    /// It adds to it: `x = x0 + sigma eps`.
    Ve,
}

/// How [`predictor_corrector()`] goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CorrectorOptions {
    /// Whether guesses of the clean image are clipped.
    pub clip: Clip,
    /// Which SDE.
    pub sde: Sde,
    /// Langevin steps at each noise level; 0 for none.
    pub n_corrections: usize,
    /// Size of these steps: the ratio of signal to noise in them, 0.16 for images by Song et al.
    pub snr: f64,
}

/// Reverse diffusion with Langevin corrections: one evaluation per step, and one per correction.
///
/// # Shapes and units
/// As for [`super::edm()`]; one noise per step but the last, and one per correction.
///
/// # Errors
/// [`Error::Constant`](crate::Error::Constant) if `snr` is not above 0, and as for [`super::edm()`].
///
/// # Source
/// Song et al. 2021, arXiv 2011.13456, algorithms 1 to 5; predictors by reverse diffusion (VP) and ancestral sampling
/// (VE, appendix F: long steps do it no harm). Sizes of Langevin steps are per image, so that none depends on the others.
pub fn predictor_corrector<D: Denoiser + ?Sized>(
    denoiser: &D,
    x_t: &Tensor,
    course: &Course,
    options: CorrectorOptions,
    noise: &mut dyn FnMut(usize) -> Result<Tensor>,
    on_step: &mut dyn FnMut(StepReport<'_>) -> Result<()>,
) -> Result<Tensor> {
    constant::check([Constant::positive("snr", options.snr)])?;
    let mut run = Descent::new((denoiser, course), options.clip, noise, on_step);
    let mut x = run.start(x_t)?;
    for (step, sigma, next) in run.steps() {
        let x0_hat = run.denoise(&x, sigma)?;
        x = predict(&mut run, &x, &x0_hat, [sigma, next], options.sde)?;
        if next > 0.0 {
            for _ in 0..options.n_corrections {
                x = correct(&mut run, &x, [sigma, next], options)?;
            }
        }
        run.report(step, &x0_hat, &x)?;
    }
    run.end(&x)
}

/// One step of the reverse SDE; the last one without its noise.
fn predict<D: Denoiser + ?Sized>(
    run: &mut Descent<'_, D>,
    x: &Tensor,
    x0_hat: &Tensor,
    [sigma, next]: [f64; 2],
    sde: Sde,
) -> Result<Tensor> {
    let (mean, std) = match sde {
        Sde::Ve => {
            let variance = sigma * sigma - next * next;
            let share = variance / (sigma * sigma);
            (
                combine(&[(1.0 - share, x), (share, x0_hat)])?,
                variance.sqrt(),
            )
        }
        Sde::Vp => {
            // x_t = here x, and the step ends at x_t = there x.
            let (here, there) = (shrink(sigma), shrink(next));
            let beta = 1.0 - (here / there).powi(2);
            let pull = beta / (1.0 - here * here);
            let keep = 2.0 - (1.0 - beta).sqrt() - pull;
            let mean = combine(&[(keep * here / there, x), (pull * here / there, x0_hat)])?;
            (mean, beta.sqrt() / there)
        }
    };
    if next == 0.0 {
        return Ok(mean);
    }
    let fresh = run.fresh(&mean)?;
    combine(&[(1.0, &mean), (std, &fresh)])
}

/// One Langevin step at the noise level `next`.
fn correct<D: Denoiser + ?Sized>(
    run: &mut Descent<'_, D>,
    x: &Tensor,
    [sigma, next]: [f64; 2],
    options: CorrectorOptions,
) -> Result<Tensor> {
    let guess = run.denoise(x, next)?;
    let fresh = run.fresh(x)?;
    let (here, alpha) = match options.sde {
        Sde::Ve => (1.0, 1.0),
        Sde::Vp => (shrink(next), (shrink(sigma) / shrink(next)).powi(2)),
    };
    // The score of x_t = here x; a step on x_t is one of its size over `here` on x.
    let scale = 1.0 / (here * next * next);
    let score = combine(&[(scale, &guess), (-scale, x)])?;
    let squares = |x: &Tensor| -> Result<Vec<f64>> {
        let squares = per_image::mean(&x.sqr()?)?;
        Ok(squares.to_dtype(candle_core::DType::F64)?.to_vec1()?)
    };
    let ratios = squares(&fresh)?.into_iter().zip(squares(&score)?);
    let sizes: Vec<f64> = ratios
        .map(|(noise, score)| 2.0 * alpha * options.snr.powi(2) * noise / score.max(1e-30))
        .collect();
    let drift = per_image::scale(&score, sizes.iter().map(|size| size / here).collect())?;
    let spread = sizes.iter().map(|size| (2.0 * size).sqrt() / here);
    let spread = per_image::scale(&fresh, spread.collect())?;
    Ok(((x + drift)? + spread)?)
}
