//! The best linear denoiser: the mark that a network must at least beat.

use p2_diffusion::{NoiseSchedule, Stage};

use crate::data::{Dataset, Split};

/// Images that the statistics are taken from, at most.
const MAX_IMAGES: usize = 2_000;

/// The variance of the data in each dimension, such as each pixel and channel.
///
/// For a variance s² the best linear guess of the noise in
/// `sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps` has the mean squared error
/// `alpha_bar s² / (alpha_bar s² + 1 - alpha_bar)`.
#[derive(Debug, Clone)]
pub struct LinearDenoiser {
    variances: Vec<f64>,
}

impl LinearDenoiser {
    /// Takes the statistics of the training images, evenly chosen if there are many.
    ///
    /// # Errors
    /// If no image is usable.
    pub fn fit(dataset: &Dataset) -> anyhow::Result<Self> {
        let n = dataset.n_images(Split::Training);
        let n_used = n.min(MAX_IMAGES);
        let (mut sum, mut sum_sq) = (Vec::new(), Vec::new());
        for i in 0..n_used {
            let image = dataset.image(Split::Training, i * n / n_used)?;
            sum.resize(image.pixels.len(), 0.0);
            sum_sq.resize(image.pixels.len(), 0.0);
            for (i, &byte) in image.pixels.iter().enumerate() {
                let x = f64::from(byte) / 127.5 - 1.0;
                sum[i] += x;
                sum_sq[i] += x * x;
            }
        }
        let n_used = n_used as f64;
        let variances = sum.iter().zip(&sum_sq);
        let variances = variances.map(|(sum, sum_sq)| sum_sq / n_used - (sum / n_used).powi(2));
        Ok(Self::from_variances(variances.collect()))
    }

    /// The denoiser for data of these variances, one per dimension, such as the eigenvalues of a
    /// covariance.
    pub fn from_variances(variances: Vec<f64>) -> Self {
        Self { variances }
    }

    /// Its mean squared error on the noise, averaged over the levels of a stage.
    pub fn mse_eps(&self, schedule: &NoiseSchedule, stage: Stage) -> f64 {
        let levels = stage.timesteps(schedule);
        let n = levels.len().max(1) as f64;
        levels
            .map(|t| self.mse_eps_at(schedule.alpha_bar()[t as usize]))
            .sum::<f64>()
            / n
    }

    fn mse_eps_at(&self, alpha_bar: f64) -> f64 {
        let errors = self.variances.iter().map(|variance| {
            let signal = alpha_bar * variance.max(0.0);
            signal / (signal + 1.0 - alpha_bar)
        });
        errors.sum::<f64>() / self.variances.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Base, resolve};

    #[test]
    fn on_the_bundled_images_it_errs_by_about_055_and_006() {
        let run = resolve(&Base::Preset("emoji-32".into()), &[]).unwrap();
        let linear = LinearDenoiser::fit(&Dataset::open(&run.data).unwrap()).unwrap();
        let schedule = NoiseSchedule::linear(1000).unwrap();
        let errors = Stage::ALL.map(|stage| (stage, linear.mse_eps(&schedule, stage)));
        for (stage, error) in errors {
            let (low, high) = match stage {
                Stage::CleanUp => (0.50, 0.60),
                Stage::Content => (0.05, 0.07),
                Stage::Coarse => (0.0, 0.002),
            };
            assert!((low..high).contains(&error), "{stage:?}: {error}");
        }
    }

    #[test]
    fn it_knows_nothing_of_constants_and_half_of_unit_variance_at_snr_1() {
        let linear = LinearDenoiser::from_variances(vec![1.0]);
        assert_eq!(linear.mse_eps_at(0.5), 0.5);
        let constant = LinearDenoiser::from_variances(vec![0.0]);
        assert_eq!(constant.mse_eps_at(0.5), 0.0);
    }
}
