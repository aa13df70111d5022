//! A NaN, a full disk, a damaged checkpoint: what is good stays, and what went wrong is said.

use std::fs;

use p2::fault;

use super::project::{Project, names_in, stderr};

/// All checkpoints stay, so that each can be compared.
const KEEP: [&str; 4] = ["--threads", "1", "--set", "train.keep_last=100"];

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A number that is none stops the run in step 4; the last checkpoint is that of step 2.
#[track_caller]
fn check_nan(planned: &str, expected: &[&str]) {
    let project = Project::new();
    project.finish("whole", &KEEP);
    let error = stderr(&project.train_until(planned, "run", &KEEP));
    assert_says(&error, expected);
    assert_says(
        &error,
        &[
            "in step 4",
            ".png",
            "the weights were not touched",
            "hint: ",
        ],
    );
    assert_eq!(names_in(&project.checkpoints("run")), ["images-0000000012"]);
    let last = project.last_checkpoint("run");
    last.assert_same(&project.checkpoint("whole", "images-0000000012"), planned);
    project.finish("run", &KEEP);
    project
        .last_checkpoint("run")
        .assert_same(&project.last_checkpoint("whole"), planned);
}

#[test]
fn a_loss_that_is_not_finite_stops_before_it_does_harm() {
    // The second micro-batch of step 4: two images, of which the first is spoilt.
    check_nan(
        "train.loss:8=nan",
        &["the loss is not finite", "NaN at t = ", "log-SNR"],
    );
}

#[test]
fn a_gradient_that_is_not_finite_stops_before_it_does_harm() {
    let project = Project::new();
    project.finish("counted", &["--max-steps", "1"]);
    let n_params = project.last_tensors("counted").len() / 4; // weights, average, two moments
    let planned = format!("train.gradient:{}=nan", 3 * n_params + 1);
    check_nan(&planned, &["the gradient of `"]);
}

/// Opening reads the ten images once, the run each of them once more.
const READS_OF_FIRST_STEPS: usize = 10 + 6;

#[test]
fn an_image_out_of_reach_for_a_moment_changes_nothing() {
    let project = Project::new();
    project.finish("whole", &KEEP);
    for count in [3, READS_OF_FIRST_STEPS] {
        let (planned, out) = (format!("data.read:{count}=eio"), format!("run-{count}"));
        let mut command = project.train(&out, &KEEP);
        let output = command.env(fault::VARIABLE, &planned).output().unwrap();
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("skipped"), "{said}");
        project
            .last_checkpoint(&out)
            .assert_same(&project.last_checkpoint("whole"), &planned);
    }
}

#[test]
fn an_image_out_of_reach_stops_the_run_and_no_other_stands_in() {
    let project = Project::new();
    project.finish("whole", &KEEP);
    project.finish("run", &[&KEEP[..], &["--max-images", "12"]].concat());
    for count in [1, READS_OF_FIRST_STEPS] {
        let planned = format!("data.read:{count}+=eio");
        let error = stderr(&project.train_until(&planned, "run", &KEEP));
        assert_says(
            &error,
            &[
                "cannot read the image ",
                ".png",
                "because another image in its place would make it another run",
                "cause: planned input/output error",
                "checkpoints are intact",
            ],
        );
        assert!(!error.contains("skipped"), "{error}");
    }
    assert_eq!(names_in(&project.checkpoints("run")), ["images-0000000012"]);
    project.finish("run", &KEEP);
    project
        .last_checkpoint("run")
        .assert_same(&project.last_checkpoint("whole"), "out of reach");
}

#[test]
fn a_run_that_diverges_is_stopped() {
    let project = Project::new();
    let set = ["--set", "optim.lr=1e30", "--set", "optim.warmup_images=0"];
    let output = project.train("run", &set).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_says(
        &stderr(&output),
        &["is not finite in step 2", "smaller optim.lr"],
    );
}

#[test]
fn weights_that_are_no_longer_finite_are_not_saved() {
    let project = Project::new();
    // A checkpoint is due after every step, the first too: it must not become the last good one.
    let set = [
        "--set",
        "optim.lr=1e38",
        "--set",
        "optim.warmup_images=0",
        "--set",
        "train.checkpoint_every=6",
        "--set",
        "optim.weight_decay=1e30",
    ];
    let output = project.train("run", &set).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_says(
        &stderr(&output),
        &["is no longer finite", "smaller optim.lr"],
    );
    assert!(names_in(&project.checkpoints("run")).is_empty());
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let project = Project::new();
    project.finish("whole", &KEEP);
    // Each of the four files of the second checkpoint.
    for count in 5..=8 {
        let (planned, out) = (
            format!("checkpoint.write:{count}=enospc"),
            format!("run-{count}"),
        );
        let error = stderr(&project.train_until(&planned, &out, &KEEP));
        let parts = [
            "cannot save a checkpoint",
            "earlier ones are intact",
            "the disk is full",
        ];
        assert_says(&error, &parts);
        assert_eq!(names_in(&project.checkpoints(&out)), ["images-0000000012"]);
        project.finish(&out, &KEEP);
        project
            .last_checkpoint(&out)
            .assert_same(&project.last_checkpoint("whole"), &planned);
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_made_anew() {
    let project = Project::new();
    project.finish("whole", &["--threads", "1"]);
    let half = ["--threads", "1", "--max-images", "60"];
    project.finish("run", &half);
    let newest = project.checkpoints("run").join("images-0000000060");
    let model = newest.join("model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&model, bytes).unwrap();
    let output = project.train("run", &["--threads", "1"]).output().unwrap();
    assert!(output.status.success());
    let damaged = "warning: run/checkpoints/images-0000000060 is damaged and left alone: \
                   the checksum of model.safetensors does not hold\n";
    assert_says(
        &stderr(&output),
        &[damaged, "continuing run at 48 of 120 images"],
    );
    project
        .last_checkpoint("run")
        .assert_same(&project.last_checkpoint("whole"), "damaged");
}
