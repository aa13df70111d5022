//! Every weighting trains on the bundled images, and may take over from another.

use std::collections::BTreeSet;

use p2::weights::{catalog, spec};
use serde_json::Value;

use super::project::Project;

/// Twenty steps with each kind: finite losses, and no two kinds with the same.
#[test]
fn every_weighting_trains_on_the_bundled_images() {
    let project = Project::new();
    let mut seen = BTreeSet::new();
    for example in catalog::EXAMPLES {
        let kind = spec::kind(example);
        // Every kind can be had for v, the raw ones included.
        let weighting = toml_from(&serde_json::to_value(example).unwrap());
        project.finish(
            &kind,
            &[
                "--data",
                "bundled:emoji-32",
                "--set",
                "model.n_classes=0",
                "--set",
                "model.label_dropout=0",
                "--set",
                "train.log_every=6",
                "--set",
                "train.checkpoint_every=120",
                "--set",
                "diffusion.prediction=v",
                "--set",
                &format!("loss.weighting={weighting}"),
            ],
        );
        let records = project.metrics(&kind);
        assert_eq!(records.len(), 20, "{kind}");
        // JSON has no NaN and no infinity: they would be null.
        let is_finite =
            |record: &serde_json::Map<String, Value>| record.values().all(Value::is_number);
        assert!(records.iter().all(is_finite), "{kind}");
        seen.insert(records[19]["loss/weighted"].to_string());
    }
    // With s = 1 the scaled P2 is P2; kohya's number on v is the raw P2's up to an SNR of 1000.
    assert_eq!(seen.len(), catalog::EXAMPLES.len() - 2, "{seen:?}");
}

/// A key that is read and then forgotten would leave the losses as they were.
#[test]
fn every_key_of_every_weighting_changes_the_loss() {
    let project = Project::new();
    let mut n_runs = 0;
    let mut losses = |weighting: &Value, more: &[&str]| -> Vec<String> {
        n_runs += 1;
        let (out, weighting) = (format!("run-{n_runs}"), toml_from(weighting));
        let weighting = format!("loss.weighting={weighting}");
        let set = ["--set", &weighting, "--max-images", "60"];
        let prediction = ["--set", "diffusion.prediction=v"];
        project.finish(&out, &[&set[..], &prediction, more].concat());
        let records = project.metrics(&out).into_iter();
        records
            .map(|record| record["loss/weighted"].to_string())
            .collect()
    };
    let mut n_keys = 0;
    for example in catalog::EXAMPLES {
        let mut before = serde_json::to_value(example).unwrap();
        if before["kind"] == "adaptive-buckets" {
            // Few images would hardly meet again in one of 300 buckets.
            before["n_buckets"] = 4.into();
        }
        let keys: Vec<String> = before.as_object().unwrap().keys().cloned().collect();
        let before_losses = losses(&before, &[]);
        for key in keys.iter().filter(|key| *key != "kind") {
            let mut after = before.clone();
            after[key] = match before[key].as_u64() {
                Some(count) => (count + 1).into(),
                None => (0.8 * before[key].as_f64().unwrap() + 0.07).into(),
            };
            assert_ne!(before_losses, losses(&after, &[]), "{before}: {key}");
            n_keys += 1;
        }
    }
    assert_eq!(n_keys, 24);
    // The same for how levels are drawn.
    let simple = serde_json::json!({ "kind": "simple" });
    let mut seen = BTreeSet::from([losses(&simple, &[])]);
    for draws in DRAWS {
        let assignments = draws.split(' ').chain(["diffusion.n_timesteps=21"]);
        let more: Vec<&str> = assignments.flat_map(|each| ["--set", each]).collect();
        assert!(seen.insert(losses(&simple, &more)), "{draws}");
    }
}

/// Ways to draw 21 levels, no two of which are the same. A history of losses is full after 21 images.
const DRAWS: [&str; 19] = [
    "loss.strata=1",
    "loss.strata=2",
    "loss.strata=4",
    "loss.antithetic=true",
    "loss.density={log-normal={mean=-1.2,std=1.2}}",
    "loss.density={log-normal={mean=-0.9,std=1.2}}",
    "loss.density={log-normal={mean=-1.2,std=0.9}}",
    "loss.density={laplace={mean=0.0,scale=0.5}}",
    "loss.density={laplace={mean=0.5,scale=0.5}}",
    "loss.density={laplace={mean=0.0,scale=1.5}}",
    "loss.density={flow-mode={scale=1.29}}",
    "loss.density={flow-mode={scale=0.81}}",
    "loss.density=flow-cosmap",
    "loss.density={speed={n_first=14,ratio=5.0}}",
    "loss.density={speed={n_first=10,ratio=5.0}}",
    "loss.density={speed={n_first=14,ratio=2.0}}",
    "loss.strata=21",
    "loss.strata=21 loss.density={loss-second-moment={n_history=1,uniform=0.5}}",
    "loss.strata=21 loss.density={loss-second-moment={n_history=1,uniform=0.01}}",
];

/// The unweighted held-out error goes on where it was when another weighting takes over.
#[test]
fn a_weighting_may_take_over_from_another() {
    let project = Project::new();
    let finish = |out: &str, weighting: &str, more: &[&str]| {
        let weighting = format!("loss.weighting={weighting}");
        let assignments = ["data.held_out=0.2", "train.held_out_every=12", &weighting];
        let set = assignments.iter().flat_map(|each| ["--set", each]);
        let arguments: Vec<&str> = set.chain(more.iter().copied()).collect();
        project.finish(out, &arguments);
    };
    let (simple, min_snr) = ("{kind=\"simple\"}", "{kind=\"min-snr\",gamma=5.0}");
    finish("simple", simple, &[]);
    finish("changed", simple, &["--max-images", "60"]);
    finish("changed", min_snr, &[]);
    let curve = |out: &str| -> Vec<(u64, String)> {
        let records = project.metrics(out);
        let held_out = records.iter().filter_map(|record| {
            let error = record.get("held_out/mse_eps_content")?.to_string();
            Some((record["images_seen"].as_u64().unwrap(), error))
        });
        held_out.collect()
    };
    let (simple, changed) = (curve("simple"), curve("changed"));
    let images: Vec<u64> = (1..=10).map(|i| 12 * i).collect();
    assert_eq!(
        changed
            .iter()
            .map(|(images, _)| *images)
            .collect::<Vec<_>>(),
        images
    );
    assert_eq!(changed[..5], simple[..5]);
    assert_ne!(changed[5..], simple[5..]);
    let manifest = std::fs::read_to_string(project.path().join("changed/manifest.json")).unwrap();
    assert!(manifest.contains("\"loss.weighting\""), "{manifest}");
}

/// An object of names and numbers as an inline table.
fn toml_from(value: &Value) -> String {
    let fields = value.as_object().unwrap().iter();
    let fields: Vec<String> = fields
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    format!("{{ {} }}", fields.join(", "))
}
