//! Draws images from a model. Image i of a seed has the same bits in any batch, with any threads.

use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use p2_diffusion::sampler::{AncestralOptions, Clip, DdimOptions, ancestral, ddim};
use p2_diffusion::{Levels, NoiseSchedule};

use crate::checkpoint::{self, NamedTensor, TensorFile};
use crate::config::section::Sampler;
use crate::model::Model;
use crate::rng::{Draws, Stream};

/// How images are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleOptions {
    /// Which sampler.
    pub sampler: Sampler,
    /// Network evaluations per image.
    pub n_steps: usize,
    /// Share of fresh noise per DDIM step.
    pub eta: f64,
    /// Seed of all noise.
    pub seed: u64,
    /// The class of every image; `None` for all classes in turn.
    pub class: Option<u32>,
}

/// Draws the images `images` of a seed: `[N, H, W, 3]`, in `[-1, 1]`.
///
/// `on_step` is called after each step, and may end the drawing with an error.
///
/// # Errors
/// If there are more steps than noise levels, or the class does not exist.
pub fn draw(
    model: &Model,
    images: Range<u64>,
    options: &SampleOptions,
    mut on_step: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Tensor> {
    let size = model.image_size();
    let levels = levels(model.schedule(), options.n_steps)?;
    let labels: Vec<u32> = images
        .clone()
        .map(|image| label(model, options, image))
        .collect();
    // Lane 0 is the first noise, lane i + 1 that of step i.
    let noise = |lane: u64| -> candle_core::Result<Tensor> {
        let mut values = vec![0.0; labels.len() * size * size * 3];
        for (image, values) in images.clone().zip(values.chunks_exact_mut(size * size * 3)) {
            Draws::at_lane(options.seed, Stream::Sample, image, lane).fill_normal(values);
        }
        Tensor::from_vec(values, (labels.len(), size, size, 3), &Device::Cpu)
    };
    let x_t = noise(0)?; // [N, H, W, 3]
    let denoiser = model.denoiser(&labels);
    let mut step_noise = |i: usize| Ok(noise(i as u64 + 1)?);
    let mut report = |_: p2_diffusion::sampler::StepReport<'_>| {
        on_step().map_err(|error| p2_diffusion::Error::Caller(error.into()))
    };
    let clip = Clip::Pixels;
    Ok(match options.sampler {
        Sampler::Ancestral => {
            let options = AncestralOptions {
                clip,
                variance: model.variance(),
            };
            ancestral(
                &denoiser,
                x_t,
                &levels,
                options,
                &mut step_noise,
                &mut report,
            )?
        }
        Sampler::Ddim => {
            let options = DdimOptions {
                clip,
                eta: options.eta,
            };
            ddim(
                &denoiser,
                x_t,
                &levels,
                options,
                &mut step_noise,
                &mut report,
            )?
        }
    })
}

/// The noise levels of so many steps.
fn levels(schedule: &NoiseSchedule, n_steps: usize) -> p2_diffusion::Result<Levels> {
    match n_steps {
        // Respacing would take the cleanest level; one step from noise starts at the noisiest.
        1 => Levels::from_timesteps(schedule, vec![schedule.n_timesteps() as u32 - 1]),
        n_steps => Levels::from_spec(schedule, &n_steps.to_string()),
    }
}

/// The class of an image: the one asked for, or all in turn.
fn label(model: &Model, options: &SampleOptions, image: u64) -> u32 {
    let n_classes = model.n_classes().max(1) as u64;
    options.class.unwrap_or((image % n_classes) as u32)
}

/// Saves unrounded pixels, `[N, H, W, 3]` in `[-1, 1]`, as the tensor `images` of a safetensors
/// file.
///
/// # Errors
/// If the file cannot be written.
pub fn raw_file(path: &Path, size: usize, pixels: &[f32]) -> anyhow::Result<()> {
    let shape = vec![pixels.len() / (size * size * 3), size, size, 3];
    let tensor = NamedTensor {
        name: "images".into(),
        shape,
        values: pixels.into(),
    };
    let name = path.display().to_string();
    checkpoint::save_file(
        path,
        &TensorFile {
            name,
            metadata: None,
            tensors: vec![tensor],
        },
    )
}
