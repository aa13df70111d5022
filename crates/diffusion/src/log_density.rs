//! The density that the probability flow of a denoiser gives to images.

use std::cell::Cell;
use std::f64::consts::{LN_2, PI};

use candle_core::{DType, Tensor};

use crate::sampler::Tolerance;
use crate::sampler::course::{combine, shrink};
use crate::sampler::dormand_prince::{Solver, State};
use crate::{DifferentiableDenoiser, Error, NoiseSchedule, Result, per_image};

/// Densities of images, as [`log_densities`] finds them.
#[derive(Debug, Clone, PartialEq)]
pub struct LogDensities {
    /// Natural logarithm of the density of each row, `[N]`.
    pub nats: Vec<f64>,
    /// Numbers in an image.
    pub n_dims: usize,
    /// How often the denoiser was asked, each time for all rows, with a vector-Jacobian product.
    pub n_evaluations: usize,
}

impl LogDensities {
    /// What a row says of images of whole numbers, in bits per dimension, if noise uniform over a cell was added to
    /// each: `-log2(density cell^dims) / dims`.
    ///
    /// Its mean over noises is at least what the whole numbers need under the density (dequantization).
    ///
    /// # Source
    /// Theis et al. 2016, arXiv 1511.01844, section 3.1; as Song et al. 2021, arXiv 2011.13456, appendix D.2, whose
    /// cell is 1/128.
    pub fn bits_per_dim(&self, cell: f64) -> impl Iterator<Item = f64> + '_ {
        let n_dims = self.n_dims as f64;
        self.nats
            .iter()
            .map(move |nats| -nats / n_dims / LN_2 - cell.log2())
    }
}

/// The log-density of images under the probability flow: that of the noise that they are carried to, and how much the
/// flow spreads on the way (Hutchinson's estimate of its divergence).
///
/// The flow begins at the first level of the schedule, of which the images count as drawings, and ends at its last with
/// an SNR above 0, whose images count as standard normal. So it integrates to 1, whatever the model learned. A row's
/// estimate is unbiased, up to the tolerance, if the numbers of its probe have mean 0, variance 1 and no correlation;
/// rows of the same image with other probes average to less noise, and rows with the unit vectors times `sqrt(dims)` to
/// none at all.
///
/// Steps are as long as the errors of all rows allow: where an image must not depend on the others of its batch, give
/// it alone.
///
/// # Shapes and units
/// - `schedule`: of training
/// - `x0`: `[N, ..]`
/// - `probes`: like `x0`, such as random signs
/// - `tolerance`: of the images, and of the log-density per dimension
///
/// # Errors
/// [`Error::Shape`] if a probe or a guess is not shaped like the images; [`Error::Constant`] for a tolerance that is
/// not above 0; [`Error::PureNoise`] for a schedule of one level; [`Error::NotFollowed`] if steps become too many; and
/// whatever the denoiser returns.
///
/// # Source
/// Song et al. 2021, arXiv 2011.13456, eq. 39 and 40, with `dx / d(ln sigma) = x - x0_hat`, whose divergence is
/// `dims - trace(dx0_hat / dx)`; Hutchinson 1990; Grathwohl et al. 2019, arXiv 1810.01367 (one probe for all the way).
pub fn log_densities<D: DifferentiableDenoiser + ?Sized>(
    denoiser: &D,
    schedule: &NoiseSchedule,
    x0: &Tensor,
    probes: &Tensor,
    tolerance: Tolerance,
) -> Result<LogDensities> {
    tolerance.check()?;
    per_image::check_shape("probes", probes, x0)?;
    let [low, high] = sigmas(schedule)?;
    let n_images = x0.dims().first().copied().unwrap_or(0);
    let n_dims = x0.elem_count() / n_images.max(1);
    let n_evaluations = Cell::new(0);
    let slope_at = |y: &Carried, log_sigma: f64| -> Result<Carried> {
        n_evaluations.set(n_evaluations.get() + 1);
        let sigma = log_sigma.exp();
        let x_t = y.x.affine(shrink(sigma), 0.0)?;
        let t = vec![schedule.time_of(-2.0 * log_sigma); n_images];
        let (denoised, product) = denoiser.denoise_with_vjp(&x_t, &t, probes)?;
        per_image::check_shape("x0_hat", &denoised.x0_hat, x0)?;
        per_image::check_shape("v", &product, x0)?;
        let shares = means(&(product * probes)?)?;
        Ok(Carried {
            x: (&y.x - denoised.x0_hat.detach())?,
            kept: shares.iter().map(|share| shrink(sigma) * share).collect(),
        })
    };
    let start = Carried {
        x: x0.clone(),
        kept: vec![0.0; n_images],
    };
    let mut solver = Solver::new(start, [low, high].map(f64::ln), tolerance);
    while solver.advance(&slope_at)?.is_some() {}
    let end = solver.into_y();
    let noise = end.x.affine(shrink(high), 0.0)?;
    let squares = means(&noise.to_dtype(DType::F64)?.sqr()?)?;
    let spread = (shrink(high) * high / low).ln();
    let nats = squares.iter().zip(&end.kept).map(|(square, kept)| {
        let normal = -0.5 * (square + (2.0 * PI).ln());
        n_dims as f64 * (normal + spread - kept)
    });
    Ok(LogDensities {
        nats: nats.collect(),
        n_dims,
        n_evaluations: n_evaluations.get(),
    })
}

/// The least and the most noise per unit of data of a schedule; of pure noise there is no finite amount.
fn sigmas(schedule: &NoiseSchedule) -> Result<[f64; 2]> {
    let sigma = |log_snr: f64| (-0.5 * log_snr).exp();
    let all: Vec<f64> = schedule.log_snr().iter().map(|&l| sigma(l)).collect();
    let finite = all.iter().rposition(|sigma| sigma.is_finite());
    match finite {
        Some(last) if last > 0 => Ok([all[0], all[last]]),
        _ => Err(Error::PureNoise { t: 0 }),
    }
}

/// Images on their way, and how much of them the guesses kept: the mean of the diagonal of `dx0_hat / dx`, summed up
/// over `ln sigma`.
#[derive(Clone)]
struct Carried {
    x: Tensor,
    kept: Vec<f64>, // [N]
}

impl State for Carried {
    fn combine(terms: &[(f64, &Self)]) -> Result<Self> {
        let images: Vec<_> = terms.iter().map(|(factor, y)| (*factor, &y.x)).collect();
        let n_images = terms.first().map_or(0, |(_, y)| y.kept.len());
        let kept = |n: usize| terms.iter().map(|(factor, y)| factor * y.kept[n]).sum();
        Ok(Self {
            x: combine(&images)?,
            kept: (0..n_images).map(kept).collect(),
        })
    }

    fn excess(&self, [before, after]: [&Self; 2], tolerance: Tolerance) -> Result<f64> {
        let of_images = self.x.excess([&before.x, &after.x], tolerance)?;
        let sizes = before.kept.iter().zip(&after.kept);
        let excesses = self.kept.iter().zip(sizes).map(|(error, (before, after))| {
            let size = before.abs().max(after.abs());
            (error / (tolerance.absolute + tolerance.relative * size)).powi(2)
        });
        let of_kept = (excesses.sum::<f64>() / self.kept.len() as f64).sqrt();
        // Not a number, if one is not.
        Ok(if of_images > of_kept {
            of_images
        } else {
            of_kept
        })
    }
}

/// The mean of each image, summed in f64: `[N]`.
fn means(x: &Tensor) -> Result<Vec<f64>> {
    Ok(per_image::mean(&x.to_dtype(DType::F64)?)?.to_vec1()?)
}
