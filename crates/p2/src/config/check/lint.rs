//! What is allowed but doubtful: why, and what to write instead.

use p2_diffusion::{Density, Objective, TimestepDensity, Weighting};

use crate::config::RunConfig;
use crate::config::section::{Loss, Sample, Schedule};
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
        few_levels(loss, objective),
        long_average(config),
        unused_eta(&config.sample),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn noisy_gamma(weighting: Weighting) -> Option<String> {
    let (Weighting::P2 { gamma, .. } | Weighting::P2Raw { gamma, .. }) = weighting else {
        return None;
    };
    (gamma > GAMMA_NOISY).then(|| {
        format!("loss.weighting.gamma = {gamma} is above 2: samples tend to keep visible noise")
    })
}

fn raw(weighting: Weighting) -> Option<String> {
    weighting.is_raw().then(|| {
        "loss.weighting is raw: it repeats what another program computes, mistakes included".into()
    })
}

/// A corner that the schedule never comes to.
fn constant_clamp(weighting: Weighting, objective: &Objective) -> Option<String> {
    // The SNR of the corner, and what the weight is below and above it.
    let (corner, below, above) = match weighting {
        Weighting::MinSnr { gamma } | Weighting::DiffusersVMinSnr { gamma } => {
            (gamma, "simple", "x0-uniform")
        }
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
    let draws_evenly = matches!(
        loss.density,
        Density::Uniform | Density::LossSecondMoment { .. }
    );
    if draws_evenly {
        return None;
    }
    let kind = spec::kind(loss.weighting);
    match loss.weighting {
        Weighting::FlowLogitNormal { .. }
        | Weighting::FlowMode { .. }
        | Weighting::FlowCosmap {} => Some(format!(
            "loss.weighting = {kind} is a density of noise levels written as a weight, and loss.density draws \
             by one as well: the two multiply; set loss.density = \"uniform\""
        )),
        Weighting::P2 { .. } | Weighting::P2Raw { .. } => Some(format!(
            "loss.weighting = {kind} was published for levels drawn uniformly, and loss.density prefers some as \
             well: the two multiply, as `p2 weights show` shows with --density; set loss.density = \"uniform\" \
             for the paper's objective"
        )),
        _ if matches!(schedule, Schedule::LogNormal { .. })
            && matches!(loss.density, Density::LogNormal { .. }) =>
        {
            Some(
                "diffusion.schedule = log-normal has its levels where the density is, and loss.density draws by \
                 one as well: the two multiply; set loss.density = \"uniform\""
                    .into(),
            )
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

/// A weight that leaves most levels out, as one does that grows towards pure noise or none.
fn few_levels(loss: &Loss, objective: &Objective) -> Option<String> {
    let schedule = objective.schedule();
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
        format!(
            "loss.weighting = {} puts {:.0} % of its weight on {n_most} of {n_timesteps} levels, around t = {t} \
             (log-SNR {:.1}): the others hardly count; try another prediction, or see `p2 weights show`",
            spec::kind(loss.weighting),
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
