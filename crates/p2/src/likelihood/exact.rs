//! The likelihood of images under the probability flow of a model, estimated without a bound.

use std::ops::Range;

use candle_core::{Device, Tensor};
use p2_diffusion::log_densities;
use p2_diffusion::sampler::Tolerance;

use super::BitsPerDim;
use crate::data::{Dataset, Split, pixel_from_byte};
use crate::model::{Condition, Model};
use crate::rng::{Draws, Stream};

/// Distance of two levels of a pixel in `[-1, 1]`.
const CELL: f64 = 2.0 / 255.0;

/// Which images, and how exactly.
#[derive(Debug, Clone, Copy)]
pub struct ExactOptions {
    /// Which list of the dataset.
    pub split: Split,
    /// Probes of the divergence for each image, at least 1: more are less noisy, and cost as much more.
    pub n_probes: usize,
    /// Error that a step of the solver may make, relative and absolute.
    pub tolerance: f64,
    /// Seed of the noise and the probes of each image.
    pub seed: u64,
}

/// Estimates, and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Exact {
    /// The estimate of each image.
    pub bits_per_dim: BitsPerDim,
    /// Evaluations of the network, each with a vector-Jacobian product: the mean over images.
    pub nfe: f64,
}

/// Estimates the negative log-likelihood of images; they are neither cropped nor mirrored at random.
///
/// Noise over the cell of each level makes pixels continuous. The logarithm of the density of that, times the cell, is
/// estimated without bias; its mean over noises bounds what whole pixels need (Jensen's inequality). The cells are those
/// that [`bound`](super::bound()) has at its first level. An image is alone with its probes: whatever else is estimated
/// moves no bit of it.
///
/// `on_image` is told how many are done.
///
/// # Errors
/// If an image cannot be read, the flow cannot be followed, or `on_image` says so.
///
/// # Source
/// Song et al. 2021, arXiv 2011.13456, section 4.3 and appendix D.2.
pub fn exact(
    model: &Model,
    dataset: &Dataset,
    images: Range<usize>,
    options: ExactOptions,
    mut on_image: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Exact> {
    let (mut all, mut n_evaluations) = (Vec::with_capacity(images.len()), 0);
    for index in images.clone() {
        let image = dataset.image(options.split, index)?;
        let x0 = continuous(&image.pixels, index, options.seed);
        let size = model.image_size();
        let shape = (options.n_probes, size, size, 3);
        let x0 = Tensor::from_vec(x0.repeat(options.n_probes), shape, &Device::Cpu)?; // [P, H, W, 3]
        let probes = probes(image.pixels.len(), index, options);
        let probes = Tensor::from_vec(probes, shape, &Device::Cpu)?;
        // What a model enlarges is made of the pixels themselves.
        let (pixels, _) = dataset.images(options.split, [index])?;
        let low_res = model.low_res(&pixels)?;
        let low_res = low_res.map(|one| one.repeat((options.n_probes, 1, 1, 1)));
        let low_res = low_res.transpose()?;
        let condition = Condition {
            labels: &vec![image.label; options.n_probes],
            low_res: low_res.as_ref(),
        };
        let (denoiser, schedule) = (model.denoiser(condition), model.schedule());
        let tolerance = Tolerance::of(options.tolerance);
        let densities = log_densities(&denoiser, schedule, &x0, &probes, tolerance)?;
        let bits: f64 = densities.bits_per_dim(CELL).sum();
        all.push(bits / options.n_probes as f64);
        n_evaluations += densities.n_evaluations * options.n_probes;
        on_image(index + 1 - images.start)?;
    }
    Ok(Exact {
        nfe: n_evaluations as f64 / all.len() as f64,
        bits_per_dim: BitsPerDim(all),
    })
}

/// Pixels in `[-1, 1]`, each moved at random within its cell.
fn continuous(bytes: &[u8], index: usize, seed: u64) -> Vec<f32> {
    let mut draws = Draws::at(seed, Stream::Dequantization, index as u64);
    let pixels = bytes.iter().map(|&byte| {
        let moved = CELL * (draws.uniform() - 0.5);
        (f64::from(pixel_from_byte(byte)) + moved) as f32
    });
    pixels.collect()
}

/// Random signs, `[P, H, W, 3]`.
fn probes(n_pixels: usize, index: usize, options: ExactOptions) -> Vec<f32> {
    let mut probes = vec![0.0; options.n_probes * n_pixels];
    for (lane, probe) in probes.chunks_exact_mut(n_pixels).enumerate() {
        let (index, lane) = (index as u64, lane as u64);
        Draws::at_lane(options.seed, Stream::Probe, index, lane).fill_signs(probe);
    }
    probes
}

#[cfg(test)]
mod tests {
    use std::f64::consts::{LN_2, TAU};

    use p2_nn::{Cpu, Threads};

    use super::*;
    use crate::config::{Base, Override, resolve};

    /// A network says 0 before it has learned: as the image (all are black), or as the noise (all are as they are).
    #[test]
    fn densities_before_learning_are_known() {
        for prediction in ["x0", "eps"] {
            let set = [
                "data.image_size=8",
                "model.attention_resolutions=[4]",
                &format!("diffusion.prediction={prediction}"),
            ];
            let set = set.map(Override::set);
            let config = resolve(&Base::Preset("smoke".into()), &set).unwrap();
            let dataset = Dataset::open(&config.data).unwrap();
            let model = Model::new(&config, Cpu::best(Threads::new(2))).unwrap();
            let options = ExactOptions {
                split: Split::HeldOut,
                n_probes: 2,
                tolerance: 1e-5,
                seed: 3,
            };
            let got = exact(&model, &dataset, 4..7, options, |_| Ok(())).unwrap();
            let log_snr = model.schedule().log_snr();
            let [low, high] = [log_snr[0], log_snr[999]].map(|l| (-0.5 * l).exp());
            let shrink = 1.0 / (1.0 + high * high).sqrt();
            // The flow moves black images with the noise, and others not at all.
            let stretch = match prediction {
                "x0" => shrink * high / low,
                _ => shrink,
            };
            for (index, got) in (4..7).zip(&got.bits_per_dim.0) {
                let image = dataset.image(Split::HeldOut, index).unwrap();
                let pixels = continuous(&image.pixels, index, 3);
                for (pixel, byte) in pixels.iter().zip(&image.pixels) {
                    let moved = 127.5 * (f64::from(*pixel) + 1.0) - f64::from(*byte);
                    assert!(moved.abs() < 0.5001, "{moved}");
                }
                let nats = pixels.iter().map(|&pixel| {
                    let noise = stretch * f64::from(pixel);
                    0.5 * (noise * noise + TAU.ln()) - stretch.ln()
                });
                let mean = nats.sum::<f64>() / pixels.len() as f64;
                let expected = mean / LN_2 + 127.5_f64.log2();
                let allowed = 1e-4 * expected.abs().max(1.0);
                assert!((got - expected).abs() < allowed, "{got} is not {expected}");
            }
            // At least one step of seven evaluations, for each probe.
            assert!(got.nfe >= 14.0, "{}", got.nfe);
        }
    }
}
