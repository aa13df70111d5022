//! The best linear denoiser: the mark that a network must at least beat.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
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
        Self::fit_while(dataset, |_| Ok(()))
    }

    /// Like [`LinearDenoiser::fit`]; `go_on` is asked before each image, with the number of those
    /// done, and may end it with an error.
    fn fit_while(
        dataset: &Dataset,
        go_on: impl Fn(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let n = dataset.n_images(Split::Training);
        let n_used = n_used(dataset);
        let (mut sum, mut sum_sq) = (Vec::new(), Vec::new());
        for i in 0..n_used {
            go_on(i)?;
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

/// How many images the statistics are taken from.
fn n_used(dataset: &Dataset) -> usize {
    dataset.n_images(Split::Training).min(MAX_IMAGES)
}

/// A fit on a thread of its own: thousands of photographs take a while to decode, and training need
/// not wait for them. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Fitting {
    thread: Option<JoinHandle<anyhow::Result<LinearDenoiser>>>,
    progress: Arc<Progress>,
    n_images: usize,
    started: Instant,
    fitted: Option<LinearDenoiser>,
}

/// What the thread and its owner tell each other.
#[derive(Debug, Default)]
struct Progress {
    n_done: AtomicUsize,
    is_dropped: AtomicBool,
}

/// How long the owner sleeps between two looks at the thread.
const PAUSE: Duration = Duration::from_millis(5);

impl Fitting {
    /// Starts to fit.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(dataset: &Arc<Dataset>) -> anyhow::Result<Self> {
        let (dataset, progress) = (Arc::clone(dataset), Arc::new(Progress::default()));
        let (n_images, shared) = (n_used(&dataset), Arc::clone(&progress));
        let fit = move || {
            LinearDenoiser::fit_while(&dataset, |n_done| {
                shared.n_done.store(n_done, Ordering::Relaxed);
                anyhow::ensure!(!shared.is_dropped.load(Ordering::Relaxed), "stopped");
                Ok(())
            })
        };
        let thread = Builder::new().name("p2-linear".to_owned()).spawn(fit);
        Ok(Self {
            thread: Some(thread.context("cannot start a thread")?),
            progress,
            n_images,
            started: Instant::now(),
            fitted: None,
        })
    }

    /// The result, once it is there. `go_on` is asked while it is not, and may end the waiting with
    /// an error.
    ///
    /// # Errors
    /// As [`LinearDenoiser::fit`].
    pub(super) fn wait(
        &mut self,
        go_on: &dyn Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<&LinearDenoiser> {
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            go_on()?;
            sleep(PAUSE);
        }
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on stderr.
            let fitted = thread.join().map_err(|_| anyhow!("the thread panicked"));
            self.fitted = Some(fitted.and_then(|fitted| fitted).context(FAILED)?);
        }
        self.fitted.as_ref().context(FAILED)
    }

    /// Seconds until the result is there, guessed from the images done so far; 0 while those are
    /// too few to tell.
    pub(super) fn secs_left(&self) -> f64 {
        let n_done = self.progress.n_done.load(Ordering::Relaxed);
        if n_done < ENOUGH_TO_TELL || self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            return 0.0;
        }
        let n_left = self.n_images.saturating_sub(n_done);
        self.started.elapsed().as_secs_f64() / n_done as f64 * n_left as f64
    }
}

/// Images from which the speed of a fit can be told.
const ENOUGH_TO_TELL: usize = 16;

const FAILED: &str = "cannot fit the linear denoiser";

impl Drop for Fitting {
    fn drop(&mut self) {
        self.progress.is_dropped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Whatever it ends with, nobody asks any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Base, resolve};

    #[test]
    fn on_the_bundled_images_it_errs_by_about_055_and_006() {
        let linear = LinearDenoiser::fit(&bundled()).unwrap();
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

    fn bundled() -> Arc<Dataset> {
        let run = resolve(&Base::Preset("emoji-32".into()), &[]).unwrap();
        Arc::new(Dataset::open(&run.data).unwrap())
    }

    #[test]
    fn a_fit_on_a_thread_of_its_own_gives_the_same_bits() {
        let dataset = bundled();
        let mut fitting = Fitting::start(&dataset).unwrap();
        let expected = LinearDenoiser::fit(&dataset).unwrap();
        for _ in 0..2 {
            let fitted = fitting.wait(&|| Ok(())).unwrap();
            assert_eq!(fitted.variances, expected.variances);
        }
        assert_eq!(fitting.secs_left(), 0.0);
    }

    #[test]
    fn a_fit_that_nobody_waits_for_ends() {
        let dataset = bundled();
        drop(Fitting::start(&dataset).unwrap());
        assert_eq!(Arc::strong_count(&dataset), 1);
    }

    #[test]
    fn waiting_for_a_fit_ends_when_the_user_wants_to_stop() {
        let mut fitting = Fitting::start(&bundled()).unwrap();
        let stop = || anyhow::bail!("stopped");
        let error = fitting.wait(&stop).unwrap_err().to_string();
        assert_eq!(error, "stopped");
    }

    #[test]
    fn it_knows_nothing_of_constants_and_half_of_unit_variance_at_snr_1() {
        let linear = LinearDenoiser::from_variances(vec![1.0]);
        assert_eq!(linear.mse_eps_at(0.5), 0.5);
        let constant = LinearDenoiser::from_variances(vec![0.0]);
        assert_eq!(constant.mse_eps_at(0.5), 0.0);
    }
}
