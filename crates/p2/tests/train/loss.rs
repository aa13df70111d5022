//! What is minimized: the four types of loss, with every prediction and every variance.

use std::collections::{BTreeMap, BTreeSet};

use p2::checkpoint::StoredTensors;
use serde_json::Value;

use super::program::p2;
use super::project::{Project, stderr};

const PREDICTIONS: [&str; 4] = ["eps", "x0", "v", "x-prev"];
const VARIANCES: [&str; 4] = ["fixed-small", "fixed-large", "learned-range", "learned"];

/// 24 timesteps, spread evenly over every four steps, so that a record of eight steps is of all of them alike.
const FEW_LEVELS: &[&str] = &[
    "loss.weighting={kind=\"simple\"}",
    "loss.strata=24",
    "diffusion.n_timesteps=24",
    "diffusion.rescale_timesteps=true",
    "train.micro_batch_size=6",
    "train.log_every=48",
    "train.total_images=192",
    "train.checkpoint_every=192",
    "optim.lr=3e-3",
    "sample.n_steps=24",
];

fn set(assignments: &[&str]) -> Vec<String> {
    let set = assignments.iter().flat_map(|each| ["--set", each]);
    set.map(str::to_owned).collect()
}

/// Trains with these values; the loss falls, and no number is lost. Returns the last loss.
#[track_caller]
fn learns(project: &Project, out: &str, assignments: &[&str]) -> String {
    let set = set(&[FEW_LEVELS, assignments].concat());
    let arguments: Vec<&str> = set.iter().map(String::as_str).collect();
    project.finish(out, &arguments);
    let records = project.metrics(out);
    assert_eq!(records.len(), 4, "{out}");
    for record in &records {
        // JSON has no NaN and no infinity: they would be null.
        assert!(record.values().all(Value::is_number), "{out}: {record:?}");
    }
    let loss = |record: usize| records[record]["loss/weighted"].as_f64().unwrap();
    assert!(
        loss(3) < 0.95 * loss(0),
        "{out}: {} to {}",
        loss(0),
        loss(3)
    );
    records[3]["loss/weighted"].to_string()
}

/// Draws and bounds images; every number is finite.
#[track_caller]
fn can_be_used(project: &Project, model: &str) {
    for sampler in ["ancestral", "ddim"] {
        let arguments = ["sample", model, "--n-images", "2", "--out", "drawn"];
        let more = ["--sampler", sampler, "--raw", "raw.safetensors"];
        let output = p2(project.path(), &[&arguments[..], &more].concat()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{model}: {}", stderr(&output));
        let raw = StoredTensors::open(&project.path().join("raw.safetensors")).unwrap();
        let pixels = raw.values("images").unwrap();
        assert!(pixels.iter().all(|pixel| pixel.abs() <= 1.0), "{model}");
    }
    let arguments = [
        "likelihood",
        model,
        "--data",
        "images",
        "--training",
        "--json",
    ];
    let output = p2(project.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{model}: {}", stderr(&output));
    let bound: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bits = bound["bits_per_dim"].as_f64().unwrap();
    assert!(bits > 0.0 && bits < 500.0, "{model}: {bits}");
}

#[test]
fn the_bound_falls_whatever_is_predicted_and_whoever_says_the_variance() {
    let project = Project::new();
    let mut seen = BTreeSet::new();
    for prediction in PREDICTIONS {
        for variance in VARIANCES {
            let out = format!("{prediction}-{variance}");
            let (prediction, variance) = (
                format!("diffusion.prediction={prediction}"),
                format!("diffusion.variance={variance}"),
            );
            let objective = ["loss.objective=kl", &prediction, &variance];
            // A fixed variance is part of the loss, too.
            assert!(seen.insert(learns(&project, &out, &objective)), "{out}");
            can_be_used(&project, &out);
        }
    }
}

#[test]
fn every_type_of_loss_falls_and_is_like_no_other() {
    let project = Project::new();
    let mut seen = BTreeSet::new();
    for objective in ["mse", "rescaled-mse", "kl", "rescaled-kl"] {
        for variance in ["learned-range", "learned"] {
            let out = format!("{objective}-{variance}");
            let assignments = [
                &*format!("loss.objective={objective}"),
                &*format!("diffusion.variance={variance}"),
            ];
            assert!(seen.insert(learns(&project, &out, &assignments)), "{out}");
        }
    }
}

/// The tensors after three steps, by bits.
fn trained(project: &Project, out: &str, assignments: &[&str]) -> BTreeMap<String, Vec<u32>> {
    let set = set(assignments);
    let set = set.iter().map(String::as_str);
    let more: Vec<&str> = set.chain(["--max-steps", "3", "--threads", "1"]).collect();
    project.finish(out, &more);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let tensors = project.last_tensors(out).into_iter();
    tensors.map(|(name, values)| (name, bits(values))).collect()
}

#[test]
fn with_1000_timesteps_nothing_is_rescaled() {
    let project = Project::new();
    let objectives = ["loss.objective=mse", "loss.objective=rescaled-mse"];
    let times = [
        "diffusion.rescale_timesteps=false",
        "diffusion.rescale_timesteps=true",
    ];
    for (pair, name) in [(objectives, "bits"), (times, "times")] {
        for n_timesteps in [1000, 500] {
            let [plain, rescaled] = pair.map(|assignment| {
                let n_timesteps = format!("diffusion.n_timesteps={n_timesteps}");
                let out = format!("{n_timesteps}-{assignment}");
                trained(&project, &out, &[&n_timesteps, assignment])
            });
            assert_eq!(plain == rescaled, n_timesteps == 1000, "{name}");
        }
    }
}

/// Levels drawn by their terms of the bound, by a network that predicts means of steps and their variance.
#[test]
fn a_killed_run_of_the_bound_keeps_its_bits() {
    let project = Project::new();
    let set = set(&[
        "loss.objective=rescaled-kl",
        "loss.weighting={kind=\"simple\"}",
        "loss.density={loss-second-moment={n_history=1,uniform=0.01}}",
        "loss.strata=21",
        "diffusion.n_timesteps=21",
        "diffusion.prediction=x-prev",
        "diffusion.variance=learned",
    ]);
    let with = |threads| {
        let set = set.iter().map(String::as_str);
        set.chain(["--threads", threads]).collect::<Vec<_>>()
    };
    project.finish("whole", &with("1"));
    for (planned, threads) in [
        ("train.step:5", "2"),
        ("checkpoint.after-temp-write:3", "1"),
    ] {
        project.train_until(planned, "killed", &with(threads));
    }
    project.finish("killed", &with("1"));
    let whole = project.last_checkpoint("whole");
    whole.assert_same(&project.last_checkpoint("killed"), "killed");
    assert_eq!(project.metrics("whole"), project.metrics("killed"));
    assert!(
        project
            .last_tensors("whole")
            .contains_key("loss.safetensors/density.losses")
    );
}
