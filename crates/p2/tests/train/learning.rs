//! Losses that learn: their state is part of a checkpoint.

use std::collections::BTreeMap;

use super::project::{Project, stderr};

/// 21 levels, each of which is drawn once in 21 images: a history of one loss is soon full.
const IMPORTANCE: &[&str] = &[
    "loss.density={loss-second-moment={n_history=1,uniform=0.01}}",
    "loss.strata=21",
    "diffusion.n_timesteps=21",
];
const BUCKETS: &str = "loss.weighting={kind=\"adaptive-buckets\",n_buckets=300,min_log_snr=-10.0,\
                       max_log_snr=10.0,beta=0.9}";
const UNCERTAINTY: &str = "loss.weighting={kind=\"learned-uncertainty\",sigma_data=0.5,\
                           n_features=16,lr=0.01}";

fn arguments<'a>(assignments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    let set = assignments.iter().flat_map(|each| ["--set", each]);
    set.chain(more.iter().copied()).collect()
}

/// Kills a run within steps and while it saves; it ends with the bits of one that was left in peace.
#[track_caller]
fn check(assignments: &[&str]) -> BTreeMap<String, Vec<f32>> {
    let project = Project::new();
    project.finish("whole", &arguments(assignments, &["--threads", "1"]));
    for (planned, threads) in [
        ("train.step:5", "2"),
        ("checkpoint.after-temp-write:3", "1"),
        ("train.gradient:70", "2"),
    ] {
        let more = arguments(assignments, &["--threads", threads]);
        project.train_until(planned, "killed", &more);
    }
    project.finish("killed", &arguments(assignments, &["--threads", "1"]));
    let whole = project.last_checkpoint("whole");
    whole.assert_same(&project.last_checkpoint("killed"), "killed");
    assert_eq!(project.metrics("whole"), project.metrics("killed"));
    project.last_tensors("whole")
}

#[test]
fn a_killed_run_keeps_its_adaptive_buckets() {
    let tensors = check(&[BUCKETS]);
    let errors = &tensors["loss.safetensors/weighting.errors"];
    assert_eq!(errors.len(), 300);
    let n_learned = errors.iter().filter(|&&error| error != 1.0).count();
    assert!((30..=120).contains(&n_learned), "{n_learned}");
}

#[test]
fn a_killed_run_keeps_its_uncertainty() {
    let tensors = check(&[UNCERTAINTY]);
    // 20 steps.
    assert_eq!(tensors["loss.safetensors/weighting.step"], [20.0]);
    for name in ["weight", "exp_avg.weight", "exp_avg_sq.weight"] {
        let values = &tensors[&format!("loss.safetensors/weighting.{name}")];
        assert_eq!(values.len(), 16, "{name}");
        assert!(values.iter().all(|value| *value != 0.0), "{name}");
    }
}

#[test]
fn a_killed_run_keeps_its_history_of_losses() {
    let tensors = check(IMPORTANCE);
    let losses = &tensors["loss.safetensors/density.losses"];
    assert_eq!(losses.len(), 21);
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
}

#[test]
fn a_killed_run_keeps_both() {
    let tensors = check(&[IMPORTANCE, &[BUCKETS]].concat());
    assert!(tensors.contains_key("loss.safetensors/weighting.errors"));
    assert!(tensors.contains_key("loss.safetensors/density.losses"));
}

/// Until every level has been seen, levels are drawn as without a history; then no longer.
#[test]
fn a_history_takes_over_when_it_is_full() {
    let project = Project::new();
    let uniform = ["loss.density=\"uniform\"", IMPORTANCE[1], IMPORTANCE[2]];
    project.finish("uniform", &arguments(&uniform, &[]));
    project.finish("importance", &arguments(IMPORTANCE, &[]));
    let (uniform, importance) = (project.metrics("uniform"), project.metrics("importance"));
    // A record is of 12 images.
    assert_eq!(uniform[..2], importance[..2]);
    assert_ne!(uniform[2..], importance[2..]);
}

#[test]
fn a_weighting_that_takes_over_starts_afresh() {
    let project = Project::new();
    let said = |assignments: &[&str], more: &[&str]| {
        let output = project.train("run", &arguments(assignments, more)).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let afresh = "has learned nothing yet: it starts afresh";
    assert!(!said(&[], &["--max-images", "24"]).contains(afresh));
    let told = said(&[BUCKETS], &["--max-images", "48"]);
    assert!(told.contains("adaptive-buckets"), "{told}");
    assert!(told.contains(afresh), "{told}");
    assert!(!said(&[BUCKETS], &["--max-images", "60"]).contains(afresh));
    let told = said(&[UNCERTAINTY], &["--max-images", "72"]);
    assert!(told.contains(afresh), "{told}");
    // A weighting that learns nothing leaves nothing behind.
    said(&[], &[]);
    let tensors = project.last_tensors("run");
    assert!(
        tensors
            .keys()
            .all(|name| !name.starts_with("loss.safetensors"))
    );
}
