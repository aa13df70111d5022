//! What is allowed but doubtful: why, and what to write instead.

use p2_diffusion::{Density, Objective, TimestepDensity, Weighting};

use super::loss::word;
use crate::config::section::{Diffusion, Loss, Sample, Sampler, Schedule, Time, Variance};
use crate::config::{ClassifierConfig, RunConfig};
use crate::weights::spec;

/// Above this, samples are known to be noisy (Choi et al. 2022, section 5).
const GAMMA_NOISY: f64 = 2.0;
/// This share of the weight ...
const MOST: f64 = 0.9;
/// ... on fewer levels than one in so many is a mistake.
const FEW: usize = 200;

/// The doubtful values of a configuration, one sentence each.
pub(super) fn lint(config: &RunConfig, objective: &Objective) -> Vec<String> {
    let loss = &config.loss;
    [
        noisy_gamma(loss.weighting),
        raw(loss.weighting),
        constant_clamp(loss.weighting, objective),
        counted_twice(loss, &config.diffusion.schedule),
        nothing_to_choose_by(loss),
        history_never_full(config),
        one_bucket(loss.weighting, objective),
        steps_of_their_own(config),
        few_levels(loss, objective),
        long_average(config),
        unused_eta(&config.sample),
        short_variance(
            &config.diffusion,
            config.sample.sampler,
            config.sample.n_steps,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The doubtful values of a classifier's configuration.
pub(super) fn lint_classifier(config: &ClassifierConfig) -> Vec<String> {
    let is_noised = config.diffusion.noised;
    let sentence = "diffusion.noised is false: the classifier sees clean images alone, and cannot guide a sampler";
    (!is_noised)
        .then(|| sentence.to_owned())
        .into_iter()
        .collect()
}

fn noisy_gamma(weighting: Weighting) -> Option<String> {
    let (Weighting::P2 { gamma, .. } | Weighting::P2Raw { gamma, .. }) = weighting else {
        return None;
    };
    (gamma > GAMMA_NOISY).then(|| {
        format!(
            "loss.weighting.gamma = {gamma} is above 2: samples tend to keep visible noise; the paper's are 0.5 and 1"
        )
    })
}

fn raw(weighting: Weighting) -> Option<String> {
    let right = match weighting {
        Weighting::P2Raw { .. } | Weighting::OnetrainerP2 { .. } => "p2",
        Weighting::DiffusersVMinSnr { .. } => "min-snr",
        Weighting::KohyaDebiasedV {} => "debiased",
        _ => return None,
    };
    Some(format!(
        "loss.weighting is raw: it repeats what another program computes, mistakes included; what was published is {right}"
    ))
}

/// A corner that the schedule never comes to.
fn constant_clamp(weighting: Weighting, objective: &Objective) -> Option<String> {
    // The SNR of the corner, and what the weight is below and above it.
    let (corner, below, above) = match weighting {
        Weighting::MinSnr { gamma } => (gamma, "simple", "x0-uniform"),
        Weighting::MaxSnr { gamma } => (gamma, "x0-uniform", "simple"),
        Weighting::TruncatedSnr {} => (1.0, "x0-uniform", "simple"),
        _ => return None,
    };
    let log_snr = objective.schedule().log_snr();
    let (highest, lowest) = (log_snr.first()?.exp(), log_snr.last()?.exp());
    let (side, same_as) = if highest <= corner {
        ("above", below)
    } else if lowest >= corner {
        ("below", above)
    } else {
        return None;
    };
    Some(format!(
        "loss.weighting = {} never bends: its corner at an SNR of {corner} lies {side} all of the schedule, from \
         {highest:.3e} to {lowest:.3e}; move the one or the other, or write {same_as}, which it amounts to",
        spec::kind(weighting)
    ))
}

/// A preference for some levels that stands in two places.
fn counted_twice(loss: &Loss, schedule: &Schedule) -> Option<String> {
    let kind = spec::kind(loss.weighting);
    let is_density = matches!(
        loss.weighting,
        Weighting::FlowLogitNormal { .. } | Weighting::FlowMode { .. } | Weighting::FlowCosmap {}
    );
    let draws_evenly = matches!(
        loss.density,
        Density::Uniform | Density::LossSecondMoment { .. }
    );
    let has_levels_there = matches!(schedule, Schedule::LogNormal { .. });
    if has_levels_there && (is_density || matches!(loss.density, Density::LogNormal { .. })) {
        let (second, instead) = if is_density {
            (
                format!("loss.weighting = {kind} weighs"),
                "loss.weighting = { kind = \"edm\", sigma_data = 1.0 }",
            )
        } else {
            (
                "loss.density draws".to_owned(),
                "loss.density = \"uniform\"",
            )
        };
        return Some(format!(
            "diffusion.schedule = log-normal has its levels where its density is, and {second} by one as well: the \
             two multiply; set {instead}"
        ));
    }
    if draws_evenly {
        return None;
    }
    match loss.weighting {
        _ if is_density => Some(format!(
            "loss.weighting = {kind} is a density of noise levels written as a weight, and loss.density draws \
             by one as well: the two multiply; set loss.density = \"uniform\""
        )),
        Weighting::P2 { gamma, .. } | Weighting::P2Raw { gamma, .. } if gamma > 0.0 => {
            Some(format!(
                "loss.weighting = {kind} was published for levels drawn uniformly, and loss.density prefers some \
                 as well: the two multiply, as `p2 weights show` shows with --density; set loss.density = \
                 \"uniform\" for the paper's objective"
            ))
        }
        _ => None,
    }
}

fn nothing_to_choose_by(loss: &Loss) -> Option<String> {
    let by_loss = matches!(loss.density, Density::LossSecondMoment { .. });
    (by_loss && loss.weighting.is_stateful()).then(|| {
        format!(
            "loss.weighting = {} makes the losses of all levels alike, and loss.density draws by their \
             differences: one undoes the other; set loss.density = \"uniform\"",
            spec::kind(loss.weighting)
        )
    })
}

/// Levels are drawn by their losses only once each has a full history.
fn history_never_full(config: &RunConfig) -> Option<String> {
    let Density::LossSecondMoment { n_history, .. } = config.loss.density else {
        return None;
    };
    let (least, total) = (
        (n_history * config.diffusion.n_timesteps) as u64,
        config.train.total_images,
    );
    (total.0 < least).then(|| {
        format!(
            "loss.density = loss-second-moment draws uniformly until each level has {n_history} losses, after \
             {least} images at the earliest, and the run has {total}: set loss.density = \"uniform\", or n_history = 1"
        )
    })
}

/// Buckets beside the schedule.
fn one_bucket(weighting: Weighting, objective: &Objective) -> Option<String> {
    let Weighting::AdaptiveBuckets {
        min_log_snr,
        max_log_snr,
        ..
    } = weighting
    else {
        return None;
    };
    let log_snr = objective.schedule().log_snr();
    let (highest, lowest) = (*log_snr.first()?, *log_snr.last()?);
    (min_log_snr >= highest || max_log_snr <= lowest).then(|| {
        format!(
            "loss.weighting = adaptive-buckets has all levels in one bucket: it divides log-SNRs from {min_log_snr} \
             to {max_log_snr}, and those of the schedule lie between {lowest:.1} and {highest:.1}"
        )
    })
}

/// Between timesteps the terms of the discrete bound are those of smaller steps.
fn steps_of_their_own(config: &RunConfig) -> Option<String> {
    let is_finer = config.diffusion.time == Time::Continuous;
    (is_finer && config.loss.weighting == Weighting::Vlb {}).then(|| {
        "loss.weighting = vlb has the terms of steps between timesteps with diffusion.time = \"continuous\", a \
         hundredth of the others; write vlb-continuous"
            .into()
    })
}

/// A weight that leaves most levels out, as one does that grows towards pure noise or none.
fn few_levels(loss: &Loss, objective: &Objective) -> Option<String> {
    let schedule = objective.schedule();
    let follows_losses = matches!(loss.density, Density::LossSecondMoment { .. });
    if loss.objective.is_bound() && follows_losses {
        // As published for the bound: errors are smallest where its weights are largest.
        return None;
    }
    let density = TimestepDensity::new(loss.density, schedule).ok()?;
    let drawn = density.probability().iter();
    let mut shares: Vec<(f64, usize)> = drawn
        .zip(objective.weight_target())
        .map(|(probability, weight)| probability * weight)
        .zip(0..)
        .collect();
    let total: f64 = shares.iter().map(|(share, _)| share).sum();
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut sum = 0.0;
    let most = shares.iter().take_while(|(share, _)| {
        let is_needed = sum < MOST * total;
        sum += share;
        is_needed
    });
    let n_most = most.count();
    let n_timesteps = schedule.n_timesteps();
    (n_most * FEW <= n_timesteps).then(|| {
        let (_, t) = shares[0];
        let what = match loss.objective.is_bound() {
            true => format!("loss.objective = {}", word(loss.objective)),
            false => format!("loss.weighting = {}", spec::kind(loss.weighting)),
        };
        let (with, instead) = match loss.density {
            Density::Uniform => ("", "try another prediction"),
            _ => (" with its density", "try a wider density"),
        };
        format!(
            "{what}{with} puts {:.0} % of its weight on {n_most} of {n_timesteps} levels, around t = {t} \
             (log-SNR {:.1}): the others hardly count; {instead}, or see `p2 weights show`",
            100.0 * MOST,
            schedule.log_snr()[t],
        )
    })
}

/// An average over more images than there are.
fn long_average(config: &RunConfig) -> Option<String> {
    let (ema, total) = (&config.ema, config.train.total_images);
    let limit = match ema.rampup_ratio {
        0.0 => f64::INFINITY,
        ratio => ratio * total.0 as f64,
    };
    ((ema.halflife_images.0 as f64).min(limit) > total.0 as f64).then(|| {
        format!(
            "ema.halflife_images = {} is longer than the run of {total} images: the averaged weights, which are \
             sampled from, would be mostly those of the start; shorten it, or limit it with ema.rampup_ratio = 0.1",
            ema.halflife_images
        )
    })
}

fn unused_eta(sample: &Sample) -> Option<String> {
    (!sample.sampler.has_eta() && sample.eta > 0.0).then(|| {
        format!(
            "sample.eta = {} changes nothing: {} has a noise of its own, or none; set it to 0, or take ddim",
            sample.eta,
            sample.sampler.name()
        )
    })
}

/// A variance of steps shorter than those of the sampler.
pub(crate) fn short_variance(
    diffusion: &Diffusion,
    sampler: Sampler,
    n_steps: usize,
) -> Option<String> {
    let n_timesteps = diffusion.n_timesteps;
    let is_short = diffusion.variance == Variance::Learned && n_steps < n_timesteps;
    (is_short && sampler == Sampler::Ancestral).then(|| {
        format!(
            "diffusion.variance = learned is that of a step to the next timestep, and ancestral sampling in {n_steps} \
             steps makes longer ones: too little noise is added on the way; take {n_timesteps} steps or ddim, or \
             train with learned-range"
        )
    })
}

#[cfg(test)]
mod tests;
