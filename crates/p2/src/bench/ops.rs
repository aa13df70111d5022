//! Where the time of one step goes, op by op.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::train::Trainer;

/// The time of one op in one pass of a step.
#[derive(Debug, Serialize)]
pub struct OpTime {
    /// The op; `rest` is what no op accounts for.
    pub op: &'static str,
    /// `forward`, `backward` or `update`; `None` for the rest.
    pub pass: Option<&'static str>,
    /// How long, in all.
    pub seconds: f64,
}

/// Runs one step with its ops timed. Most expensive first, the rest last.
pub(super) fn of_one(
    trainer: &mut Trainer,
    step: impl FnOnce(&mut Trainer) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<OpTime>> {
    trainer.time_ops(since_start);
    let started = since_start();
    step(trainer)?;
    let total = (since_start() - started).as_secs_f64();
    let mut ops = vec![];
    for op in trainer.profile().iter() {
        let first = if op.name == "optimizer" {
            "update"
        } else {
            "forward"
        };
        for (pass, time) in [(first, op.forward), ("backward", op.backward)] {
            if !time.is_zero() {
                ops.push(OpTime {
                    op: op.name,
                    pass: Some(pass),
                    seconds: time.as_secs_f64(),
                });
            }
        }
    }
    ops.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let known: f64 = ops.iter().map(|op| op.seconds).sum();
    ops.push(OpTime {
        op: "rest",
        pass: None,
        seconds: (total - known).max(0.0),
    });
    Ok(ops)
}

/// Time since the first call.
fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}
