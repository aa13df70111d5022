//! Two ways to say one thing, which must give the same numbers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::project::{Project, stderr};

/// The record of the first step.
fn first_step(project: &Project, micro_batch_size: usize) -> Map<String, Value> {
    let out = format!("micro-{micro_batch_size}");
    let micro = format!("train.micro_batch_size={micro_batch_size}");
    let more = [
        "--set",
        &micro,
        "--set",
        "train.log_every=6",
        "--max-steps",
        "1",
    ];
    project.finish(&out, &more);
    project.metrics(&out).swap_remove(0)
}

#[test]
fn a_micro_batch_of_any_size_sees_the_same_noise() {
    let project = Project::new();
    let whole = first_step(&project, 6);
    assert!(whole.len() > 6, "{whole:?}");
    for micro_batch_size in [1, 2, 4, 5] {
        let parts = first_step(&project, micro_batch_size);
        assert!(
            whole.keys().eq(parts.keys()),
            "another stage: {whole:?} {parts:?}"
        );
        for (name, expected) in &whole {
            let (expected, number) = (expected.as_f64().unwrap(), parts[name].as_f64().unwrap());
            let error = (number - expected).abs() / expected.abs();
            assert!(
                error < 1e-5,
                "{micro_batch_size}: {name} is {number}, not {expected}"
            );
        }
    }
}

/// Noise level and file of an image that starts a micro-batch: what a spoilt loss is reported with.
fn level_and_file(project: &Project, micro_batch_size: usize, count: usize) -> String {
    let micro = format!("train.micro_batch_size={micro_batch_size}");
    let planned = format!("train.loss:{count}=nan");
    let out = format!("level-{micro_batch_size}-{count}");
    let error = stderr(&project.train_until(&planned, &out, &["--set", &micro]));
    let (_, place) = error.split_once("NaN at ").unwrap();
    place.lines().next().unwrap().to_owned()
}

#[test]
fn a_noise_level_belongs_to_its_image() {
    let project = Project::new();
    // Image 0, 4 and 6 of the run.
    for places in [
        &[(1, 1), (4, 1), (6, 1)][..],
        &[(1, 5), (2, 3), (4, 2)],
        &[(1, 7), (6, 2)],
    ] {
        let found: Vec<_> = places
            .iter()
            .map(|&(micro_batch_size, count)| level_and_file(&project, micro_batch_size, count))
            .collect();
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
    }
}

/// The tensors after three steps, by bits.
fn trained(project: &Project, prediction: &str, weighting: &str) -> BTreeMap<String, Vec<u32>> {
    let out = format!("{prediction}-{weighting}");
    let prediction = format!("diffusion.prediction={prediction}");
    let weighting = format!("loss.weighting={weighting}");
    let more = [
        "--set",
        &prediction,
        "--set",
        &weighting,
        "--max-steps",
        "3",
        "--threads",
        "1",
    ];
    project.finish(&out, &more);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let tensors = project.last_tensors(&out).into_iter();
    tensors.map(|(name, values)| (name, bits(values))).collect()
}

#[test]
fn p2_without_gamma_is_the_simple_loss() {
    let project = Project::new();
    for prediction in ["eps", "x0", "v"] {
        let simple = trained(&project, prediction, "{kind=\"simple\"}");
        let p2 = trained(&project, prediction, "{kind=\"p2\",k=1.0,gamma=0.0}");
        assert!(simple == p2, "{prediction}: tensors differ");
        let weighted = trained(&project, prediction, "{kind=\"p2\",k=1.0,gamma=1.0}");
        assert!(
            simple != weighted,
            "{prediction}: gamma = 1 changes nothing"
        );
    }
}
