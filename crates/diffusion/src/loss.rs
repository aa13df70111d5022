//! The training loss: prediction, target and weight become one number per image.

mod plan;

use candle_core::Tensor;

pub use plan::{ImageBound, ImageLoss, ImageMeans, ImageTerm, LossPlan};

use crate::per_image;
use crate::variance::StepVariance;
use crate::variational::{self, Guess};
use crate::weighting::{AdaptiveBuckets, target_weights};
use crate::{
    Error, LossType, NoiseLevel, NoiseSchedule, Prediction, Result, StatefulWeighting, Variance,
    Weighting,
};

/// The loss of a batch in its parts, each `[N]`, in the type of the network's output.
#[derive(Debug, Clone)]
pub struct LossTerms {
    /// Squared error of the prediction, mean over the image; not weighted. In units of the target.
    pub mse: Tensor,
    /// The same error in units of eps: comparable across predictions. Carries no gradient.
    pub mse_eps: Tensor,
    /// Variational term, bits per dimension times [`LossType::bits_factor`]: of a learned variance, which is all that
    /// it trains, or where it is what is minimized.
    pub vb: Option<Tensor>,
    /// What is minimized: weight times `mse`, plus `vb`, plus what a weighting that learns adds; `vb` alone where the
    /// variational bound is minimized.
    pub weighted: Tensor,
}

/// What a training minimizes: a loss type, a prediction, a variance and a weight per noise level.
///
/// # Example
/// ```
/// # use candle_core::{Device, Tensor, Var};
/// # use p2_diffusion::{NoiseSchedule, Objective, Prediction, Variance, Weighting};
/// let schedule = NoiseSchedule::linear(1000)?;
/// let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
/// let objective = Objective::new(&schedule, Prediction::Eps, Variance::FixedSmall, p2)?;
/// let x0 = Tensor::new(&[[0.2f32, -0.4]], &Device::Cpu)?; // [1, 2]
/// let eps = Tensor::new(&[[1f32, -1.0]], &Device::Cpu)?;
/// let output = Var::new(&[[0f32, 0.0]], &Device::Cpu)?; // a network that says nothing
/// let loss = objective.loss(&output, &x0, &eps, &[500])?;
/// assert_eq!(loss.mse.to_vec1::<f32>()?, [1.0]);
/// assert!((loss.weighted.to_vec1::<f32>()?[0] - 0.922203).abs() < 1e-6); // 1 - alpha_bar
/// assert!(loss.weighted.mean_all()?.backward()?.get(&output).is_some());
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug)]
pub struct Objective {
    loss_type: LossType,
    schedule: NoiseSchedule,
    prediction: Prediction,
    variance: Variance,
    /// For a weighting that learns, what it starts with.
    weight_target: Vec<f64>,
    learning: Learning,
}

/// Whether the weights change with the errors that are seen.
#[derive(Debug)]
enum Learning {
    No,
    /// Yes, but there is nothing to learn into.
    Missing,
    Into(Box<dyn StatefulWeighting>),
}

impl Objective {
    /// The objective with one of the named weightings, of type [`LossType::RescaledMse`].
    ///
    /// # Errors
    /// As for [`Self::of_type`].
    pub fn new(
        schedule: &NoiseSchedule,
        prediction: Prediction,
        variance: Variance,
        weighting: Weighting,
    ) -> Result<Self> {
        let loss_type = LossType::RescaledMse;
        Self::of_type(loss_type, schedule, prediction, variance, weighting)
    }

    /// The objective of a type, with one of the named weightings.
    ///
    /// # Errors
    /// [`Error::WeightedBound`] for any weighting but [`Weighting::Simple`] where the variational bound is minimized;
    /// [`Error::Constant`] if a constant of the weighting is negative or not finite; [`Error::Weight`] with
    /// the first timestep whose weight is not finite or lost in f32; [`Error::ZeroSnr`] for prediction eps
    /// on a schedule that ends with an SNR of 0.
    pub fn of_type(
        loss_type: LossType,
        schedule: &NoiseSchedule,
        prediction: Prediction,
        variance: Variance,
        weighting: Weighting,
    ) -> Result<Self> {
        let weighting = match (loss_type.is_bound(), weighting) {
            (false, weighting) => weighting,
            (true, Weighting::Simple {}) => Weighting::Vlb {},
            (true, _) => return Err(Error::WeightedBound),
        };
        weighting.check(prediction)?;
        let weight_target = |level| weighting.weight_target(prediction, level);
        let objective = Self::with_weight_target(schedule, prediction, variance, weight_target)?;
        let learning = match AdaptiveBuckets::of(weighting) {
            Some(buckets) => Learning::Into(Box::new(buckets)),
            None if weighting.is_stateful() => Learning::Missing,
            None => Learning::No,
        };
        Ok(Self {
            loss_type,
            learning,
            ..objective
        })
    }

