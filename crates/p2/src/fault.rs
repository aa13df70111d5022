//! Planned faults: the tests of crashes and full disks, against the very program that users run.
//!
//! `P2_FAULT=checkpoint.before-rename:2` kills the process (SIGKILL) at the second passage of that
//! [`point`]. `P2_FAULT=checkpoint.write:1=enospc` makes the first passage of that [`io()`] point
//! fail as on a full disk, `data.read:3=eio` as on a device that fails for a moment, and
//! `data.read:3+=eio` all passages from the third on. `P2_FAULT=train.loss:3=nan` spoils the third
//! [`number()`] of that name.
//! `p2` reads the variable once, at its start; without it, points do nothing.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::problem::Problem;

/// The variable that is read.
pub const VARIABLE: &str = "P2_FAULT";

static PLAN: OnceLock<Plan> = OnceLock::new();

#[derive(Debug)]
struct Plan {
    point: String,
    /// The passage, counted from 1, at which the fault happens.
    count: u64,
    /// Whether it happens at every later passage too.
    lasts: bool,
    n_passed: AtomicU64,
    effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Kill,
    DiskFull,
    DeviceFails,
    NotANumber,
}

/// Plans the fault that the environment asks for, if any.
///
/// # Errors
/// If `P2_FAULT` is not of the form `point:count` or `point:count=EFFECT`, EFFECT one of `enospc`,
/// `eio` and `nan`, perhaps with a `+` behind the count.
pub fn arm_from_env() -> Result<(), Problem> {
    let Some(text) = std::env::var_os(VARIABLE) else {
        return Ok(());
    };
    let text = text.to_string_lossy();
    let plan = parse(&text).ok_or_else(|| {
        Problem::new(format!(
            "{VARIABLE}={text} is not of the form point:count or point:count=EFFECT, EFFECT one of enospc, eio, nan"
        ))
        .hint(format!("unset {VARIABLE}: it is for tests"))
    })?;
    // A second call finds the same environment.
    let _ = PLAN.set(plan);
    Ok(())
}

fn parse(text: &str) -> Option<Plan> {
    let (place, effect) = match text.split_once('=') {
        None => (text, Effect::Kill),
        Some((place, "enospc")) => (place, Effect::DiskFull),
        Some((place, "eio")) => (place, Effect::DeviceFails),
        Some((place, "nan")) => (place, Effect::NotANumber),
        Some(_) => return None,
    };
    let (point, count) = place.rsplit_once(':')?;
    let (count, lasts) = match count.strip_suffix('+') {
        Some(count) => (count, true),
        None => (count, false),
    };
    Some(Plan {
        point: point.to_owned(),
        count: count.parse().ok().filter(|&count| count > 0)?,
        lasts,
        n_passed: AtomicU64::new(0),
        effect,
    })
}

/// Passes a point at which a test may kill the process.
pub fn point(name: &str) {
    if strikes(name, Effect::Kill) {
        kill();
    }
}

/// Passes a point at which a test may kill the process, let the disk be full, or let it fail.
///
/// # Errors
/// The planned one.
pub fn io(name: &str) -> io::Result<()> {
    point(name);
    if strikes(name, Effect::DiskFull) {
        return Err(io::Error::from(io::ErrorKind::StorageFull));
    }
    if strikes(name, Effect::DeviceFails) {
        return Err(io::Error::other("planned input/output error"));
    }
    Ok(())
}

/// Passes a point at which a test may kill the process or spoil a number.
pub fn number<T: From<f32>>(name: &str, value: T) -> T {
    point(name);
    if strikes(name, Effect::NotANumber) {
        f32::NAN.into()
    } else {
        value
    }
}

/// Whether the planned fault happens at this passage.
fn strikes(name: &str, effect: Effect) -> bool {
    let plan = PLAN
        .get()
        .filter(|plan| plan.effect == effect && plan.point == name);
    plan.is_some_and(|plan| {
        let passage = plan.n_passed.fetch_add(1, Ordering::Relaxed) + 1;
        passage == plan.count || plan.lasts && passage > plan.count
    })
}

#[cfg(unix)]
fn kill() {
    use rustix::process::{Signal, getpid, kill_process};
    if kill_process(getpid(), Signal::KILL).is_err() {
        std::process::abort();
    }
}

#[cfg(not(unix))]
fn kill() {
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read() {
        let kill = parse("checkpoint.before-rename:2").unwrap();
        assert_eq!(kill.point, "checkpoint.before-rename");
        assert_eq!((kill.count, kill.lasts), (2, false));
        assert_eq!(kill.effect, Effect::Kill);
        let fail = parse("data.read:3+=eio").unwrap();
        assert_eq!((fail.count, fail.lasts), (3, true));
        assert_eq!(fail.effect, Effect::DeviceFails);
        assert_eq!(
            parse("checkpoint.write:1=enospc").unwrap().effect,
            Effect::DiskFull
        );
        assert_eq!(
            parse("train.loss:3=nan").unwrap().effect,
            Effect::NotANumber
        );
        for bad in ["", "x", "x:", "x:0", "x:-1", "x:1=", "x:1=eof", "x:+"] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
