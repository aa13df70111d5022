//! Images as noise, and back: what deterministic DDIM makes of them, its files, and ways from one to another.

use std::path::Path;

use anyhow::{Context as _, ensure};
use candle_core::{Device, Tensor};
use p2_diffusion::sampler::{self, Clip, DdimOptions};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, NamedTensor, StoredTensors, TensorFile};
use crate::config::RunConfig;
use crate::config::section::{Schedule, Spacing};
use crate::model::{Condition, Model};
use crate::problem::Problem;
use crate::sample::levels;

/// The way out where there are no codes.
const CODES_HINT: &str = "give a .safetensors file that p2 encode wrote";
/// The name of the one tensor in a file.
const TENSOR: &str = "codes";

/// Images as noise, and which noise that is.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// `[N, S, S, 3]`, about standard normal.
    pub values: Vec<f32>,
    /// The classes of the images, `[N]`; 0 if there are none.
    pub labels: Vec<u32>,
    /// What they were made with.
    pub origin: Origin,
}

/// What codes were made with: a model of the same noise process decodes them.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Height and width of the images.
    pub image_size: usize,
    /// Steps from image to noise.
    pub n_steps: usize,
    /// The model's noise schedule.
    pub schedule: Schedule,
    /// Its timesteps.
    pub n_timesteps: usize,
}

/// What stands beside the tensor.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    codes: Origin,
    labels: Vec<u32>,
}

impl Origin {
    /// So many steps of a model of this configuration.
    pub fn of(config: &RunConfig, n_steps: usize) -> Self {
        Self {
            image_size: config.data.image_size,
            n_steps,
            schedule: config.diffusion.schedule.clone(),
            n_timesteps: config.diffusion.n_timesteps,
        }
    }
}

/// Images, `[N, H, W, 3]` in `[-1, 1]`, as noise at the model's last level; like the images.
///
/// # Errors
/// If there are more steps than noise levels, or the class does not exist.
///
/// # Source
/// Song et al. 2021, arXiv 2010.02502, section 5.4.
pub fn encode(
    model: &Model,
    images: &Tensor,
    labels: &[u32],
    n_steps: usize,
) -> anyhow::Result<Tensor> {
    let levels = levels(model.schedule(), n_steps, Spacing::Even)?;
    Ok(sampler::ddim_encode(
        &model.denoiser(Condition::of_classes(labels)),
        images,
        &levels,
    )?)
}

/// The images of codes: deterministic DDIM that clips no guess, as encoding does not.
///
/// # Errors
/// As for [`encode`].
pub fn decode(
    model: &Model,
    codes: Tensor,
    labels: &[u32],
    n_steps: usize,
) -> anyhow::Result<Tensor> {
    let levels = levels(model.schedule(), n_steps, Spacing::Even)?;
    let (clip, eta) = (Clip::Off, 0.0);
    let mut no_noise = |_| Err(p2_diffusion::Error::Caller("no noise is drawn".into()));
    Ok(sampler::ddim(
        &model.denoiser(Condition::of_classes(labels)),
        codes,
        &levels,
        DdimOptions { clip, eta },
        &mut no_noise,
        &mut |_| Ok(()),
    )?)
}

/// Refuses a model that enlarges images: what it draws hangs on these too.
///
/// # Errors
/// For such a model.
pub fn check_model(config: &RunConfig) -> Result<(), Problem> {
    if config.model.low_res_size == 0 {
        return Ok(());
    }
    Err(Problem::new("the model enlarges images")
        .because("what it draws is no matter of noise alone")
        .hint("give a model that draws from noise alone, with model.low_res_size = 0"))
}

impl Codes {
    /// How many.
    pub fn n_images(&self) -> usize {
        self.labels.len()
    }

