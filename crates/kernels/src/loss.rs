//! The loss of noised images and its gradient, in one pass over the elements of each image.
//!
//! What is predicted, how it is weighted and how noisy an image is, is the caller's mathematics: it enters as a few
//! numbers per image.

mod likelihood;

use std::sync::OnceLock;

use crate::cpu::{Cpu, MulAdd, Shared};
use crate::elementwise::exp;

/// Elements that are looked at together, small enough to stay in the first cache.
const TILE: usize = 1 << 10;
/// Beyond this `e^x` is infinite in f32.
const OVERFLOW: f32 = 88.0;
/// Sums of an image have so many parts.
const LANES: usize = 16;

/// The sizes of images, and what a network says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Pixels of an image.
    pub n_positions: usize,
    /// Channels of an image.
    pub c: usize,
    /// What the output holds.
    pub output: Output,
}

/// What a network's output holds at each pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The prediction, C channels.
    Prediction,
    /// The prediction, and then what is said of the variance, C channels each.
    PredictionAndVariance,
}

impl Output {
    fn n_halves(self) -> usize {
        match self {
            Self::Prediction => 1,
            Self::PredictionAndVariance => 2,
        }
    }
}

/// What there is of images; N of each.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// `[N, P, C]` or `[N, P, 2C]`: what the network said.
    pub output: &'a [f32],
    /// `[N, P, C]`: the clean images.
    pub x0: &'a [f32],
    /// `[N, P, C]`: the noise that was added.
    pub eps: &'a [f32],
}

/// What the loss of one image is made of, besides its pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Image {
    /// The network should say `target_x0 x0 + target_eps eps`.
    pub target_x0: f64,
    /// The factor of the noise.
    pub target_eps: f64,
    /// The derivative of what is minimized by this image's mean squared error.
    pub d_mse: f64,
    /// The variational term, if there is one.
    pub bound: Option<Bound>,
}

/// The variational term of one image.
///
/// With s what the network says of the variance (0 if nothing), `r = ratio_slope (s + ratio_shift)` is the logarithm
/// of the posterior's variance over the model's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// The factor in r.
    pub ratio_slope: f64,
    /// The summand in r.
    pub ratio_shift: f64,
    /// What is measured.
    pub term: Term,
    /// The derivative of what is minimized by this image's term, as the prediction sees it.
    pub d_prediction: f64,
    /// The same, as what the network says of the variance sees it.
    pub d_variance: f64,
}

/// What a variational term measures, in nats per element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Term {
    /// Of an image between other levels, how far the model's normal distribution diverges from the posterior:
    /// `(distance error^2 e^r + e^r - r - 1) / 2`.
    Divergence {
        /// The squared distance of the means in posterior variances, per squared error.
        distance: f64,
    },
    /// Of an image at the first level, how improbable its 8-bit pixels are.
    Likelihood {
        /// `x0 - x0_hat` per error.
        x0_error: f64,
        /// Natural logarithm of the posterior's variance: the model's is `log_variance - r`.
        log_variance: f64,
    },
}

/// Means over the elements of one image.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Means {
    /// The squared error.
    pub squared: f64,
    /// The variational term in nats; 0 if there is none.
    pub nats: f64,
}

/// What a tile of an image holds, besides what it was made of.
struct Tile {
    /// First the prediction, then its error, then its gradient.
    prediction: Vec<f32>,
    /// First what is said of the variance, then its gradient.
    variance: Vec<f32>,
    terms: Vec<f32>,
}

