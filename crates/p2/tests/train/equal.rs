//! Two ways to say one thing, which must give the same numbers.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::project::{Project, stderr};

/// The records of three steps. Adam with a large eps is smooth: rounding stays rounding.
fn three_steps(project: &Project, micro_batch_size: usize) -> Vec<Map<String, Value>> {
    let out = format!("micro-{micro_batch_size}");
    let micro = format!("train.micro_batch_size={micro_batch_size}");
    let set = [
        &micro,
        "train.log_every=6",
        "optim.eps=1.0",
        "optim.lr=1.0",
        "optim.warmup_images=0",
    ];
    let mut more = vec!["--max-steps", "3"];
    more.extend(set.iter().flat_map(|assignment| ["--set", assignment]));
    project.finish(&out, &more);
    project.metrics(&out)
}

#[test]
fn a_micro_batch_of_any_size_draws_the_same_numbers() {
    let project = Project::new();
    let whole = three_steps(&project, 6);
    assert_eq!(whole.len(), 3);
    for micro_batch_size in [1, 2, 4, 5] {
        let parts = three_steps(&project, micro_batch_size);
        // Dropout shows from the second step on: a new network answers 0.
        for (whole, part) in whole.iter().zip(&parts) {
            assert!(whole.len() > 6, "{whole:?}");
            assert!(whole.keys().eq(part.keys()), "another stage: {part:?}");
            for (name, expected) in whole {
                let (expected, number) = (expected.as_f64().unwrap(), part[name].as_f64().unwrap());
                let error = (number - expected).abs() / expected.abs();
                assert!(
                    error < 1e-5,
                    "{micro_batch_size}: {name} is {number}, not {expected}"
                );
            }
        }
        assert_eq!(parts.len(), 3);
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
    for prediction in ["eps", "x0", "v", "x-prev"] {
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

#[test]
fn what_is_computed_again_changes_no_bit() {
    let project = Project::new();
    let run = |recompute: &str| {
        let set = format!("train.recompute={recompute}");
        project.finish(recompute, &["--set", &set, "--max-steps", "2"]);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let tensors = project.last_tensors(recompute).into_iter();
        tensors
            .map(|(name, values)| (name, bits(values)))
            .collect::<BTreeMap<_, _>>()
    };
    let kept = run("nothing");
    assert!(kept == run("norms"));
    assert!(kept == run("blocks"));
}
