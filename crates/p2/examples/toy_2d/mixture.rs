//! A Gaussian mixture in the plane, with the best possible denoiser in closed form.

use p2::rng::Draws;

/// Equally likely round Gaussians.
#[derive(Debug)]
pub(crate) struct Mixture {
    means: Vec<[f64; 2]>,
    /// Standard deviation of each, along each axis.
    std: f64,
}

/// Half of the side of the square that holds the data.
pub(crate) const EXTENT: f64 = 32.0;

const N_BEADS: usize = 21;

impl Mixture {
    /// Beads spread evenly over a disc, like the seeds of a sunflower.
    ///
    /// They are far apart and small, measured by the noise at SNR 1, whose standard deviation is 1. So each
    /// stage has its task, as with images: the layout is lost in noise at content and coarse levels, and
    /// clean-up levels are about the inside of single beads.
    pub(crate) fn sunflower() -> Self {
        let golden_angle = std::f64::consts::PI * (3.0 - 5.0f64.sqrt());
        let bead = |i: usize| {
            let (sin, cos) = (golden_angle * i as f64).sin_cos();
            let radius = 0.88 * EXTENT * ((i as f64 + 0.5) / N_BEADS as f64).sqrt();
            [radius * cos, radius * sin]
        };
        Self {
            means: (0..N_BEADS).map(bead).collect(),
            std: 0.9,
        }
    }

    /// `n` points as `[N, 2]`.
    pub(crate) fn points(&self, n: usize, draws: &mut Draws) -> Vec<f32> {
        let beads: Vec<u64> = (0..n)
            .map(|_| draws.below(self.means.len() as u64))
            .collect();
        let mut points = vec![0.0; 2 * n];
        draws.fill_normal(&mut points);
        for (point, bead) in points.chunks_exact_mut(2).zip(beads) {
            for (x, mean) in point.iter_mut().zip(self.means[bead as usize]) {
                *x = (mean + self.std * f64::from(*x)) as f32;
            }
        }
        points
    }

    /// The best guess of the noise in a point `x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`: its mean,
    /// given `x_t`.
    ///
    /// Given the bead, x0 and x_t are jointly normal, so that the mean is linear in x_t; the beads are
    /// weighed by how likely they made x_t.
    pub(crate) fn eps_hat(&self, x_t: [f64; 2], alpha_bar: f64) -> [f64; 2] {
        let (signal, noise) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
        let variance = alpha_bar * self.std.powi(2) + 1.0 - alpha_bar;
        let distances: Vec<[f64; 2]> = self
            .means
            .iter()
            .map(|mean| [x_t[0] - signal * mean[0], x_t[1] - signal * mean[1]])
            .collect();
        let log_likelihood = |d: &[f64; 2]| -(d[0].powi(2) + d[1].powi(2)) / (2.0 * variance);
        // The largest exponent becomes 0, so that far from all beads nothing underflows to 0 / 0.
        let largest = distances
            .iter()
            .map(log_likelihood)
            .fold(f64::MIN, f64::max);
        let mut total = 0.0;
        let mut sum = [0.0; 2];
        for distance in &distances {
            let likelihood = (log_likelihood(distance) - largest).exp();
            total += likelihood;
            for (sum, distance) in sum.iter_mut().zip(distance) {
                *sum += likelihood * noise / variance * distance;
            }
        }
        sum.map(|sum| sum / total)
    }

    /// The density of the data at a point, as a share of that in the middle of a bead.
    pub(crate) fn relative_density(&self, x: [f64; 2]) -> f64 {
        let square = self.distance_in_stds(x).powi(2);
        (-square / 2.0).exp()
    }

    /// How far a point is from the nearest bead, in standard deviations.
    pub(crate) fn distance_in_stds(&self, x: [f64; 2]) -> f64 {
        let distances = self
            .means
            .iter()
            .map(|mean| (x[0] - mean[0]).hypot(x[1] - mean[1]));
        distances.fold(f64::INFINITY, f64::min) / self.std
    }
}