impl Loss {
    /// The means of each image, and the gradient of what is minimized by the output.
    ///
    /// Sums are in f64 and in the order of the elements: an image has the same means and gradients in any batch.
    pub fn with_gradient(
        self,
        images: &[Image],
        inputs: Inputs<'_>,
        d_output: &mut [f32],
        cpu: Cpu,
    ) -> Vec<Means> {
        let (len, output_len) = (self.n_positions * self.c, self.output_len());
        assert_eq!(inputs.x0.len(), images.len() * len);
        assert_eq!(inputs.eps.len(), images.len() * len);
        assert_eq!(inputs.output.len(), images.len() * output_len);
        assert_eq!(d_output.len(), images.len() * output_len);
        let d_output = Shared::new(d_output);
        let means: Vec<_> = images.iter().map(|_| OnceLock::new()).collect();
        cpu.threads.for_each(images.len(), |n| {
            let image = Inputs {
                output: &inputs.output[n * output_len..][..output_len],
                x0: &inputs.x0[n * len..][..len],
                eps: &inputs.eps[n * len..][..len],
            };
            // SAFETY: images are disjoint.
            let d_output = unsafe { d_output.tile(n * output_len, output_len) };
            let mut of_image = Means::default();
            cpu.isa.vectorize(
                #[inline(always)]
                |mul_add| of_image = self.image(&images[n], image, d_output, mul_add),
            );
            means[n].get_or_init(|| of_image);
        });
        let means = means.into_iter().map(OnceLock::into_inner);
        means.map(Option::unwrap_or_default).collect()
    }

    fn output_len(self) -> usize {
        self.output.n_halves() * self.n_positions * self.c
    }

    #[inline(always)]
    fn image(
        self,
        image: &Image,
        inputs: Inputs<'_>,
        d_output: &mut [f32],
        mul_add: MulAdd,
    ) -> Means {
        let n_elements = inputs.x0.len() as f64;
        let tile_len = (TILE / self.c.max(1)).max(1) * self.c.max(1);
        let mut tile = Tile::new(tile_len.min(inputs.x0.len()));
        let (mut squared, mut nats) = (Sum::default(), Sum::default());
        let tiles = inputs.x0.chunks(tile_len).zip(inputs.eps.chunks(tile_len));
        let output_len = tile_len * self.output.n_halves();
        let outputs = inputs.output.chunks(output_len);
        let gradients = d_output.chunks_mut(output_len);
        for ((x0, eps), (output, d_output)) in tiles.zip(outputs.zip(gradients)) {
            tile.take(output, self, x0.len());
            tile.subtract_target(image, x0, eps);
            squared.add(&tile.prediction, |error| error * error);
            if let Some(bound) = &image.bound {
                match bound.term {
                    Term::Divergence { distance } => {
                        tile.divergence(image, bound, distance as f32, n_elements, mul_add);
                    }
                    Term::Likelihood { .. } => tile.likelihood(image, bound, x0, n_elements),
                }
                nats.add(&tile.terms, |term| term);
            } else {
                let slope = (2.0 * image.d_mse / n_elements) as f32;
                tile.prediction.iter_mut().for_each(|error| *error *= slope);
                tile.variance.fill(0.0);
            }
            tile.put(d_output, self);
        }
        Means {
            squared: squared.total() / n_elements,
            nats: nats.total() / n_elements,
        }
    }
}

impl Tile {
    fn new(len: usize) -> Self {
        let [prediction, variance, terms] = [(); 3].map(|()| vec![0.0; len]);
        Self {
            prediction,
            variance,
            terms,
        }
    }

    /// Takes some pixels of an output apart; the last tile may be shorter than those before it.
    #[inline(always)]
    fn take(&mut self, output: &[f32], loss: Loss, len: usize) {
        self.prediction.truncate(len);
        self.variance.truncate(len);
        self.terms.truncate(len);
        match (loss.output, loss.c) {
            (Output::Prediction, _) => {
                self.prediction.copy_from_slice(output);
                self.variance.fill(0.0);
            }
            // Channels that are known to the compiler are copied without a loop.
            (Output::PredictionAndVariance, 3) => self.split(output, 3),
            (Output::PredictionAndVariance, c) => self.split(output, c),
        }
    }

    #[inline(always)]
    fn split(&mut self, output: &[f32], c: usize) {
        let halves = self.prediction.chunks_exact_mut(c);
        let halves = halves.zip(self.variance.chunks_exact_mut(c));
        for ((prediction, variance), output) in halves.zip(output.chunks_exact(2 * c)) {
            prediction.copy_from_slice(&output[..c]);
            variance.copy_from_slice(&output[c..]);
        }
    }

