//! One run of a sampler: which one, with which numbers, through which noise levels.

use candle_core::Tensor;
use p2_diffusion::sampler::{
    self, AncestralOptions, Churn, Clip, CorrectorOptions, Course, DdimOptions, DpmOptions,
    EdmOptions, EulerAncestralOptions, FlowOptions, Order, Sde, SinglestepOptions, StepReport,
    Tolerance, UniPcOptions,
};
use p2_diffusion::{ClassGradient, Denoiser, Levels, MeanGuidance, NoiseSchedule, Result};

use super::SampleOptions;
use crate::config::section::{Sampler, Spacing};
use crate::model::Model;

/// Churn of images by Karras et al. 2022, arXiv 2206.00364, table 5 (ImageNet).
const CHURN: Churn = Churn {
    amount: 40.0,
    sigmas: [0.05, 50.0],
    noise: 1.003,
};
/// Exponent of the spacing there.
const RHO: f64 = 7.0;
/// Errors that the probability flow allows, by Song et al. 2021, arXiv 2011.13456.
const FLOW: FlowOptions = FlowOptions {
    clip: Clip::Off,
    tolerance: Tolerance {
        relative: 1e-5,
        absolute: 1e-5,
    },
};
const UNIPC: UniPcOptions = UniPcOptions {
    clip: Clip::Off,
    order: 3,
};
/// Signal-to-noise ratio of Langevin steps there.
const LANGEVIN_SNR: f64 = 0.16;

/// Samplers of first order clip guesses to the range of pixels. Others draw conclusions from how guesses change, and a
/// clipped one changes by jumps.
pub(super) fn clip(sampler: Sampler) -> Clip {
    match sampler {
        Sampler::Ancestral
        | Sampler::Ddim
        | Sampler::Euler
        | Sampler::EulerAncestral
        | Sampler::PcVp
        | Sampler::PcVe => Clip::Pixels,
        _ => Clip::Off,
    }
}

/// A sampler about to run.
pub(super) struct Run<'a, D: ?Sized, G> {
    pub(super) model: &'a Model,
    pub(super) denoiser: &'a D,
    /// What becomes of its guesses.
    pub(super) clip: Clip,
    /// For ancestral sampling: a classifier that moves the mean of each step.
    pub(super) mean: Option<MeanGuidance<G>>,
    pub(super) options: &'a SampleOptions<'a>,
    /// The noise of a step.
    pub(super) noise: &'a mut dyn FnMut(usize) -> Result<Tensor>,
    pub(super) report: &'a mut dyn FnMut(StepReport<'_>) -> Result<()>,
}

impl<D: Denoiser + ?Sized, G: ClassGradient> Run<'_, D, G> {
    /// Draws images from noise, `[N, H, W, 3]` to the same.
    pub(super) fn from(self, x_t: Tensor) -> Result<Tensor> {
        let (which, eta, clip) = (self.options.sampler, self.options.eta, self.clip);
        let (denoiser, noise, report) = (self.denoiser, self.noise, self.report);
        let training = self.model.schedule();
        let levels = || levels_of(training, self.options);
        let course = || course(training, self.options);
        match which {
            Sampler::Ancestral => {
                let variance = self.model.variance();
                let (options, levels) = (AncestralOptions { clip, variance }, levels()?);
                match &self.mean {
                    None => sampler::ancestral(denoiser, x_t, &levels, options, noise, report),
                    Some(mean) => {
                        let guided = (denoiser, mean);
                        sampler::ancestral_guided(guided, x_t, &levels, options, noise, report)
                    }
                }
            }
            Sampler::Ddim => {
                let options = DdimOptions { clip, eta };
                sampler::ddim(denoiser, x_t, &levels()?, options, noise, report)
            }
            Sampler::Euler | Sampler::Heun | Sampler::HeunChurn => {
                let options = edm(which, clip);
                sampler::edm(denoiser, &x_t, &course()?, options, noise, report)
            }
            Sampler::EulerAncestral => {
                let options = EulerAncestralOptions { clip, eta };
                sampler::euler_ancestral(denoiser, &x_t, &course()?, options, noise, report)
            }
            Sampler::Dpm2m | Sampler::Dpm3m => {
                let order = if which == Sampler::Dpm2m { 2 } else { 3 };
                let options = DpmOptions { clip, order, eta };
                sampler::dpm_multistep(denoiser, &x_t, &course()?, options, noise, report)
            }
            Sampler::Dpm2s => {
                let options = SinglestepOptions { clip, eta };
                sampler::dpm_singlestep(denoiser, &x_t, &course()?, options, noise, report)
            }
            Sampler::UniPc => sampler::unipc(denoiser, &x_t, &course()?, UNIPC, report),
            Sampler::Plms => sampler::plms(denoiser, &x_t, &course()?, clip, report),
            Sampler::Flow => sampler::probability_flow(denoiser, &x_t, &course()?, FLOW, report),
            Sampler::PcVp | Sampler::PcVe => {
                let options = corrector(which, clip);
                sampler::predictor_corrector(denoiser, &x_t, &course()?, options, noise, report)
            }
        }
    }
}

fn edm(which: Sampler, clip: Clip) -> EdmOptions {
    let (order, churn) = match which {
        Sampler::Euler => (Order::First, Churn::NONE),
        Sampler::HeunChurn => (Order::Second, CHURN),
        _ => (Order::Second, Churn::NONE),
    };
    EdmOptions { clip, order, churn }
}

fn corrector(which: Sampler, clip: Clip) -> CorrectorOptions {
    CorrectorOptions {
        clip,
        sde: match which {
            Sampler::PcVe => Sde::Ve,
            _ => Sde::Vp,
        },
        n_corrections: 1,
        snr: LANGEVIN_SNR,
    }
}

/// The noise that the steps lead down through.
fn course(training: &NoiseSchedule, options: &SampleOptions<'_>) -> Result<Course> {
    match (options.spacing, options.respacing) {
        (Spacing::Karras, None) => Course::karras(options.n_steps, RHO, training),
        _ => Course::through(&levels_of(training, options)?, training),
    }
}

/// The noise levels that are asked for by name or number.
fn levels_of(training: &NoiseSchedule, options: &SampleOptions<'_>) -> Result<Levels> {
    match options.respacing {
        Some(spec) => Levels::from_spec(training, spec),
        None => levels(training, options.n_steps, options.spacing),
    }
}

/// The noise levels of so many steps.
///
/// # Errors
/// If there are more steps than noise levels.
pub(crate) fn levels(schedule: &NoiseSchedule, n_steps: usize, spacing: Spacing) -> Result<Levels> {
    match spacing {
        // Respacing would take the cleanest level; one step from noise starts at the noisiest.
        Spacing::Even | Spacing::Karras if n_steps == 1 => {
            Levels::from_timesteps(schedule, vec![schedule.n_timesteps() as u32 - 1])
        }
        Spacing::Even | Spacing::Karras => Levels::from_spec(schedule, &n_steps.to_string()),
        Spacing::Leading => Levels::from_spec(schedule, &format!("leading{n_steps}")),
        Spacing::Trailing => Levels::from_spec(schedule, &format!("trailing{n_steps}")),
    }
}
