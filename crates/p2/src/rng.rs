//! Random numbers as a pure function of (seed, stream, index): nothing else moves a draw.

use p2_kernels::Isa;
use p2_kernels::chacha8::{DRAWS_PER_BLOCK, draws_below};
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
        let mut seed_bytes = [0; 32];
        for (bytes, word) in seed_bytes
            .chunks_exact_mut(4)
            .zip(key(seed, stream, index, lane))
        {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(seed_bytes))
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

/// Which [`Draws::uniform`] of one (seed, stream, index, lane) are below a probability: many at once, and from
/// anywhere on.
#[derive(Debug, Clone)]
pub struct Trials {
    key: [u32; 8],
    /// Draws of 64 bits below this one are below the probability.
    threshold: u64,
}

impl Trials {
    /// The trials of `index` in `stream` with a probability below 1.
    pub fn at_lane(seed: u64, stream: Stream, index: u64, lane: u64, probability: f64) -> Self {
        // A draw is its upper 53 bits times 2^-53, so it is below as many of their values as there are whole
        // numbers below p 2^53, which is exact.
        let n_below = (probability * 2f64.powi(53)).ceil() as u64;
        Self {
            key: key(seed, stream, index, lane),
            threshold: n_below << 11,
        }
    }

    /// Sets bit `i % 8` of `below[i / 8]` where draw `first + i` is below the probability, and clears the others.
    ///
    /// # Panics
    /// If `first` is not a multiple of 8.
    pub fn fill(&self, first: u64, below: &mut [u8], isa: Isa) {
        let draws_per_block = DRAWS_PER_BLOCK as u64;
        assert!(
            first.is_multiple_of(draws_per_block),
            "draws from {first} on"
        );
        draws_below(
            self.threshold,
            &self.key,
            first / draws_per_block,
            below,
            isa,
        );
    }
}

/// The key of a generator: the four coordinates one after another.
fn key(seed: u64, stream: Stream, index: u64, lane: u64) -> [u32; 8] {
    let mut key = [0; 8];
    for (words, word) in key
        .chunks_exact_mut(2)
        .zip([seed, stream as u64, index, lane])
    {
        words.copy_from_slice(&[word as u32, (word >> 32) as u32]);
    }
    key
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
    fn trials_are_the_uniform_draws_compared_one_at_a_time() {
        // 2^-53 is the least draw above 0; with 0.5 and 0.375 draws can be equal to the probability.
        for probability in [
            0.0,
            2f64.powi(-53),
            1e-3,
            0.1,
            0.375,
            0.5,
            1.0 - 2f64.powi(-53),
        ] {
            let mut draws = Draws::at_lane(1, Stream::Dropout, u64::MAX, 3);
            let expected: Vec<u8> = (0..5000)
                .map(|_| {
                    let bit = |i| u8::from(draws.uniform() < probability) << i;
                    (0..8).map(bit).sum()
                })
                .collect();
            let trials = Trials::at_lane(1, Stream::Dropout, u64::MAX, 3, probability);
            for isa in Isa::available() {
                for n_bytes in [1, 15, 16, 17, 2048, 5000] {
                    let mut below = vec![0; 5000];
                    for (i, piece) in below.chunks_mut(n_bytes).enumerate() {
                        trials.fill((8 * i * n_bytes) as u64, piece, isa);
                    }
                    assert_eq!(below, expected, "{probability} by {n_bytes} on {isa:?}");
                }
            }
        }
    }

    #[test]
    fn trials_draw_what_they_drew_in_version_0_1() {
        // From a ChaCha8 in Python: key (seed, 5, index, lane), 64 bits a draw, `(u >> 11) * 2.0**-53 < p`.
        for (index, lane, p, first, expected) in [
            (12, 3, 0.25, 0, [32, 73, 4, 192]),
            (12, 3, 0.25, 40_000, [160, 59, 1, 44]),
        ] {
            let trials = Trials::at_lane(1, Stream::Dropout, index, lane, p);
            let mut below = [0; 4];
            trials.fill(first, &mut below, Isa::best());
            assert_eq!(below, expected);
        }
        let mut below = [0; 16];
        let trials = Trials::at_lane(7, Stream::Dropout, (1 << 33) + 5, 41, 0.1);
        trials.fill(0, &mut below, Isa::best());
        assert_eq!(below, [0, 0, 0, 1, 0, 4, 0, 8, 160, 0, 8, 64, 7, 133, 3, 0]);
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
