//! Random numbers as a pure function of (seed, stream, index): nothing else moves a draw.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// What a random number is for. Streams of one seed never overlap.
///
/// The discriminants are part of the format of a run: never renumber them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Initial weights; the index is the parameter's place in the network.
    Init = 0,
    /// The order of images; the index is the epoch.
    Shuffle = 1,
    /// Random crops and flips; the index is the image's place in the run.
    Augment = 2,
    /// The noise level of a training image; the index is the image's place in the run.
    Timestep = 3,
    /// The noise added to a training image; the index is the image's place in the run.
    Noise = 4,
    /// Dropout masks; the index is the image's place in the run, the lane its layer.
    Dropout = 5,
    /// Initial and per-step noise of a sample; the index is the sample's number, the lane the step.
    Sample = 6,
    /// Fixed noise of the held-out loss; the index is the held-out image.
    HeldOut = 7,
    /// Pixels of a benchmark; the index is the image.
    Bench = 8,
    /// Features of a learned uncertainty; the index is the parameter's place.
    Uncertainty = 9,
    /// Noise of a likelihood bound; the index is the image, the lane the timestep.
    Likelihood = 10,
    /// Whether a training image loses its class; the index is the image's place in the run.
    LabelDropout = 11,
    /// What makes whole pixels continuous for an exact likelihood; the index is the image.
    Dequantization = 12,
    /// Signs that an exact likelihood probes the divergence with; the index is the image, the lane the probe.
    Probe = 13,
    /// Noise on the small image that is to be enlarged; the index is the image's place in the run.
    LowRes = 14,
}

/// Draws of one (seed, stream, index, lane): a counter-based ChaCha8 generator at its start.
#[derive(Debug, Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The draws of `index` in `stream`.
    pub fn at(seed: u64, stream: Stream, index: u64) -> Self {
        Self::at_lane(seed, stream, index, 0)
    }

    /// Like [`Draws::at`] with one more coordinate, such as a layer or a sampling step.
    pub fn at_lane(seed: u64, stream: Stream, index: u64, lane: u64) -> Self {
        let mut key = [0; 32];
        for (bytes, word) in key
            .chunks_exact_mut(8)
            .zip([seed, stream as u64, index, lane])
        {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (0.5f64).powi(53)
    }

    /// Uniform in `0..n`; 0 if `n` is 0. The bias of at most `n / 2^64` is below any use here.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Fills `out` with standard normal numbers (Box and Muller, both of each pair).
    pub fn fill_normal(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * self.uniform()).sin_cos();
            let normals = [(radius * cos) as f32, (radius * sin) as f32];
            pair.copy_from_slice(&normals[..pair.len()]);
        }
    }

    /// Fills `out` with -1 and 1, each as likely.
    pub fn fill_signs(&mut self, out: &mut [f32]) {
        for signs in out.chunks_mut(64) {
            let bits = self.0.next_u64();
            for (i, sign) in signs.iter_mut().enumerate() {
                *sign = if bits >> i & 1 == 1 { 1.0 } else { -1.0 };
            }
        }
    }

    /// A random permutation of `0..n` (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_a_function_of_all_four_coordinates() {
        let first = |seed, stream, index, lane| {
            Draws::at_lane(seed, stream, index, lane)
                .uniform()
                .to_bits()
        };
        let base = first(1, Stream::Noise, 2, 3);
        assert_eq!(base, first(1, Stream::Noise, 2, 3));
        for other in [
            first(2, Stream::Noise, 2, 3),
            first(1, Stream::Timestep, 2, 3),
            first(1, Stream::Noise, 3, 3),
            first(1, Stream::Noise, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn normals_have_mean_0_variance_1_and_kurtosis_3() {
        let mut x = vec![0.0; 200_001];
        Draws::at(7, Stream::Noise, 0).fill_normal(&mut x);
        let moment = |p: i32| x.iter().map(|&x| f64::from(x).powi(p)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.01, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.015, "variance {}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.1, "fourth moment {}", moment(4));
    }

    #[test]
    fn signs_are_even_and_independent() {
        let mut x = vec![0.0; 100_001];
        Draws::at(7, Stream::Probe, 0).fill_signs(&mut x);
        assert!(x.iter().all(|&x| x == 1.0 || x == -1.0));
        for lag in [0, 1, 63, 64] {
            let pairs = x.iter().zip(&x[lag..]);
            let products = pairs.map(|(a, b)| if lag == 0 { *a } else { a * b });
            let mean = products.sum::<f32>() / x.len() as f32;
            assert!(mean.abs() < 4.0 / 316.0, "lag {lag}: {mean}");
        }
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut order = Draws::at(3, Stream::Shuffle, 0).permutation(101);
        assert_ne!(order, (0..101).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..101).collect::<Vec<_>>());
    }
}
