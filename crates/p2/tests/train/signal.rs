//! Ctrl-C and termination: the step is finished, a checkpoint saved, and the run can go on.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::project::Project;

const PATIENCE: Duration = Duration::from_secs(60);

/// So long that no signal comes too late.
const LONG: [&str; 6] = [
    "--set",
    "train.total_images=600",
    "--set",
    "train.checkpoint_every=300",
    "--threads",
    "1",
];

#[track_caller]
fn check(project: &Project, signal: Signal, exit_code: i32) {
    let out = format!("stopped-{exit_code}");
    let mut child = project
        .train(&out, &[&LONG[..], &["--quiet"]].concat())
        .spawn()
        .unwrap();
    let metrics = project.path().join(&out).join("metrics.jsonl");
    let started = Instant::now();
    while !fs::read(&metrics).is_ok_and(|records| !records.is_empty()) {
        assert!(started.elapsed() < PATIENCE, "the run has not begun");
        sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(exit_code));
    let stopped_at = project.last_checkpoint(&out).name;
    assert!(
        stopped_at.as_str() < "images-0000000600",
        "{stopped_at}: the signal came too late"
    );
    project.finish(&out, &[&LONG[..], &["--resume"]].concat());
    project
        .last_checkpoint("whole")
        .assert_same(&project.last_checkpoint(&out), &out);
}

#[test]
fn a_signal_leaves_a_run_that_goes_on_with_the_same_bits() {
    let project = Project::new();
    project.finish("whole", &LONG);
    check(&project, Signal::TERM, 143);
    check(&project, Signal::INT, 130);
}
