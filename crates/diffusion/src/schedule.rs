//! How noise grows with t: the tables of a noise schedule, all in f64.

mod named;
mod time;

pub use time::Time;

use std::f64::consts::FRAC_PI_2;

use crate::{Error, NoiseLevel, Result};

/// How noise grows with t: beta, alpha_bar and everything that follows from them, as f64 tables.
///
/// A table has one entry per timestep; 0 is the least noisy level. `alpha_bar` before the first level
/// is 1.
///
/// # Source
/// Ho et al. 2020, arXiv 2006.11239, section 2.
///
/// # Example
/// ```
/// # use p2_diffusion::NoiseSchedule;
/// let schedule = NoiseSchedule::linear(1000)?;
/// assert!((schedule.alpha_bar()[0] - 0.9999).abs() < 1e-12); // first beta is 1e-4
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    beta: Vec<f64>,
    alpha_bar: Vec<f64>,
    log_snr: Vec<f64>,
    posterior_mean_x0: Vec<f64>,
    posterior_mean_x_t: Vec<f64>,
    posterior_variance: Vec<f64>,
    posterior_log_variance_clipped: Vec<f64>,
}

impl NoiseSchedule {
    /// Betas on a line from `0.1 / T` to `20 / T` (1e-4 to 0.02 for T = 1000).
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] for T = 0; [`Error::Beta`] for T under 20, whose last beta would exceed 1.
    ///
    /// # Source
    /// Ho et al. 2020, section 4; scaled with T by Nichol and Dhariwal 2021, arXiv 2102.09672.
    pub fn linear(n_timesteps: usize) -> Result<Self> {
        let scale = 1000.0 / n_timesteps as f64;
        let (first, last) = (1e-4 * scale, 0.02 * scale);
        let step = (last - first) / n_timesteps.saturating_sub(1).max(1) as f64;
        Self::from_betas((0..n_timesteps).map(|t| first + step * t as f64).collect())
    }

    /// `alpha_bar` falls like `cos^2((t / T + 0.008) / 1.008 pi / 2)`, with betas of at most 0.999.
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] for T = 0.
    ///
    /// # Source
    /// Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17.
    pub fn cosine(n_timesteps: usize) -> Result<Self> {
        let squared_cosine = |t: usize| {
            let u = t as f64 / n_timesteps as f64;
            ((u + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)
        };
        let beta = |t| (1.0 - squared_cosine(t + 1) / squared_cosine(t)).min(0.999);
        Self::from_betas((0..n_timesteps).map(beta).collect())
    }

    /// A schedule of one's own: `betas[t]` is the variance that step t adds.
    ///
    /// # Errors
    /// [`Error::EmptySchedule`] without betas; [`Error::Beta`] with the first that is not above 0 and
    /// below 1. The last beta may be 1 (an SNR of 0 at the end).
    pub fn from_betas(betas: Vec<f64>) -> Result<Self> {
        let mut product = 1.0;
        let alpha_bar = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        Self::from_tables(betas, alpha_bar)
    }

    /// The schedule that visits only the levels with these falling values of `alpha_bar`.
    ///
    /// Keeps `alpha_bar` to the last bit, where a product of the new betas would round.
    pub(crate) fn from_alpha_bars(alpha_bar: Vec<f64>) -> Result<Self> {
        let mut previous = 1.0;
        let betas = alpha_bar
            .iter()
            .map(|&value| {
                let beta = 1.0 - value / previous;
                previous = value;
                beta
            })
            .collect();
        Self::from_tables(betas, alpha_bar)
    }

    fn from_tables(beta: Vec<f64>, alpha_bar: Vec<f64>) -> Result<Self> {
        check_betas(&beta, &alpha_bar)?;
        let mut schedule = Self {
            log_snr: alpha_bar.iter().map(|a| a.ln() - (1.0 - a).ln()).collect(),
            posterior_mean_x0: Vec::with_capacity(beta.len()),
            posterior_mean_x_t: Vec::with_capacity(beta.len()),
            posterior_variance: Vec::with_capacity(beta.len()),
            posterior_log_variance_clipped: Vec::new(),
            beta,
            alpha_bar,
        };
        let mut previous = 1.0_f64;
        for (&beta, &alpha_bar) in schedule.beta.iter().zip(&schedule.alpha_bar) {
            let noise = 1.0 - alpha_bar;
            let x0 = beta * previous.sqrt() / noise;
            let x_t = (1.0 - previous) * (1.0 - beta).sqrt() / noise;
            schedule.posterior_mean_x0.push(x0);
            schedule.posterior_mean_x_t.push(x_t);
            let variance = beta * (1.0 - previous) / noise;
            schedule.posterior_variance.push(variance);
            previous = alpha_bar;
        }
        let clipped = clip_first(&schedule.posterior_variance, &schedule.beta);
        schedule.posterior_log_variance_clipped = clipped.map(f64::ln).collect();
        Ok(schedule)
    }

    /// Number of levels, T.
    #[must_use]
    pub fn n_timesteps(&self) -> usize {
        self.beta.len()
    }

    /// `beta[t]`, the variance that step t adds.
    #[must_use]
    pub fn beta(&self) -> &[f64] {
        &self.beta
    }

    /// `alpha_bar[t]`, the share of signal in the variance of x_t: the product of `1 - beta` up to t.
    #[must_use]
    pub fn alpha_bar(&self) -> &[f64] {
        &self.alpha_bar
    }

    /// `log_snr[t] = ln(alpha_bar / (1 - alpha_bar))`, falling with t.
    #[must_use]
    pub fn log_snr(&self) -> &[f64] {
        &self.log_snr
    }

    /// The noise level of each timestep, with the slope of the log-SNR and the level before it.
    ///
    /// The slope is a difference of neighbors. Before the first level lies another at the distance of the second.
    pub fn noise_levels(&self) -> impl ExactSizeIterator<Item = NoiseLevel> + '_ {
        (0..self.n_timesteps()).map(|t| self.noise_level(t))
    }

    /// The noise level of a timestep below T.
    pub(crate) fn noise_level(&self, t: usize) -> NoiseLevel {
        let log_snr = &self.log_snr;
        let level = |before| NoiseLevel::on_schedule(log_snr[t], self.slope(t), before);
        match t {
            0 => level(2.0 * log_snr[0] - log_snr.get(1).copied().unwrap_or(f64::NAN)).as_first(),
            _ => level(log_snr[t - 1]),
        }
    }

    /// `dlog_snr/dt` at a timestep, with t from 0 to 1: between its neighbors, or between it and the one that it
    /// has. Where the SNR is 0, that of the level before: times an SNR of 0 any finite slope has the right limit.
    fn slope(&self, t: usize) -> f64 {
        if t > 0 && self.log_snr[t] == f64::NEG_INFINITY {
            return self.slope(t - 1);
        }
        let last = self.log_snr.len() - 1;
        let first = t.saturating_sub(1);
        let mut end = (t + 1).min(last);
        if t < end && self.log_snr[end] == f64::NEG_INFINITY {
            end = t;
        }
        let n_steps = (end - first) as f64;
        (self.log_snr[end] - self.log_snr[first]) * self.log_snr.len() as f64 / n_steps
    }

    /// Factor of x0 in the mean of q(x_{t-1} given x_t, x0): `beta sqrt(alpha_bar[t-1]) / (1 - alpha_bar)`.
    #[must_use]
    pub fn posterior_mean_x0(&self) -> &[f64] {
        &self.posterior_mean_x0
    }

    /// Factor of x_t in the mean of q(x_{t-1} given x_t, x0):
    /// `(1 - alpha_bar[t-1]) sqrt(1 - beta) / (1 - alpha_bar)`.
    #[must_use]
    pub fn posterior_mean_x_t(&self) -> &[f64] {
        &self.posterior_mean_x_t
    }

    /// Variance of q(x_{t-1} given x_t, x0): `beta (1 - alpha_bar[t-1]) / (1 - alpha_bar)`, 0 at t = 0.
    #[must_use]
    pub fn posterior_variance(&self) -> &[f64] {
        &self.posterior_variance
    }

    /// Logarithm of [`Self::posterior_variance`], where entry 0 (minus infinity) is that of t = 1.
    ///
    /// With a single level it is the logarithm of its beta.
    #[must_use]
    pub fn posterior_log_variance_clipped(&self) -> &[f64] {
        &self.posterior_log_variance_clipped
    }

    /// Logarithm of the large reverse variance: beta, where entry 0 is the posterior variance of t = 1.
    #[must_use]
    pub fn large_log_variance(&self) -> Vec<f64> {
        (0..self.n_timesteps())
            .map(|t| self.large_log_variance_at(t))
            .collect()
    }

    pub(crate) fn large_log_variance_at(&self, t: usize) -> f64 {
        match t {
            0 => self.posterior_log_variance_clipped[0],
            _ => self.beta[t].ln(),
        }
    }

    /// What L_simple multiplies each term of the variational bound by, `(1 - beta) (1 - alpha_bar) / beta`.
    ///
    /// Call it m. A weight w on the eps error is a weight `m w` on the terms of the bound, each
    /// `beta / ((1 - beta) (1 - alpha_bar)) |eps - eps_hat|^2`.
    ///
    /// # Source
    /// Choi et al. 2022, arXiv 2204.00227: its lambda_t (and lambda'_t with the P2 weight).
    #[must_use]
    pub fn vlb_multiplier(&self) -> Vec<f64> {
        let tables = self.beta.iter().zip(&self.alpha_bar);
        tables
            .map(|(beta, alpha_bar)| (1.0 - beta) * (1.0 - alpha_bar) / beta)
            .collect()
    }

    /// Refuses timesteps that are not one per image, or not below T.
    pub(crate) fn check_timesteps(&self, t: &[u32], n_images: usize) -> Result<()> {
        self.alpha_bars(t, n_images).map(|_| ())
    }
}

fn check_betas(beta: &[f64], alpha_bar: &[f64]) -> Result<()> {
    let last = beta.len().checked_sub(1).ok_or(Error::EmptySchedule)?;
    for (t, (&beta, &alpha_bar)) in beta.iter().zip(alpha_bar).enumerate() {
        let ends_at_zero_snr = t == last && beta == 1.0;
        let is_open = beta > 0.0 && beta < 1.0 && alpha_bar > 0.0 && alpha_bar < 1.0;
        if !is_open && !ends_at_zero_snr {
            return Err(Error::Beta { t, beta });
        }
    }
    Ok(())
}

/// `variance`, where entry 0 (which is 0) is replaced by entry 1, or by beta if there is no entry 1.
fn clip_first<'a>(variance: &'a [f64], beta: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    let first = variance.get(1).or(beta.first());
    let rest = variance.iter().skip(1);
    first.into_iter().chain(rest).copied()
}
