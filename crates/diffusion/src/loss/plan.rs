//! The loss of a batch but for its pixels, for kernels that compute it and its gradient in one pass.
//!
//! A kernel repeats [`Objective::loss`] element by element, from a few numbers per image that are computed here. So it
//! needs to know nothing of schedules, predictions and weightings.

use std::f64::consts::LN_2;

use candle_core::{DType, Device, Tensor};

use super::{ImageWeights, LossTerms, Objective};
use crate::{Error, Result, variational};

/// What the loss of one image is made of, besides its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageLoss {
    /// The factor of x0 in the target: the network should say `target_x0 x0 + target_eps eps`.
    pub target_x0: f64,
    /// The factor of eps in the target.
    pub target_eps: f64,
    /// The derivative of what is minimized by [`ImageMeans::mse`].
    pub d_mse: f64,
    /// The variational term, if the loss has one.
    pub bound: Option<ImageBound>,
}

/// The variational term of one image.
///
/// With s what the network says of the variance (0 if nothing), `r = ratio_slope (s + ratio_shift)` is the logarithm
/// of the posterior's variance over the model's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageBound {
    /// The factor in r.
    pub ratio_slope: f64,
    /// The summand in r.
    pub ratio_shift: f64,
    /// What is measured.
    pub term: ImageTerm,
    /// The derivative of what is minimized by [`ImageMeans::nats`], as far as the prediction moves these.
    pub d_prediction: f64,
    /// The same, as far as what is said of the variance moves them.
    pub d_variance: f64,
}

/// What the variational term of an image measures, in nats, of each of its elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ImageTerm {
    /// For t > 0 the divergence from the posterior, `(distance error^2 e^r + e^r - r - 1) / 2`.
    Divergence {
        /// The squared distance of the means in posterior variances, per squared error of the prediction.
        distance: f64,
    },
    /// For t = 0 the negative of [`discretized_gaussian_log_likelihood`](crate::discretized_gaussian_log_likelihood).
    Likelihood {
        /// `x0 - x0_hat` per error of the prediction.
        x0_error: f64,
        /// Natural logarithm of the posterior variance: the model's is `log_variance - r`.
        log_variance: f64,
    },
}

/// Means over the elements of one image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageMeans {
    /// Of the squared error of the prediction.
    pub mse: f64,
    /// Of the variational term, in nats; anything if there is none.
    pub nats: f64,
}

/// The loss of a batch but for its pixels.
#[derive(Debug)]
pub struct LossPlan<'a> {
    objective: &'a Objective,
    t: &'a [u32],
    weights: ImageWeights,
    images: Vec<ImageLoss>,
}

impl Objective {
    /// The loss of images at timesteps `t` but for their pixels.
    ///
    /// # Shapes and units
    /// - `t`: `[N]`, below `n_timesteps`
    /// - `d_weighted`: `[N]`, the derivative of what is minimized by each image's [`LossTerms::weighted`]: `1 / N` for
    ///   their mean
    ///
    /// # Errors
    /// [`Error::Shape`] if `d_weighted` is not like `t`; otherwise as for [`Self::loss`].
    ///
    /// # Example
    /// ```
    /// # use p2_diffusion::{NoiseSchedule, Objective, Prediction, Variance, Weighting};
    /// let schedule = NoiseSchedule::linear(1000)?;
    /// let simple = Weighting::Simple {};
    /// let objective = Objective::new(&schedule, Prediction::Eps, Variance::FixedSmall, simple)?;
    /// let plan = objective.plan(&[10, 500], &[0.5, 0.5])?;
    /// for image in plan.images() {
    ///     assert_eq!((image.target_x0, image.target_eps), (0.0, 1.0)); // eps itself
    ///     assert_eq!(image.d_mse, 0.5);
    ///     assert!(image.bound.is_none());
    /// }
    /// # Ok::<(), p2_diffusion::Error>(())
    /// ```
    pub fn plan<'a>(&'a self, t: &'a [u32], d_weighted: &[f64]) -> Result<LossPlan<'a>> {
        if d_weighted.len() != t.len() {
            return Err(Error::Shape {
                name: "d_weighted",
                shape: vec![d_weighted.len()],
                expected: vec![t.len()],
            });
        }
        let targets = self.target_factors(t)?;
        let weights = self.image_weights(t)?;
        let per_image = t.iter().zip(d_weighted).zip(&weights.factor).zip(targets);
        let images =
            per_image.map(
                |(((&t, &d_weighted), &factor), [target_x0, target_eps])| ImageLoss {
                    target_x0,
                    target_eps,
                    d_mse: d_weighted * factor,
                    bound: self.image_bound(t as usize, d_weighted),
                },
            );
        Ok(LossPlan {
            objective: self,
            t,
            images: images.collect(),
            weights,
        })
    }

