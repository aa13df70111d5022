//! Weightings that learn from the errors they see.

use std::fmt::Debug;

use crate::{Error, NoiseLevel, Result, Weighting};

/// A weighting with a memory: it adjusts the weights that it starts with by the errors that it has seen.
///
/// Its state is a function of those errors, in the order of the run's images. So a run that goes on from a saved
/// state weighs as one that was never interrupted.
pub trait StatefulWeighting: Debug {
    /// What becomes of the weights at these levels, as far as is known by now: `[N]`.
    ///
    /// A level's adjustment depends on no other level of the list.
    ///
    /// # Errors
    /// If it cannot be computed.
    fn adjust(&self, levels: &[NoiseLevel]) -> Result<Vec<Adjustment>>;

    /// Learns from the images of a step, in their order: their levels, and their squared errors times the weights
    /// that the weighting starts with; `[N]` each.
    ///
    /// # Errors
    /// If it cannot be computed.
    fn learn(&mut self, levels: &[NoiseLevel], errors: &[f64]) -> Result<()>;

    /// All that is remembered. In single precision, so that a saved state is the same to the last bit.
    ///
    /// # Errors
    /// If it cannot be read.
    fn state(&self) -> Result<Vec<StateTensor>>;

    /// Goes on from what [`Self::state`] returned.
    ///
    /// # Errors
    /// [`Error::State`] with the first part that is missing or has another length.
    fn restore(&mut self, state: &[StateTensor]) -> Result<()>;
}

/// What becomes of the weight that a weighting starts with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Adjustment {
    /// Natural logarithm of the factor on it.
    pub log_factor: f64,
    /// Added to the loss of an image, whatever the network says.
    pub penalty: f64,
}

/// A part of what is remembered.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    /// What it is, such as `errors`.
    pub name: String,
    /// Its numbers.
    pub values: Vec<f32>,
}

impl StateTensor {
    /// The numbers of the part with a name, checked for their number.
    ///
    /// # Errors
    /// [`Error::State`] if there is none, or it has another length.
    pub fn find<'a>(state: &'a [Self], name: &str, len: usize) -> Result<&'a [f32]> {
        let values = state.iter().find(|part| part.name == name);
        match values.map(|part| part.values.as_slice()) {
            Some(values) if values.len() == len => Ok(values),
            found => Err(Error::State {
                name: name.to_owned(),
                expected: len,
                found: found.map_or(0, <[f32]>::len),
            }),
        }
    }
}

/// Weights of which none is less than this or more than its inverse.
const LEAST_FACTOR: f64 = 1e-7;

/// One over the moving mean of the error in the level's piece of the log-SNR axis, as in Stable Cascade.
///
/// Whatever the errors are, each piece comes to count the same.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptiveBuckets {
    /// Log-SNRs where one bucket ends and the next begins, rising.
    borders: Vec<f64>,
    /// Moving mean of the error in each bucket.
    errors: Vec<f32>,
    beta: f64,
}

impl AdaptiveBuckets {
    /// The state that [`Weighting::AdaptiveBuckets`] starts with: all errors 1, those of a network that predicts no
    /// noise at all. `None` for another weighting.
    pub(crate) fn of(weighting: Weighting) -> Option<Self> {
        let Weighting::AdaptiveBuckets {
            n_buckets,
            min_log_snr,
            max_log_snr,
            beta,
        } = weighting
        else {
            return None;
        };
        // The first and the last bucket have no end.
        let n_borders = n_buckets - 1;
        let width = (max_log_snr - min_log_snr) / n_borders.saturating_sub(1).max(1) as f64;
        Some(Self {
            borders: (0..n_borders)
                .map(|i| min_log_snr + width * i as f64)
                .collect(),
            errors: vec![1.0; n_buckets],
            beta,
        })
    }

    fn bucket(&self, level: NoiseLevel) -> usize {
        let below = |border: &f64| *border < level.log_snr();
        self.borders.partition_point(below)
    }
}

impl StatefulWeighting for AdaptiveBuckets {
    fn adjust(&self, levels: &[NoiseLevel]) -> Result<Vec<Adjustment>> {
        let factor = |level: &NoiseLevel| {
            let error = f64::from(self.errors[self.bucket(*level)]);
            (1.0 / error).clamp(LEAST_FACTOR, 1.0 / LEAST_FACTOR)
        };
        let adjustments = levels.iter().map(|level| Adjustment {
            log_factor: factor(level).ln(),
            penalty: 0.0,
        });
        Ok(adjustments.collect())
    }

    fn learn(&mut self, levels: &[NoiseLevel], errors: &[f64]) -> Result<()> {
        for (&level, error) in levels.iter().zip(errors) {
            let bucket = self.bucket(level);
            let mean = &mut self.errors[bucket];
            *mean = (self.beta * f64::from(*mean) + (1.0 - self.beta) * error) as f32;
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(vec![StateTensor {
            name: "errors".into(),
            values: self.errors.clone(),
        }])
    }

    fn restore(&mut self, state: &[StateTensor]) -> Result<()> {
        let errors = StateTensor::find(state, "errors", self.errors.len())?;
        self.errors.copy_from_slice(errors);
        Ok(())
    }
}