    /// The same objective, whose weights are adjusted by what is learned.
    #[must_use]
    pub fn with_stateful(self, stateful: Box<dyn StatefulWeighting>) -> Self {
        Self {
            learning: Learning::Into(stateful),
            ..self
        }
    }

    /// The objective with a weighting of one's own, given as the weight on the squared eps error.
    ///
    /// It is converted to the error of what the network predicts.
    ///
    /// # Errors
    /// As for [`Self::new`]; a weight must not be negative.
    ///
    /// # Example
    /// ```
    /// # use p2_diffusion::{NoiseLevel, NoiseSchedule, Objective, Prediction, Variance};
    /// let schedule = NoiseSchedule::cosine(1000)?;
    /// let min_snr_5 = |level: NoiseLevel| (5.0 / level.snr()).min(1.0);
    /// Objective::with_weight_eps(&schedule, Prediction::V, Variance::FixedSmall, min_snr_5)?;
    /// # Ok::<(), p2_diffusion::Error>(())
    /// ```
    pub fn with_weight_eps(
        schedule: &NoiseSchedule,
        prediction: Prediction,
        variance: Variance,
        weight_eps: impl Fn(NoiseLevel) -> f64,
    ) -> Result<Self> {
        let weight_target = |level| weight_eps(level) * prediction.exchange_rate(level);
        Self::with_weight_target(schedule, prediction, variance, weight_target)
    }

    fn with_weight_target(
        schedule: &NoiseSchedule,
        prediction: Prediction,
        variance: Variance,
        weight_target: impl Fn(NoiseLevel) -> f64,
    ) -> Result<Self> {
        if prediction == Prediction::Eps
            && let Some(t) = schedule.alpha_bar().iter().position(|&a| a == 0.0)
        {
            return Err(Error::ZeroSnr { t });
        }
        Ok(Self {
            loss_type: LossType::RescaledMse,
            weight_target: target_weights(schedule, prediction, weight_target)?,
            schedule: schedule.clone(),
            prediction,
            variance,
            learning: Learning::No,
        })
    }

    /// The weight on the squared error of the prediction, one per timestep: `[T]`. One that learns starts with it.
    ///
    /// Where the variational bound is minimized, what its terms amount to with the posterior's variance:
    /// [`Weighting::Vlb`].
    #[must_use]
    pub fn weight_target(&self) -> &[f64] {
        &self.weight_target
    }

    /// The schedule that the network is trained on.
    #[must_use]
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// What the network predicts.
    #[must_use]
    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// The variance of the reverse process.
    #[must_use]
    pub fn variance(&self) -> Variance {
        self.variance
    }

    /// The loss of a batch, differentiable with respect to `output`.
    ///
    /// `weighted = weight_target[t] mse + vb`. The prediction gets no gradient from `vb`, the variance gets
    /// no gradient from `mse`, and no weight applies to `vb`. Where the variational bound is minimized, `weighted = vb`,
    /// which both get their gradient from; for pixels whose probability is at its floor there is none.
    ///
    /// # Shapes and units
    /// - `output`: `[N, H, W, C]`, or `[N, H, W, 2C]` with learned variance; what the network said about
    ///   `x_t = schedule.add_noise(x0, eps, t)`. Any rank will do, channels are last
    /// - `x0`: `[N, H, W, C]`, pixels in `[-1, 1]`; `eps`: like `x0`, the noise in x_t
    /// - `t`: `[N]`, below `n_timesteps`
    /// - returns: each term `[N]`
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes do not fit; [`Error::Timestep`] with the first image whose t is too large;
    /// [`Error::MissingState`] for [`Weighting::LearnedUncertainty`] without [`Self::with_stateful`].
    ///
    /// # Source
    /// Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 16 (hybrid loss); Choi et al. 2022, arXiv 2204.00227,
    /// eq. 8; Ho et al. 2020, arXiv 2006.11239, eq. 5 (variational bound). Golden: `tests/all/goldens.rs`.
    pub fn loss(&self, output: &Tensor, x0: &Tensor, eps: &Tensor, t: &[u32]) -> Result<LossTerms> {
        let target = self.prediction.target(&self.schedule, x0, eps, t)?; // [N, .., C]
        let (predicted, mix) = self.variance.split(output, x0)?;
        let error = (predicted - target)?; // [N, .., C]
        let squared = error.sqr()?;
        let mse = per_image::mean(&squared)?; // [N]
        let vb = match (self.loss_type.is_bound(), &mix) {
            (true, mix) => Some(self.vb((&error, &squared), x0, mix.as_ref(), t)?), // [N]
            (false, Some(_)) => {
                let detached = (&error.detach(), &squared.detach());
                Some(self.vb(detached, x0, mix.as_ref(), t)?)
            }
            (false, None) => None,
        };
        self.terms(mse, vb, self.image_weights(t)?, t)
    }

