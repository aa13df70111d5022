//! Draws images from a model. Image i of a seed has the same bits in any batch, with any threads.

mod npz;
mod run;

use std::cell::Cell;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use p2_diffusion::sampler::{Clip, StepReport};
use p2_diffusion::{ClassGradient, ClassifierGuided, Denoised, Denoiser, Guided, MeanGuidance};

use crate::checkpoint::{self, NamedTensor, TensorFile};
use crate::classifier::Classifier;
use crate::config::section::{self, Sampler, Spacing};
use crate::model::{Condition, Model};
use crate::rng::{Draws, Stream};
pub use npz::npz_file;
use run::Run;
pub(crate) use run::levels;

/// How images are drawn.
#[derive(Debug, Clone, Copy)]
pub struct SampleOptions<'a> {
    /// Which sampler.
    pub sampler: Sampler,
    /// Steps from noise to image.
    pub n_steps: usize,
    /// Which noise levels they lead through.
    pub spacing: Spacing,
    /// The same by name, as [`p2_diffusion::space_timesteps`] takes it; goes before the two above.
    pub respacing: Option<&'a str>,
    /// Share of fresh noise per step, for samplers that can have any.
    pub eta: f64,
    /// Seed of all noise.
    pub seed: u64,
    /// Away from a worse guess.
    pub guidance: Guidance<'a>,
    /// Along a classifier's gradient.
    pub classifier: Option<ClassifierGuidance<'a>>,
}

/// How samples are pushed along the gradient of a classifier.
#[derive(Debug, Clone, Copy)]
pub struct ClassifierGuidance<'a> {
    /// The classifier; the classes are those of the images.
    pub classifier: &'a Classifier,
    /// How far.
    pub scale: f64,
    /// What is moved.
    pub form: ClassifierForm,
}

/// What a classifier's gradient moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ClassifierForm {
    /// The guess of the noise, for any sampler.
    Score,
    /// The mean of an ancestral step, by the gradient at the images, as the reference code does.
    Mean,
    /// The mean of an ancestral step, by the gradient at that mean, as it is derived.
    Exact,
}

/// How samples are pushed away from a worse guess.
#[derive(Debug, Clone, Copy)]
pub struct Guidance<'a> {
    /// How far; 1 is not at all.
    pub scale: f64,
    /// Least and most noise per unit of data at which they are.
    pub sigmas: [f64; 2],
    /// Whose guess is worse; `None` for the model's own without a class.
    pub by: Option<&'a Model>,
}

impl Guidance<'_> {
    /// At all noise levels, by the model itself.
    pub fn of_scale(scale: f64) -> Self {
        Self {
            scale,
            sigmas: [0.0, f64::INFINITY],
            by: None,
        }
    }
}

impl SampleOptions<'_> {
    /// As a configuration says.
    pub fn of(sample: &section::Sample) -> Self {
        Self {
            sampler: sample.sampler,
            n_steps: sample.n_steps,
            spacing: sample.spacing,
            respacing: None,
            eta: sample.eta,
            seed: sample.seed,
            guidance: Guidance::of_scale(sample.guidance),
            classifier: None,
        }
    }
}

/// What was drawn.
#[derive(Debug)]
pub struct Drawn {
    /// `[N, H, W, 3]`, in `[-1, 1]`.
    pub pixels: Tensor,
    /// Images that the network looked at.
    pub n_evaluations: usize,
}

/// Draws the images `images` of a seed, each with its class (see [`labels`]) and what it is enlarged from.
///
/// `on_step` is called after each step, and may end the drawing with an error.
///
/// # Errors
/// If there are more steps than noise levels, the class does not exist, or what a model shall enlarge is missing.
pub fn draw(
    model: &Model,
    images: Range<u64>,
    condition: Condition<'_>,
    options: &SampleOptions<'_>,
    mut on_step: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Drawn> {
    // The steps of the flow are as long as all its images allow: each is alone.
    let at_once = match options.sampler {
        Sampler::Flow => 1,
        _ => (images.end - images.start).max(1),
    };
    let n_evaluations = Cell::new(0);
    let mut parts = Vec::new();
    for first in images.clone().step_by(at_once as usize) {
        let part = first..(first + at_once).min(images.end);
        let count = |n: usize| n_evaluations.set(n_evaluations.get() + n);
        let (place, n) = ((first - images.start) as usize, (part.end - first) as usize);
        let low_res = condition.low_res.map(|all| all.narrow(0, place, n));
        let low_res = low_res.transpose()?;
        let condition = Condition {
            labels: &condition.labels[place..place + n],
            low_res: low_res.as_ref(),
        };
        let (denoiser, clip) = guided(model, condition, options, &count)?;
        let mut report = |_: StepReport<'_>| {
            on_step().map_err(|error| p2_diffusion::Error::Caller(error.into()))
        };
        // The networks of a cascade start from noise of their own.
        let first_lane = (model.low_res_size().unwrap_or(0) as u64) << 32;
        let noise = |lane: u64| {
            let lane = first_lane + lane;
            noise(part.clone(), model.image_size(), options.seed, lane)
        };
        let run = Run {
            model,
            denoiser: denoiser.as_ref(),
            clip,
            mean: by_mean(options, condition.labels),
            options,
            noise: &mut |i| noise(i as u64 + 1),
            report: &mut report,
        };
        parts.push(run.from(noise(0)?)?);
    }
    Ok(Drawn {
        pixels: Tensor::cat(&parts, 0)?,
        n_evaluations: n_evaluations.get(),
    })
}