    /// The factors of x0 and eps in the targets of images: the targets of numbers (1, 0) and (0, 1), since they are
    /// linear.
    fn target_factors(&self, t: &[u32]) -> Result<Vec<[f64; 2]>> {
        let unit = |first: f64| {
            let pairs = [first, 1.0 - first].repeat(t.len());
            Tensor::from_vec(pairs, (t.len(), 2), &Device::Cpu)
        };
        let (x0, eps) = (unit(1.0)?, unit(0.0)?); // [N, 2]
        let targets = self.prediction.target(&self.schedule, &x0, &eps, t)?;
        let targets: Vec<f64> = targets.flatten_all()?.to_vec1()?;
        Ok(targets.as_chunks().0.to_vec())
    }

    /// The variational term of an image at a checked timestep, if the loss has one.
    fn image_bound(&self, t: usize, d_weighted: f64) -> Option<ImageBound> {
        if !self.has_bound() {
            return None;
        }
        let (schedule, prediction) = (&self.schedule, self.prediction);
        let ratio = self.variance.log_ratio(schedule, t);
        let term = match t {
            0 => ImageTerm::Likelihood {
                x0_error: prediction.x0_error_factor(schedule.noise_level(0)),
                log_variance: schedule.posterior_log_variance_clipped()[0],
            },
            _ => ImageTerm::Divergence {
                distance: variational::distance_factor(schedule, prediction, t),
            },
        };
        let d_nats = d_weighted * self.vb_per_nat();
        Some(ImageBound {
            ratio_slope: ratio.slope,
            ratio_shift: ratio.shift,
            term,
            d_prediction: if self.loss_type.is_bound() {
                d_nats
            } else {
                0.0
            },
            d_variance: d_nats,
        })
    }

    fn has_bound(&self) -> bool {
        self.loss_type.is_bound() || self.variance.is_learned()
    }

    fn vb_per_nat(&self) -> f64 {
        self.loss_type.bits_factor(self.schedule.n_timesteps()) / LN_2
    }
}

impl LossPlan<'_> {
    /// What a kernel has to know of each image: `[N]`.
    #[must_use]
    pub fn images(&self) -> &[ImageLoss] {
        &self.images
    }

    /// The loss by what a kernel found of each image, `[N]`; in f32, without gradients.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many means as images.
    pub fn terms(self, means: &[ImageMeans]) -> Result<LossTerms> {
        let n = self.images.len();
        if means.len() != n {
            return Err(Error::Shape {
                name: "means",
                shape: vec![means.len()],
                expected: vec![n],
            });
        }
        let tensor = |values: Vec<f64>| {
            let values = Tensor::from_vec(values, n, &Device::Cpu)?;
            values.to_dtype(DType::F32)
        };
        let mse = tensor(means.iter().map(|means| means.mse).collect())?;
        let vb_per_nat = self.objective.vb_per_nat();
        let vb = means.iter().map(|means| means.nats * vb_per_nat);
        let vb = self
            .objective
            .has_bound()
            .then(|| tensor(vb.collect()))
            .transpose()?;
        self.objective.terms(mse, vb, self.weights, self.t)
    }
}
