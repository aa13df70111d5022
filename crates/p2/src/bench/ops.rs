//! Where the time of one step goes, op by op.

use std::sync::OnceLock;
use std::time::Instant;

use p2_nn::profile;
use serde::Serialize;

/// The time of one op in one pass of a step.
#[derive(Debug, Serialize)]
pub struct OpTime {
    /// The op; `rest` is what no op accounts for.
    pub op: &'static str,
    /// `forward`, `backward` or `update`; `None` for the rest.
    pub pass: Option<&'static str>,
    /// How often it ran.
    pub n_calls: u64,
    /// How long, in all.
    pub seconds: f64,
}

/// Runs one step with the profile on. Most expensive first, the rest last.
pub(super) fn of_one(step: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Vec<OpTime>> {
    profile::start(seconds_of_process);
    let started = seconds_of_process();
    let done = step();
    let total = seconds_of_process() - started;
    let rows = profile::stop();
    done?;
    let mut ops: Vec<OpTime> = rows
        .into_iter()
        .map(|row| OpTime {
            op: row.op,
            pass: Some(row.pass.name()),
            n_calls: row.n_calls,
            seconds: row.secs,
        })
        .collect();
    ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let known: f64 = ops.iter().map(|op| op.seconds).sum();
    ops.push(OpTime {
        op: "rest",
        pass: None,
        n_calls: 1,
        seconds: (total - known).max(0.0),
    });
    Ok(ops)
}

/// Seconds since the first call.
fn seconds_of_process() -> f64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}