/// The model as a sampler shall see it, guided and with its evaluations counted, and whether the sampler clips it.
fn guided<'a>(
    model: &'a Model,
    condition: Condition<'a>,
    options: &SampleOptions<'a>,
    count: &'a dyn Fn(usize),
) -> anyhow::Result<(Box<dyn Denoiser + 'a>, Clip)> {
    let clip = run::clip(options.sampler);
    let denoiser = away_from_worse(model, condition, options.guidance, count)?;
    Ok(match options.classifier {
        Some(guide) if guide.form == ClassifierForm::Score => {
            let guided = ClassifierGuided {
                denoiser: move |x_t: &Tensor, t: &[f64]| denoiser.denoise(x_t, t),
                gradient: guide.classifier.gradient(condition.labels),
                scale: guide.scale,
                clip,
                schedule: model.schedule().clone(),
            };
            (Box::new(guided), Clip::Off)
        }
        _ => (denoiser, clip),
    })
}

/// A classifier that moves the means of ancestral steps, if one does.
fn by_mean<'a>(
    options: &SampleOptions<'a>,
    labels: &'a [u32],
) -> Option<MeanGuidance<impl ClassGradient + 'a>> {
    let guide = options.classifier?;
    (guide.form != ClassifierForm::Score).then(|| MeanGuidance {
        gradient: guide.classifier.gradient(labels),
        scale: guide.scale,
        at_mean: guide.form == ClassifierForm::Exact,
    })
}

/// The model, pushed away from a worse guess if it shall be.
fn away_from_worse<'a>(
    model: &'a Model,
    condition: Condition<'a>,
    guidance: Guidance<'a>,
    count: &'a dyn Fn(usize),
) -> anyhow::Result<Box<dyn Denoiser + 'a>> {
    let Condition { labels, low_res } = condition;
    let counted = |model, labels| counted(model, (labels, low_res), count);
    let good = counted(model, labels.to_vec());
    if guidance.scale == 1.0 {
        return Ok(Box::new(good));
    }
    let bad = match (guidance.by, model.no_class()) {
        (Some(other), _) => counted(other, labels.to_vec()),
        (None, Some(no_class)) => counted(model, vec![no_class; labels.len()]),
        (None, None) => anyhow::bail!("the model was never trained without classes"),
    };
    // Noise per unit of data is one over the root of the SNR.
    let [least, most] = guidance.sigmas.map(|sigma| -2.0 * sigma.ln());
    let guided = Guided::new(good, bad, guidance.scale, model.schedule());
    Ok(Box::new(guided.within(most..=least)))
}

/// A model's guesses for images of these classes, counted.
fn counted<'a>(
    model: &'a Model,
    (labels, low_res): (Vec<u32>, Option<&'a Tensor>),
    count: &'a dyn Fn(usize),
) -> impl Denoiser + 'a {
    move |x_t: &Tensor, t: &[f64]| -> p2_diffusion::Result<Denoised> {
        count(t.len());
        let condition = Condition {
            labels: &labels,
            low_res,
        };
        model.denoiser(condition).denoise(x_t, t)
    }
}

/// The noise of images, `[N, H, W, 3]`: lane 0 is the first one, lane i + 1 that of step (or draw) i.
fn noise(images: Range<u64>, size: usize, seed: u64, lane: u64) -> p2_diffusion::Result<Tensor> {
    let n_images = (images.end - images.start) as usize;
    let mut values = vec![0.0; n_images * size * size * 3];
    for (image, values) in images.zip(values.chunks_exact_mut(size * size * 3)) {
        Draws::at_lane(seed, Stream::Sample, image, lane).fill_normal(values);
    }
    Ok(Tensor::from_vec(
        values,
        (n_images, size, size, 3),
        &Device::Cpu,
    )?)
}

/// The classes of images: the one asked for, or all in turn.
pub fn labels(n_classes: usize, images: Range<u64>, class: Option<u32>) -> Vec<u32> {
    let n_classes = n_classes.max(1) as u64;
    images
        .map(|image| class.unwrap_or((image % n_classes) as u32))
        .collect()
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
