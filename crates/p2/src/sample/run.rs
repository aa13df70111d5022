//! One run of a sampler: which one, with which numbers, through which noise levels.

use candle_core::Tensor;
use p2_diffusion::sampler::{
    self, AncestralOptions, Churn, Clip, CorrectorOptions, Course, DdimOptions, DpmOptions,
    EdmOptions, EulerAncestralOptions, FlowOptions, Order, Sde, SinglestepOptions, StepReport,
    UniPcOptions,
};
use p2_diffusion::{Denoiser, Levels, NoiseSchedule, Result};

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
/// Allowed error of the probability flow, by Song et al. 2021, arXiv 2011.13456.
const TOLERANCE: f64 = 1e-5;
/// Signal-to-noise ratio of Langevin steps there.
const LANGEVIN_SNR: f64 = 0.16;

/// Samplers of first order clip guesses to the range of pixels. Others draw conclusions from how guesses change, and a
/// clipped one changes by jumps.
const CLIP: Clip = Clip::Pixels;

/// A sampler about to run.
pub(super) struct Run<'a, D: ?Sized> {
    pub(super) model: &'a Model,
    pub(super) denoiser: &'a D,
    pub(super) options: &'a SampleOptions<'a>,
    /// The noise of a step.
    pub(super) noise: &'a mut dyn FnMut(usize) -> Result<Tensor>,
    pub(super) report: &'a mut dyn FnMut(StepReport<'_>) -> Result<()>,
}

impl<D: Denoiser + ?Sized> Run<'_, D> {
    /// Draws images from noise, `[N, H, W, 3]` to the same.
    pub(super) fn from(self, x_t: Tensor) -> Result<Tensor> {
        let training = self.model.schedule();
        let eta = self.options.eta;
        match self.options.sampler {
            Sampler::Ancestral => {
                let options = AncestralOptions {
                    clip: CLIP,
                    variance: self.model.variance(),
                };
                let levels = levels(training, self.options)?;
                let (denoiser, noise, report) = (self.denoiser, self.noise, self.report);
                sampler::ancestral(denoiser, x_t, &levels, options, noise, report)
            }
            Sampler::Ddim => {
                let options = DdimOptions { clip: CLIP, eta };
                let levels = levels(training, self.options)?;
                let (denoiser, noise, report) = (self.denoiser, self.noise, self.report);
                sampler::ddim(denoiser, x_t, &levels, options, noise, report)
            }
            Sampler::Euler => self.edm(&x_t, Order::First, Churn::NONE),
            Sampler::Heun => self.edm(&x_t, Order::Second, Churn::NONE),
            Sampler::HeunChurn => self.edm(&x_t, Order::Second, CHURN),
            Sampler::Dpm2m => self.dpm(&x_t, 2),
            Sampler::Dpm3m => self.dpm(&x_t, 3),
            Sampler::PcVp => self.corrected(&x_t, Sde::Vp),
            Sampler::PcVe => self.corrected(&x_t, Sde::Ve),
            Sampler::EulerAncestral => self.euler_ancestral(&x_t),
            Sampler::Dpm2s => self.dpm_singlestep(&x_t),
            Sampler::UniPc => self.unipc(&x_t),
            Sampler::Plms => {
                sampler::plms(self.denoiser, &x_t, &self.course()?, Clip::Off, self.report)
            }
            Sampler::Flow => self.flow(&x_t),
        }
    }

    fn edm(self, x_t: &Tensor, order: Order, churn: Churn) -> Result<Tensor> {
        let course = self.course()?;
        let clip = match order {
            Order::First => CLIP,
            Order::Second => Clip::Off,
        };
        let options = EdmOptions { clip, order, churn };
        sampler::edm(
            self.denoiser,
            x_t,
            &course,
            options,
            self.noise,
            self.report,
        )
    }

    fn dpm(self, x_t: &Tensor, order: usize) -> Result<Tensor> {
        let course = self.course()?;
        let options = DpmOptions {
            clip: Clip::Off,
            order,
            eta: self.options.eta,
        };
        sampler::dpm_multistep(
            self.denoiser,
            x_t,
            &course,
            options,
            self.noise,
            self.report,
        )
    }

    fn corrected(self, x_t: &Tensor, sde: Sde) -> Result<Tensor> {
        let course = self.course()?;
        let options = CorrectorOptions {
            clip: CLIP,
            sde,
            n_corrections: 1,
            snr: LANGEVIN_SNR,
        };
        sampler::predictor_corrector(
            self.denoiser,
            x_t,
            &course,
            options,
            self.noise,
            self.report,
        )
    }

    fn euler_ancestral(self, x_t: &Tensor) -> Result<Tensor> {
        let course = self.course()?;
        let options = EulerAncestralOptions {
            clip: CLIP,
            eta: self.options.eta,
        };
        sampler::euler_ancestral(
            self.denoiser,
            x_t,
            &course,
            options,
            self.noise,
            self.report,
        )
    }

    fn dpm_singlestep(self, x_t: &Tensor) -> Result<Tensor> {
        let course = self.course()?;
        let options = SinglestepOptions {
            clip: Clip::Off,
            eta: self.options.eta,
        };
        sampler::dpm_singlestep(
            self.denoiser,
            x_t,
            &course,
            options,
            self.noise,
            self.report,
        )
    }

    fn unipc(self, x_t: &Tensor) -> Result<Tensor> {
        let course = self.course()?;
        let options = UniPcOptions {
            clip: Clip::Off,
            order: 3,
        };
        sampler::unipc(self.denoiser, x_t, &course, options, self.report)
    }

    fn flow(self, x_t: &Tensor) -> Result<Tensor> {
        let course = self.course()?;
        let options = FlowOptions {
            clip: Clip::Off,
            relative: TOLERANCE,
            absolute: TOLERANCE,
        };
        sampler::probability_flow(self.denoiser, x_t, &course, options, self.report)
    }

    /// The noise that the steps lead down through.
    fn course(&self) -> Result<Course> {
        let training = self.model.schedule();
        match self.options.spacing {
            Spacing::Karras => Course::karras(self.options.n_steps, RHO, training),
            _ => Course::through(&levels(training, self.options)?, training),
        }
    }
}

/// The noise levels of so many steps.
fn levels(schedule: &NoiseSchedule, options: &SampleOptions<'_>) -> Result<Levels> {
    let n_steps = options.n_steps;
    match options.spacing {
        // Respacing would take the cleanest level; one step from noise starts at the noisiest.
        Spacing::Even | Spacing::Karras if n_steps == 1 => {
            Levels::from_timesteps(schedule, vec![schedule.n_timesteps() as u32 - 1])
        }
        Spacing::Even | Spacing::Karras => Levels::from_spec(schedule, &n_steps.to_string()),
        Spacing::Leading => Levels::from_spec(schedule, &format!("leading{n_steps}")),
        Spacing::Trailing => Levels::from_spec(schedule, &format!("trailing{n_steps}")),
    }
}
