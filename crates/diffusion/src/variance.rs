//! The variance of the reverse process: what it can be, and what a network says of it.

use candle_core::Tensor;

use crate::per_image;
use crate::{Error, NoiseSchedule, Result};

/// The variance of the reverse process p(x_{t-1} given x_t).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variance {
    /// That of the posterior q(x_{t-1} given x_t, x_0): right for a single image as data.
    FixedSmall,
    /// beta: right for standard normal data.
    FixedLarge,
    /// Learned, on a log scale between the two (Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 15).
    ///
    /// The network has twice as many channels; the second half is the `variance_mix`.
    LearnedRange,
    /// Learned: the second half of twice as many channels is its logarithm itself, `LEARNED` of the reference code.
    ///
    /// A new network says 0, which is a variance of 1, and first learns how small steps are. What it learns is the
    /// step between neighboring timesteps, so that a sampler that makes longer ones has too little noise.
    Learned,
}

impl Variance {
    /// Every variance.
    pub const ALL: [Self; 4] = [
        Self::FixedSmall,
        Self::FixedLarge,
        Self::LearnedRange,
        Self::Learned,
    ];

    /// Whether the network says something of it, in channels of its own.
    #[must_use]
    pub fn is_learned(self) -> bool {
        matches!(self, Self::LearnedRange | Self::Learned)
    }

    /// Channels of the network's output for images with `n_channels`.
    #[must_use]
    pub fn output_channels(self, n_channels: usize) -> usize {
        n_channels * if self.is_learned() { 2 } else { 1 }
    }

    /// Cuts a network's output `[N, .., C or 2C]` into the prediction and, if learned, the `variance_mix`.
    ///
    /// Each is shaped like `x_t` `[N, .., C]`. A mix of -1 means the posterior variance, 1 means beta; with
    /// [`Self::Learned`] it is the logarithm of the variance.
    ///
    /// # Errors
    /// [`Error::Shape`] if the last axis of `output` does not hold [`Self::output_channels`].
    pub fn split(self, output: &Tensor, x_t: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let mut expected = x_t.dims().to_vec();
        let n_channels = expected.pop().unwrap_or(1);
        expected.push(self.output_channels(n_channels));
        if output.dims() != expected {
            return Err(Error::Shape {
                name: "output",
                shape: output.dims().to_vec(),
                expected,
            });
        }
        if !self.is_learned() {
            return Ok((output.clone(), None));
        }
        // Contiguous once, because candle walks strided tensors in pieces of C elements.
        let last_axis = output.rank() - 1;
        let prediction = output.narrow(last_axis, 0, n_channels)?.contiguous()?; // [N, .., C]
        let mix = output
            .narrow(last_axis, n_channels, n_channels)?
            .contiguous()?; // [N, .., C]
        Ok((prediction, Some(mix)))
    }
}

/// `slope (said + shift)`, where `said` is what the network says of the variance, or 0 if nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LogRatio {
    pub(crate) slope: f64,
    pub(crate) shift: f64,
}

impl Variance {
    /// `ln(posterior variance / this variance)` at a checked timestep.
    ///
    /// Its own formula, because the difference of the logarithms would lose the digits in which they differ.
    pub(crate) fn log_ratio(self, schedule: &NoiseSchedule, t: usize) -> LogRatio {
        let posterior = schedule.posterior_log_variance_clipped()[t];
        let (slope, shift) = match self {
            Self::FixedSmall => (1.0, 0.0),
            Self::FixedLarge => (1.0, posterior - schedule.large_log_variance_at(t)),
            // -1 is the posterior variance and 1 is beta; values beyond are not clamped.
            Self::LearnedRange => (0.5 * (posterior - schedule.beta()[t].ln()), 1.0),
            Self::Learned => (-1.0, -posterior),
        };
        LogRatio { slope, shift }
    }
}

/// The variance of a model's steps from images at known noise levels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepVariance<'a> {
    pub(crate) kind: Variance,
    /// What the network says of it, like the images, if it is learned.
    pub(crate) mix: Option<&'a Tensor>,
}

impl<'a> StepVariance<'a> {
    /// The same kind of variance for other images.
    pub(crate) fn with_mix(self, mix: Option<&'a Tensor>) -> Self {
        Self { mix, ..self }
    }

    /// `ln(posterior variance / this variance)` at checked timesteps: like `x` if learned, else `[N, 1, .., 1]`.
    pub(crate) fn log_ratio(
        &self,
        schedule: &NoiseSchedule,
        x: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        let ratios: Vec<_> = t
            .iter()
            .map(|&t| self.kind.log_ratio(schedule, t as usize))
            .collect();
        if !self.kind.is_learned() {
            let ratios = ratios.iter().map(|ratio| ratio.slope * ratio.shift);
            return per_image::column(ratios.collect(), x);
        }
        let said = self.learned(x)?;
        let shift = ratios.iter().map(|ratio| ratio.shift).collect();
        let shifted = said.broadcast_add(&per_image::column(shift, x)?)?;
        let slope = ratios.iter().map(|ratio| ratio.slope).collect();
        per_image::scale(&shifted, slope)
    }

    /// The logarithm of this variance at checked timesteps: like `x` if learned, else `[N, 1, .., 1]`.
    pub(crate) fn log_variance(
        &self,
        schedule: &NoiseSchedule,
        x: &Tensor,
        t: &[u32],
    ) -> Result<Tensor> {
        if self.kind == Variance::Learned {
            return self.learned(x).cloned();
        }
        let posterior = schedule.posterior_log_variance_clipped();
        let posterior = per_image::column(per_image::gather(posterior, t, |log| log), x)?;
        Ok(posterior.broadcast_sub(&self.log_ratio(schedule, x, t)?)?)
    }

    /// What the network says, checked to be like `x`.
    fn learned(&self, x: &Tensor) -> Result<&Tensor> {
        let mix = self.mix.ok_or(Error::MissingVarianceMix)?;
        per_image::check_shape("variance_mix", mix, x)?;
        Ok(mix)
    }
}
