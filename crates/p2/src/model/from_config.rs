//! From the words of a configuration to the types of the engine.

use p2_diffusion::{Density, NoiseSchedule, Objective, Prediction, Variance};
use p2_nn::unet::{Heads, Order, Resample, TimeConditioning};
use p2_nn::{Precision, Recompute, UNetConfig};

use crate::config::{RunConfig, section};

/// Channels of an image: red, green, blue.
pub(super) const N_CHANNELS: usize = 3;

pub(crate) fn unet(config: &RunConfig) -> UNetConfig {
    let out_channels = variance(config.diffusion.variance).output_channels(N_CHANNELS);
    network_config(&config.model, config.data.image_size, out_channels)
}

/// The network of a `[model]` section.
pub(crate) fn network_config(
    model: &section::Model,
    image_size: usize,
    out_channels: usize,
) -> UNetConfig {
    UNetConfig {
        image_size,
        // An image to be enlarged lies beside the noised one.
        in_channels: N_CHANNELS * (1 + usize::from(model.low_res_size > 0)),
        out_channels,
        channels: model.channels,
        channel_mult: model.channel_mult.clone(),
        n_res_blocks: model.n_res_blocks,
        attention_resolutions: model.attention_resolutions.clone(),
        heads: match model.heads {
            section::Heads::Channels(n) => Heads::Channels(n),
            section::Heads::Count(n) => Heads::Count(n),
        },
        attention_order: match model.attention_order {
            section::AttentionOrder::Legacy => Order::HeadMajor,
            section::AttentionOrder::New => Order::KindMajor,
        },
        resample: match model.resample {
            section::Resample::ResBlock => Resample::ResBlock,
            section::Resample::Conv => Resample::Conv,
        },
        time_conditioning: match model.time_conditioning {
            section::TimeConditioning::ScaleShift => TimeConditioning::ScaleShift,
            section::TimeConditioning::Additive => TimeConditioning::Additive,
        },
        dropout: model.dropout,
        // One more where images are trained without their class: that is a class, too.
        n_classes: model.n_classes + usize::from(model.label_dropout > 0.0),
    }
}

pub(crate) fn precision(precision: section::Precision) -> Precision {
    match precision {
        section::Precision::F32 => Precision::F32,
        section::Precision::Exact => Precision::Exact,
        section::Precision::Bf16 => Precision::Bf16,
    }
}

pub(crate) fn recompute(recompute: section::Recompute) -> Recompute {
    match recompute {
        section::Recompute::Nothing => Recompute::Nothing,
        section::Recompute::Norms => Recompute::Norms,
        section::Recompute::Blocks => Recompute::Blocks,
    }
}

/// The noise schedule of a configuration.
///
/// # Errors
/// If its constants make no sense, which those of a checked configuration always do.
pub fn schedule(diffusion: &section::Diffusion) -> p2_diffusion::Result<NoiseSchedule> {
    named_schedule(&diffusion.schedule, diffusion.n_timesteps)
}

/// Noise levels of training for each timestep.
pub(crate) fn levels_per_timestep(diffusion: &section::Diffusion) -> usize {
    match diffusion.time {
        section::Time::Discrete => 1,
        section::Time::Continuous => 100,
    }
}

/// The levels that a network is trained at.
pub(crate) fn training_schedule(
    diffusion: &section::Diffusion,
) -> p2_diffusion::Result<NoiseSchedule> {
    schedule(diffusion)?.refined(levels_per_timestep(diffusion))
}

/// What times are multiplied by before a network is told them.
pub(super) fn time_scale(diffusion: &section::Diffusion) -> f64 {
    if diffusion.rescale_timesteps {
        1000.0 / diffusion.n_timesteps as f64
    } else {
        1.0
    }
}

/// How often the levels of [`training_schedule`] are drawn.
pub(crate) fn training_density(loss: &section::Loss, diffusion: &section::Diffusion) -> Density {
    match loss.density {
        Density::Speed { n_first, ratio } => Density::Speed {
            n_first: n_first * levels_per_timestep(diffusion),
            ratio,
        },
        density => density,
    }
}

fn named_schedule(schedule: &section::Schedule, n: usize) -> p2_diffusion::Result<NoiseSchedule> {
    match schedule {
        section::Schedule::Linear => NoiseSchedule::linear(n),
        section::Schedule::Cosine => NoiseSchedule::cosine(n),
        section::Schedule::Sigmoid {
            start,
            end,
            temperature,
        } => NoiseSchedule::sigmoid(n, [*start, *end], *temperature),
        section::Schedule::Karras {
            sigma_min,
            sigma_max,
            rho,
        } => NoiseSchedule::karras(n, [*sigma_min, *sigma_max], *rho),
        section::Schedule::LogNormal { mean, std } => NoiseSchedule::log_normal(n, *mean, *std),
        section::Schedule::Shifted { of, log_snr } => named_schedule(of, n)?.shifted(*log_snr),
        section::Schedule::ZeroTerminalSnr { of } => {
            named_schedule(of, n)?.with_zero_terminal_snr()
        }
    }
}

pub(crate) fn prediction(prediction: section::Prediction) -> Prediction {
    match prediction {
        section::Prediction::Eps => Prediction::Eps,
        section::Prediction::X0 => Prediction::X0,
        section::Prediction::V => Prediction::V,
        section::Prediction::XPrev => Prediction::XPrev,
    }
}

pub(super) fn variance(variance: section::Variance) -> Variance {
    match variance {
        section::Variance::FixedSmall => Variance::FixedSmall,
        section::Variance::FixedLarge => Variance::FixedLarge,
        section::Variance::LearnedRange => Variance::LearnedRange,
        section::Variance::Learned => Variance::Learned,
    }
}

/// What a model is trained for.
///
/// # Errors
/// If the weighting has no finite value at some noise level.
pub(crate) fn objective(
    loss: &section::Loss,
    diffusion: &section::Diffusion,
) -> p2_diffusion::Result<Objective> {
    Objective::of_type(
        loss.objective,
        &training_schedule(diffusion)?,
        prediction(diffusion.prediction),
        variance(diffusion.variance),
        loss.weighting,
    )
}
