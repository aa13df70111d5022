//! What a weighting minimizes, level by level and as a whole.

use p2_diffusion::{
    EffectiveObjective, ErrorUnit, Objective, Stage, TimestepDensity, Variance, Weighting,
};
use serde::Serialize;

use super::spec;
use crate::config::Run;
use crate::model::{prediction, schedule};
use crate::problem::Problem;

/// A weighting on the schedule and density of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// As it is written on a command line.
    pub spec: String,
    /// Its name without constants.
    pub kind: String,
    /// Whether it repeats another program's number.
    pub raw: bool,
    /// Whether it learns from the errors that it sees; all that follows is then what it starts with.
    pub learns: bool,
    /// Mean weight on the eps error: the factor on the size of the loss, and on the learning rate where the
    /// optimizer does not undo it.
    pub mean_weight: f64,
    /// The log-SNR that counts most.
    pub peak_log_snr: f64,
    /// Log-SNRs under which 10, 50 and 90 % of the objective lie.
    pub log_snr_at: Quantiles,
    /// How much each stage counts; together 1.
    pub stage_shares: StageShares,
    /// One row per timestep.
    pub table: Vec<Row>,
}

/// Log-SNRs under which a share of an objective lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// 10 %.
    pub p10: f64,
    /// Half.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
}

/// Shares of the stages of Choi et al. 2022.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StageShares {
    /// SNR of 1 and more.
    pub clean_up: f64,
    /// SNR from 1e-2 to 1.
    pub content: f64,
    /// SNR under 1e-2.
    pub coarse: f64,
}

/// A weighting at a noise level; one and the same weight, on errors in different units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// 0 is the least noisy.
    pub t: usize,
    /// Signal-to-noise ratio.
    pub snr: f64,
    /// Its natural logarithm.
    pub log_snr: f64,
    /// On the eps error.
    pub weight_eps: f64,
    /// On the eps error, in units of the mean.
    pub normalized: f64,
    /// On the x0 error.
    pub weight_x0: f64,
    /// On the v error.
    pub weight_v: f64,
    /// On the error of the mean of the step to the timestep before.
    pub weight_x_prev: f64,
    /// On a term of the variational bound as Choi et al. 2022 write it, without its 1/2 and with the variance beta:
    /// their lambda'.
    pub weight_vlb: f64,
    /// Share of the objective per unit of log-SNR.
    pub objective: f64,
}

/// Shows a weighting on the schedule, prediction and density of a configuration.
///
/// # Errors
/// If the prediction cannot be trained with the weighting.
pub fn report(weighting: Weighting, run: &Run) -> Result<Report, Problem> {
    let spec = spec::text(weighting);
    let refused = |error: p2_diffusion::Error| {
        // A constant out of its range is wrong for any prediction.
        if let p2_diffusion::Error::Constant { .. } = error {
            return Problem::new(format!("`{spec}` is no weighting: {error}"))
                .hint("`p2 weights list` shows each with constants that work");
        }
        let prediction = prediction(run.diffusion.prediction);
        Problem::new(format!(
            "prediction {prediction} cannot be trained with `{spec}`"
        ))
        .because(error.to_string())
        .hint("try another --prediction or --schedule")
    };
    let (objective, table) = rows(weighting, run).map_err(refused)?;
    let [clean_up, content, coarse] = Stage::ALL.map(|stage| objective.share(stage));
    let [p10, p50, p90] = [0.1, 0.5, 0.9].map(|share| objective.log_snr_at(share));
    Ok(Report {
        kind: spec::kind(weighting),
        raw: weighting.is_raw(),
        learns: weighting.is_stateful(),
        mean_weight: objective.mean_weight(),
        peak_log_snr: objective.peak_log_snr(),
        log_snr_at: Quantiles { p10, p50, p90 },
        stage_shares: StageShares {
            clean_up,
            content,
            coarse,
        },
        table,
        spec,
    })
}

fn rows(weighting: Weighting, run: &Run) -> p2_diffusion::Result<(EffectiveObjective, Vec<Row>)> {
    let schedule = schedule(&run.diffusion)?;
    let prediction = prediction(run.diffusion.prediction);
    // Refuses pairs that have no finite weight.
    Objective::new(&schedule, prediction, Variance::FixedSmall, weighting)?;
    let density = TimestepDensity::new(run.loss.density, &schedule)?;
    // The number of a raw kind is on what is predicted; this is what it means for the eps error.
    let unit = ErrorUnit::from(prediction);
    let log_weight_eps = |level| weighting.log_weight(unit, level) - unit.log_exchange_rate(level);
    let objective =
        EffectiveObjective::new(&schedule, &density, |level| log_weight_eps(level).exp())?;
    let multipliers = schedule.vlb_multiplier();
    let levels = schedule.noise_levels().zip(multipliers).enumerate();
    let rows = levels.map(|(t, (level, vlb_multiplier))| {
        let log_weight = log_weight_eps(level);
        let on = |unit: ErrorUnit| (log_weight + unit.log_exchange_rate(level)).exp();
        let weight_eps = log_weight.exp();
        Row {
            t,
            snr: level.snr(),
            log_snr: level.log_snr(),
            weight_eps,
            normalized: weight_eps / objective.mean_weight(),
            weight_x0: on(ErrorUnit::X0),
            weight_v: on(ErrorUnit::V),
            weight_x_prev: on(ErrorUnit::XPrev),
            weight_vlb: vlb_multiplier * weight_eps,
            objective: objective.density()[t],
        }
    });
    let rows = rows.collect();
    Ok((objective, rows))
}
