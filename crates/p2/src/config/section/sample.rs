//! `[sample]`: samplers and their steps.

use serde::{Deserialize, Serialize};

/// `[sample]`: how sample grids are drawn during training, and the defaults of `p2 sample`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Which sampler.
    pub sampler: Sampler,
    /// Steps from noise to image, at most `diffusion.n_timesteps`.
    pub n_steps: usize,
    /// Which noise levels the steps lead through.
    pub spacing: Spacing,
    /// Share of fresh noise per step, for samplers that can have any: 0 is deterministic, 1 as ancestral sampling.
    pub eta: f64,
    /// Scale of classifier-free guidance; 1 is none, and needs no `model.label_dropout`.
    pub guidance: f64,
    /// Images in a grid.
    pub n_images: usize,
    /// Seed of the noise: the same in every grid.
    pub seed: u64,
}

/// Which sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// DDPM (Ho et al. 2020).
    Ancestral,
    /// DDIM (Song et al. 2021).
    Ddim,
    /// Euler (Karras et al. 2022).
    Euler,
    /// Heun (Karras et al. 2022).
    Heun,
    /// Heun with churn (Karras et al. 2022).
    HeunChurn,
    /// Euler with fresh noise.
    EulerAncestral,
    /// DPM-Solver++ with two guesses (Lu et al. 2022).
    #[serde(rename = "dpm-2m")]
    #[value(name = "dpm-2m")]
    Dpm2m,
    /// DPM-Solver++ with three guesses.
    #[serde(rename = "dpm-3m")]
    #[value(name = "dpm-3m")]
    Dpm3m,
    /// DPM-Solver++ with a guess inside each step.
    #[serde(rename = "dpm-2s")]
    #[value(name = "dpm-2s")]
    Dpm2s,
    /// UniPC of third order (Zhao et al. 2023).
    #[serde(rename = "unipc")]
    #[value(name = "unipc")]
    UniPc,
    /// PLMS (Liu et al. 2022).
    Plms,
    /// The probability flow, adaptively (Song et al. 2021).
    Flow,
    /// Predictor and corrector of the VP SDE (Song et al. 2021).
    PcVp,
    /// Predictor and corrector of the VE SDE.
    PcVe,
}

impl Sampler {
    /// As it is written.
    pub fn name(self) -> String {
        let value = clap::ValueEnum::to_possible_value(&self);
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it goes from timestep to timestep; all others go down through the noise per unit of data, which pure
    /// noise has no finite amount of.
    pub fn is_discrete(self) -> bool {
        matches!(self, Self::Ancestral | Self::Ddim)
    }

    /// Whether it asks the network for noise levels between timesteps.
    pub fn goes_between(self, spacing: Spacing) -> bool {
        spacing == Spacing::Karras || matches!(self, Self::HeunChurn | Self::Dpm2s | Self::Flow)
    }

    /// Whether a share of fresh noise can be chosen.
    pub fn has_eta(self) -> bool {
        matches!(
            self,
            Self::Ddim | Self::EulerAncestral | Self::Dpm2m | Self::Dpm3m | Self::Dpm2s
        )
    }

    /// The share of fresh noise of a sampler that is asked for in place of a model's own.
    pub fn usual_eta(self) -> f64 {
        if self == Self::EulerAncestral {
            1.0
        } else {
            0.0
        }
    }
}

/// Which noise levels the steps lead through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Timesteps from the first to the last, evenly (Nichol and Dhariwal 2021).
    Even,
    /// Every so many timesteps, from the first on.
    Leading,
    /// Every so many timesteps, from the last on (Lin et al. 2023).
    Trailing,
    /// Even in `sigma^(1 / 7)`, between timesteps too (Karras et al. 2022).
    Karras,
}
