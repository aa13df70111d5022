//! Killed runs end with the bits of a run that was left in peace.

use std::thread::sleep;
use std::time::{Duration, Instant};

use p2::rng::{Draws, Stream};

use super::project::{Project, names_in, stderr};

/// A run that nothing disturbed, with one thread.
fn project_with_reference() -> Project {
    let project = Project::new();
    project.finish("whole", &["--threads", "1"]);
    project
}

/// The run `out` was interrupted and finished: nothing tells it from the undisturbed one.
#[track_caller]
fn assert_as_if_undisturbed(project: &Project, out: &str) {
    let (whole, resumed) = (
        project.last_checkpoint("whole"),
        project.last_checkpoint(out),
    );
    whole.assert_same(&resumed, out);
    assert_eq!(whole.name, "images-0000000120");
    let checkpoints = |out| names_in(&project.checkpoints(out));
    assert_eq!(checkpoints("whole"), checkpoints(out));
    assert_eq!(project.metrics("whole"), project.metrics(out));
    assert_eq!(project.metrics(out).len(), 10);
}

/// Kills the same command at one planned place after another, then lets it finish.
#[track_caller]
fn check(project: &Project, out: &str, planned: &[&str]) {
    for (planned, threads) in planned.iter().zip(["2", "1"].into_iter().cycle()) {
        project.train_until(planned, out, &["--threads", threads]);
    }
    project.finish(out, &["--threads", "1"]);
    assert_as_if_undisturbed(project, out);
}

#[test]
fn a_run_killed_while_it_saves_ends_with_the_same_bits() {
    // A checkpoint is 3 files of tensors and `state.json`; from the third one on, one is pruned.
    let planned = [
        "checkpoint.write:2",
        "checkpoint.after-temp-write:7",
        "checkpoint.before-fsync:2",
        "checkpoint.after-fsync:2",
        "checkpoint.before-rename:1",
        "checkpoint.after-rename:1",
        "checkpoint.before-prune:1",
        "checkpoint.within-prune:1",
        "checkpoint.after-prune:1",
    ];
    check(&project_with_reference(), "killed", &planned);
}

#[test]
fn a_run_killed_within_a_step_ends_with_the_same_bits() {
    // A step passes `train.step` before it begins, `train.loss` twice, once for each micro-batch, and
    // `train.gradient` once for each parameter.
    let project = project_with_reference();
    let planned = [
        "train.step:1",
        "train.loss:1",
        "train.loss:2",
        "train.loss:8",
        "train.gradient:1",
        "train.gradient:100",
        "train.loss:5",
    ];
    check(&project, "killed", &planned);
}

/// Kills the same command after random times of `at_most`, then lets it finish: how often it was
/// alive to be killed.
#[track_caller]
fn kill_at_random(project: &Project, out: &str, seed: u64, at_most: Duration) -> usize {
    let mut draws = Draws::at(seed, Stream::Shuffle, 0);
    let mut n_killed = 0;
    while n_killed < 5 {
        let more = ["--quiet", "--threads", "2"];
        let mut child = project.train(out, &more).spawn().unwrap();
        sleep(at_most.mul_f64(draws.uniform()));
        // Fails if the process has finished already.
        let _ = child.kill();
        if child.wait().unwrap().success() {
            break;
        }
        n_killed += 1;
    }
    project.finish(out, &["--threads", "1"]);
    assert_as_if_undisturbed(project, out);
    n_killed
}

#[test]
fn a_run_killed_at_any_time_ends_with_the_same_bits() {
    let project = Project::new();
    let started = Instant::now();
    project.finish("whole", &["--threads", "1"]);
    let whole = started.elapsed();
    let n_killed: usize = (0..3)
        .map(|seed| kill_at_random(&project, &format!("killed-{seed}"), seed, whole))
        .sum();
    assert!(n_killed > 0, "no process lived long enough");
}

#[test]
fn another_instruction_set_is_told_and_recorded() {
    let best = p2_nn::Cpu::best(p2_nn::Threads::new(1)).numerics();
    if best == "portable" {
        return; // a machine with one instruction set
    }
    let project = Project::new();
    let said = |isa: &str, max_images: &str| {
        let mut command = project.train("run", &["--threads", "2", "--max-images", max_images]);
        stderr(&command.env("P2_ISA", isa).output().unwrap())
    };
    assert!(!said("portable", "12").contains("computed with"));
    assert!(!said("portable", "24").contains("computed with"));
    let line = format!(
        "so far computed with portable, from here on with {best}: \
         the last bits will differ from those of a run with one of them\n"
    );
    let text = said(best, "36");
    assert!(text.contains(&line), "{text}");
    assert!(!said(best, "48").contains("computed with"));
    let manifest = std::fs::read(project.path().join("run/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let engine = &manifest["starts"][2]["engine"];
    assert_eq!(engine["instruction_set"], best);
    assert_eq!(engine["n_threads"], 2);
    assert_eq!(engine["device"], "cpu");
}

#[test]
fn a_run_goes_on_with_images_that_were_moved() {
    let project = project_with_reference();
    project.finish("run", &["--threads", "1", "--max-images", "60"]);
    let elsewhere = project.path().join("elsewhere");
    std::fs::rename(project.path().join("images"), &elsewhere).unwrap();
    project.finish("run", &["--threads", "1", "--data", "./elsewhere"]);
    assert_as_if_undisturbed(&project, "run");
    let manifest = std::fs::read(project.path().join("run/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let start = &manifest["starts"][1];
    let change = serde_json::json!({
        "key": "data.path", "old": "\"images\"", "new": "\"./elsewhere\"",
    });
    assert_eq!(start["changes"], serde_json::json!([change]));
    let full = std::path::Path::new(start["data_path"].as_str().unwrap());
    assert_eq!(
        full.canonicalize().unwrap(),
        elsewhere.canonicalize().unwrap()
    );
    let config = std::fs::read_to_string(project.path().join("run/config.toml")).unwrap();
    assert!(config.contains("path = \"./elsewhere\"\n"), "{config}");
}

#[test]
fn a_run_does_not_go_on_with_other_images() {
    let project = Project::new();
    project.finish("run", &["--max-steps", "1"]);
    let output = project
        .train("run", &["--data", "bundled:emoji-32"])
        .output();
    let said = stderr(&output.unwrap());
    assert!(said.contains("error: the images are not those"), "{said}");
}

#[test]
fn a_finished_run_stays_as_it_is() {
    let project = Project::new();
    let set = [
        "--set",
        "data.held_out=0.2",
        "--set",
        "train.held_out_every=50",
    ];
    let set = [&set[..], &["--max-images", "24"]].concat();
    project.finish("run", &set);
    let (before, records) = (project.last_checkpoint("run"), project.metrics("run"));
    assert!(
        records
            .last()
            .unwrap()
            .contains_key("held_out/mse_eps_content")
    );
    project.finish("run", &set);
    before.assert_same(&project.last_checkpoint("run"), "again");
    assert_eq!(project.metrics("run"), records);
}