    /// All terms `[N]` by the error of the prediction and the variational term, if there is one.
    fn terms(
        &self,
        mse: Tensor,
        vb: Option<Tensor>,
        weights: ImageWeights,
        t: &[u32],
    ) -> Result<LossTerms> {
        let levels = self.levels(t);
        let rates = levels
            .map(|level| self.prediction.exchange_rate(level))
            .collect();
        let mse_eps = per_image::scale(&mse.detach(), rates)?;
        let weighted = match (&vb, weights) {
            (Some(vb), _) if self.loss_type.is_bound() => vb.clone(),
            (vb, ImageWeights { factor, penalty }) => {
                let mut weighted = per_image::scale(&mse, factor)?; // [N]
                if let Some(vb) = vb {
                    weighted = (weighted + vb)?;
                }
                if let Some(penalty) = penalty {
                    weighted = (per_image::column(penalty, &mse)? + weighted)?;
                }
                weighted
            }
        };
        Ok(LossTerms {
            mse,
            mse_eps,
            vb,
            weighted,
        })
    }

    /// The variational terms of errors `[N, ..]` and their squares, bits per dimension times their factor: `[N]`.
    fn vb(
        &self,
        (error, squared): (&Tensor, &Tensor),
        x0: &Tensor,
        mix: Option<&Tensor>,
        t: &[u32],
    ) -> Result<Tensor> {
        let guess = Guess {
            prediction: self.prediction,
            error,
            squared,
            x0,
            variance: StepVariance {
                kind: self.variance,
                mix,
            },
        };
        let bits = variational::terms(&self.schedule, &guess, t)?;
        Ok((bits * self.loss_type.bits_factor(self.schedule.n_timesteps()))?)
    }

    /// Learns from a step, if the weighting learns: the timesteps of its images, in their order, and their
    /// [`LossTerms::mse`]; `[N]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many errors as timesteps; [`Error::Timestep`] as for [`Self::loss`]; those
    /// of the weighting.
    pub fn learn(&mut self, t: &[u32], mse: &[f32]) -> Result<()> {
        self.schedule.check_timesteps(t, mse.len())?;
        let Learning::Into(stateful) = &mut self.learning else {
            return Ok(());
        };
        let (mut levels, mut errors) = (Vec::new(), Vec::new());
        for (&t, &mse) in t.iter().zip(mse) {
            let weight = self.weight_target[t as usize];
            // What does not count teaches nothing: eps has no error where there is nothing but noise.
            if weight > 0.0 {
                levels.push(self.schedule.noise_level(t as usize));
                errors.push(weight * f64::from(mse));
            }
        }
        stateful.learn(&levels, &errors)
    }

    /// What has been learned, to be saved; `None` if the weighting learns nothing.
    #[must_use]
    pub fn stateful(&self) -> Option<&dyn StatefulWeighting> {
        match &self.learning {
            Learning::Into(stateful) => Some(stateful.as_ref()),
            Learning::No | Learning::Missing => None,
        }
    }

    /// The same, to be restored.
    pub fn stateful_mut(&mut self) -> Option<&mut (dyn StatefulWeighting + 'static)> {
        match &mut self.learning {
            Learning::Into(stateful) => Some(stateful.as_mut()),
            Learning::No | Learning::Missing => None,
        }
    }

    /// The noise levels of images at checked timesteps.
    fn levels<'a>(&'a self, t: &'a [u32]) -> impl Iterator<Item = NoiseLevel> + 'a {
        t.iter().map(|&t| self.schedule.noise_level(t as usize))
    }

    /// The weight on each image's error, as it stands: 0 where the variational bound is minimized.
    fn image_weights(&self, t: &[u32]) -> Result<ImageWeights> {
        if self.loss_type.is_bound() {
            return Ok(ImageWeights::none(t.len()));
        }
        let start = per_image::gather(&self.weight_target, t, |weight| weight);
        let stateful = match &self.learning {
            Learning::No => {
                return Ok(ImageWeights {
                    factor: start,
                    penalty: None,
                });
            }
            Learning::Missing => return Err(Error::MissingState),
            Learning::Into(stateful) => stateful,
        };
        let levels: Vec<NoiseLevel> = self.levels(t).collect();
        let adjustments = stateful.adjust(&levels)?;
        let (mut factor, mut penalty) = (Vec::new(), Vec::new());
        for ((start, adjustment), &t) in start.into_iter().zip(adjustments).zip(t) {
            let weight = start * adjustment.log_factor.exp();
            if weight.is_nan() || weight > f64::from(f32::MAX) {
                return Err(Error::LearnedWeight { t, weight });
            }
            factor.push(weight);
            penalty.push(adjustment.penalty);
        }
        Ok(ImageWeights {
            factor,
            penalty: Some(penalty),
        })
    }
}

/// Numbers of each image, `[N]`.
#[derive(Debug)]
struct ImageWeights {
    /// On the squared error of the prediction.
    factor: Vec<f64>,
    /// Added to the loss.
    penalty: Option<Vec<f64>>,
}

impl ImageWeights {
    fn none(n_images: usize) -> Self {
        Self {
            factor: vec![0.0; n_images],
            penalty: None,
        }
    }
}