    /// Those of some images, `[N, S, S, 3]`.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn tensor(&self, images: std::ops::Range<usize>) -> anyhow::Result<Tensor> {
        let size = self.origin.image_size;
        let n_pixels = size * size * 3;
        let values = self
            .values
            .get(images.start * n_pixels..images.end * n_pixels);
        let values = values.with_context(|| format!("there are no codes {images:?}"))?;
        let shape = (images.len(), size, size, 3);
        Ok(Tensor::from_slice(values, shape, &Device::Cpu)?)
    }

    /// Saves them as the tensor `codes` of a safetensors file, and the rest as its metadata.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let metadata = Metadata {
            codes: self.origin.clone(),
            labels: self.labels.clone(),
        };
        let size = self.origin.image_size;
        let file = TensorFile {
            name: path.display().to_string(),
            metadata: Some(serde_json::to_string(&metadata)?),
            tensors: vec![NamedTensor {
                name: TENSOR.into(),
                shape: vec![self.n_images(), size, size, 3],
                values: self.values.as_slice().into(),
            }],
        };
        checkpoint::save_file(path, &file)
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// If it is no such file.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> {
            let stored = StoredTensors::open(path)?;
            let metadata = stored.metadata().unwrap_or_default();
            let metadata: Metadata =
                serde_json::from_str(metadata).context("its metadata is not that of codes")?;
            let Metadata {
                codes: origin,
                labels,
            } = metadata;
            let values = stored.values(TENSOR)?;
            let (size, shape) = (origin.image_size, stored.shape(TENSOR));
            let expected = [labels.len(), size, size, 3];
            ensure!(
                shape == Some(&expected) && !labels.is_empty(),
                "its codes are {shape:?}, not {expected:?}"
            );
            ensure!(
                values.iter().all(|value| value.is_finite()),
                "its codes are not finite"
            );
            Ok(Self {
                values,
                labels,
                origin,
            })
        };
        let unusable = || Problem::new(format!("no codes in {}", path.display())).hint(CODES_HINT);
        read().with_context(unusable)
    }

    /// Refuses a model of another size, another noise process or fewer classes.
    ///
    /// # Errors
    /// With what differs.
    pub fn check(&self, config: &RunConfig) -> Result<(), Problem> {
        check_model(config)?;
        let (made, now) = (&self.origin, Origin::of(config, self.origin.n_steps));
        let hint = "give the model that encoded them, or another one of its size and noise";
        let message = if made.image_size != now.image_size {
            let (made, now) = (made.image_size, now.image_size);
            format!("codes of {made}x{made} images, but the model draws {now}x{now}")
        } else if *made != now {
            "the codes come from another noise schedule than the model's".to_owned()
        } else if made.n_steps == 0 || made.n_steps > made.n_timesteps {
            let (n_steps, n_timesteps) = (made.n_steps, made.n_timesteps);
            format!("codes of {n_steps} steps through {n_timesteps} timesteps")
        } else {
            return Ok(());
        };
        Err(Problem::new(message).hint(hint))
    }

    /// The codes with `n_between` more from each to the next, of the class of the nearer one.
    #[must_use]
    pub fn interpolated(&self, n_between: usize) -> Self {
        let size = self.origin.image_size;
        let codes: Vec<&[f32]> = self.values.chunks_exact(size * size * 3).collect();
        let (mut values, mut labels) = (Vec::new(), Vec::new());
        for (i, code) in codes.iter().enumerate() {
            values.extend_from_slice(code);
            labels.push(self.labels[i]);
            let Some(next) = codes.get(i + 1) else { break };
            for j in 1..=n_between {
                let share = j as f64 / (n_between + 1) as f64;
                values.extend(between(code, next, share));
                labels.push(self.labels[i + usize::from(share > 0.5)]);
            }
        }
        Self {
            values,
            labels,
            origin: self.origin.clone(),
        }
    }
}

/// The code at a share of the way from one to another, along the arc: as much noise as they are.
///
/// # Source
/// Shoemake 1985; Song et al. 2021, arXiv 2010.02502, eq. 67.
fn between(from: &[f32], to: &[f32], share: f64) -> Vec<f32> {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = product(from, to) / (product(from, from) * product(to, to)).sqrt();
    let angle = cosine.clamp(-1.0, 1.0).acos();
    // Of the same direction, or of opposite ones, there is no arc.
    let [a, b] = if angle.sin() > 1e-6 {
        [1.0 - share, share].map(|share| (share * angle).sin() / angle.sin())
    } else {
        [1.0 - share, share]
    };
    let pairs = from.iter().zip(to);
    let values = pairs.map(|(from, to)| (a * f64::from(*from) + b * f64::from(*to)) as f32);
    values.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(values: Vec<f32>, labels: Vec<u32>) -> Codes {
        let origin = Origin {
            image_size: 1,
            n_steps: 5,
            schedule: Schedule::Cosine,
            n_timesteps: 1000,
        };
        Codes {
            values,
            labels,
            origin,
        }
    }

    #[test]
    fn codes_come_back_from_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("codes.safetensors");
        let saved = codes(vec![0.1, -2.0, 3e-9, 4.0, 0.0, -0.5], vec![7, 0]);
        saved.save(&path).unwrap();
        assert_eq!(Codes::load(&path).unwrap(), saved);
        for (wrong, part) in [
            (codes(vec![f32::NAN, 0.0, 0.0], vec![0]), "not finite"),
            (codes(vec![], vec![]), "its codes are"),
        ] {
            wrong.save(&path).unwrap();
            let error = format!("{:#}", Codes::load(&path).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn between_two_codes_lies_an_arc() {
        // Of one length and at right angles: a quarter of a circle.
        let ends = codes(vec![3.0, 0.0, 0.0, 0.0, 0.0, 3.0], vec![1, 2]);
        let all = ends.interpolated(3);
        assert_eq!(all.labels, [1, 1, 1, 2, 2]);
        let quarter = std::f64::consts::FRAC_PI_2;
        for (i, code) in all.values.chunks(3).enumerate() {
            let angle = i as f64 / 4.0 * quarter;
            let expected = [angle.cos(), 0.0, angle.sin()].map(|x| 3.0 * x);
            for (got, expected) in code.iter().zip(expected) {
                assert!((f64::from(*got) - expected).abs() < 1e-6, "{code:?}");
            }
        }
        assert_eq!(ends.interpolated(0), ends);
        // The same code twice, and its opposite: a straight line.
        for (next, middle) in [(3.0, 3.0), (-3.0, 0.0)] {
            let line = codes(vec![3.0, 0.0, 0.0, next, 0.0, 0.0], vec![0, 0]);
            assert_eq!(line.interpolated(1).values[3..6], [middle, 0.0, 0.0]);
        }
    }
}