    /// Puts gradients where the output was taken from: the inverse of [`Self::take`].
    #[inline(always)]
    fn put(&self, d_output: &mut [f32], loss: Loss) {
        match (loss.output, loss.c) {
            (Output::Prediction, _) => d_output.copy_from_slice(&self.prediction),
            (Output::PredictionAndVariance, 3) => self.join(d_output, 3),
            (Output::PredictionAndVariance, c) => self.join(d_output, c),
        }
    }

    #[inline(always)]
    fn join(&self, d_output: &mut [f32], c: usize) {
        let halves = self.prediction.chunks_exact(c);
        let halves = halves.zip(self.variance.chunks_exact(c));
        for ((prediction, variance), d_output) in halves.zip(d_output.chunks_exact_mut(2 * c)) {
            d_output[..c].copy_from_slice(prediction);
            d_output[c..].copy_from_slice(variance);
        }
    }

    /// From the prediction to its error.
    #[inline(always)]
    fn subtract_target(&mut self, image: &Image, x0: &[f32], eps: &[f32]) {
        let (a, b) = (image.target_x0 as f32, image.target_eps as f32);
        for ((error, x0), eps) in self.prediction.iter_mut().zip(x0).zip(eps) {
            *error -= a * x0 + b * eps;
        }
    }

    /// The terms of [`Term::Divergence`], and the gradients of everything.
    #[inline(always)]
    fn divergence(
        &mut self,
        image: &Image,
        bound: &Bound,
        distance: f32,
        n_elements: f64,
        mul_add: MulAdd,
    ) {
        let (slope, shift) = (bound.ratio_slope as f32, bound.ratio_shift as f32);
        // d/d error of distance error^2 e^r / 2 is distance error e^r.
        let d_squared = (2.0 * image.d_mse / n_elements) as f32;
        let d_distance = distance * (bound.d_prediction / n_elements) as f32;
        let d_variance = (0.5 * bound.d_variance * bound.ratio_slope / n_elements) as f32;
        let halves = self.prediction.iter_mut().zip(&mut self.variance);
        for ((prediction, variance), term) in halves.zip(&mut self.terms) {
            let (error, r) = (*prediction, slope * (*variance + shift));
            let ratio = if r > OVERFLOW {
                f32::INFINITY
            } else {
                exp(r, mul_add)
            };
            let scaled = distance * (error * error) * ratio;
            *term = 0.5 * (scaled + (ratio - r - 1.0));
            *prediction = error * (d_squared + d_distance * ratio);
            *variance = d_variance * (scaled + (ratio - 1.0));
        }
    }

    /// The terms of [`Term::Likelihood`], and the gradients of everything; in f64, since few images are at level 0.
    fn likelihood(&mut self, image: &Image, bound: &Bound, x0: &[f32], n_elements: f64) {
        let d_squared = 2.0 * image.d_mse / n_elements;
        let halves = self.prediction.iter_mut().zip(&mut self.variance);
        for (((prediction, variance), term), &x0) in halves.zip(&mut self.terms).zip(x0) {
            let error = f64::from(*prediction);
            let nats = likelihood::nats(bound, x0, error, f64::from(*variance));
            *term = nats.value as f32;
            let d_prediction = bound.d_prediction / n_elements * nats.d_error;
            *prediction = (d_squared * error + d_prediction) as f32;
            *variance = (bound.d_variance / n_elements * nats.d_variance) as f32;
        }
    }
}

/// A sum in f64 whose order is that of the elements, in lanes that fit any vector.
#[derive(Default)]
struct Sum([f64; LANES]);

impl Sum {
    #[inline(always)]
    fn add(&mut self, values: &[f32], f: impl Fn(f32) -> f32) {
        let (chunks, rest) = values.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &value) in self.0.iter_mut().zip(chunk) {
                *lane += f64::from(f(value));
            }
        }
        for (lane, &value) in self.0.iter_mut().zip(rest) {
            *lane += f64::from(f(value));
        }
    }

    fn total(&self) -> f64 {
        self.0.iter().sum()
    }
}
