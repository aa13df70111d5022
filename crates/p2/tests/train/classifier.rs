//! Classifiers of noised images.

use std::fs;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use p2::checkpoint::StoredTensors;
use p2::classifier::file;
use p2::fault;
use p2_nn::{Cpu, Threads};
use serde_json::Value;

use super::program::p2;
use super::project::{Project, names_in, stderr};

/// Ten images of two classes, and a classifier for them.
fn with_configuration() -> Project {
    let project = Project::new();
    let text = include_str!("classifier.toml");
    fs::write(project.path().join("classifier.toml"), text).unwrap();
    project
}

fn train(project: &Project, out: &str, more: &[&str]) -> Command {
    let arguments = ["train-classifier", "classifier.toml", "--out", out];
    p2(project.path(), &[&arguments[..], more].concat())
}

#[track_caller]
fn finish(project: &Project, out: &str, more: &[&str]) -> Output {
    let output = train(project, out, more).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    output
}

/// The files of the newest checkpoint.
fn last(project: &Project, out: &str) -> Vec<(String, Vec<u8>)> {
    let name = names_in(&project.checkpoints(out)).pop().unwrap();
    let folder = project.checkpoints(out).join(name);
    let read = |name: String| (name.clone(), fs::read(folder.join(&name)).unwrap());
    names_in(&folder).into_iter().map(read).collect()
}

#[test]
fn a_killed_run_ends_with_the_bits_of_one_that_was_left_in_peace() {
    let project = with_configuration();
    finish(&project, "whole", &["--threads", "2"]);
    for (i, planned) in ["train.step:3", "train.step:9", "checkpoint.rename:2"]
        .into_iter()
        .enumerate()
    {
        let out = format!("parts-{i}");
        let mut command = train(&project, &out, &[]);
        let output = command.env(fault::VARIABLE, planned).output().unwrap();
        if !output.status.success() {
            finish(&project, &out, &["--threads", "1"]);
        } else {
            assert!(
                planned.starts_with("checkpoint"),
                "{planned} was not passed"
            );
        }
        assert!(last(&project, "whole") == last(&project, &out), "{planned}");
    }
    let whole = last(&project, "whole");
    let names: Vec<&str> = whole.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "classifier.safetensors",
            "optimizer.safetensors",
            "state.json"
        ]
    );
}

#[test]
fn every_pool_learns_to_tell_two_classes_apart() {
    let project = with_configuration();
    for pool in ["attention", "adaptive", "spatial", "spatial-v2"] {
        let pool_key = format!("model.pool={pool}");
        let mut more = vec!["--json"];
        for set in [
            &pool_key,
            "train.total_images=600",
            "train.log_every=60",
            "train.checkpoint_every=600",
            "train.batch_size=6",
            "train.micro_batch_size=6",
            "train.held_out_every=600",
            "data.held_out=0.2",
            "data.crop=center",
            "optim.lr=2e-3",
        ] {
            more.extend(["--set", set]);
        }
        let output = finish(&project, pool, &more);
        let records = project.metrics(pool);
        let losses: Vec<f64> = records
            .iter()
            .filter_map(|record| record.get("loss/cross_entropy")?.as_f64())
            .collect();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.8 * first, "{pool}: {losses:?}");
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(outcome["finished"], true);
        let measured = outcome["held_out"].as_array().unwrap();
        assert!(measured.len() == 3 && measured[0]["accuracy_5"] == 1.0);
    }
}

#[test]
fn clean_images_have_no_noise() {
    let project = with_configuration();
    let clean = ["--set", "diffusion.noised=false", "--max-images", "12"];
    let output = finish(&project, "clean", &clean);
    assert!(stderr(&output).contains("cannot guide a sampler"));
    finish(&project, "noised", &["--max-images", "12"]);
    let losses = |out: &str| project.metrics(out)[0]["loss/cross_entropy"].as_f64();
    assert_ne!(losses("clean"), losses("noised"));
    let record = &project.metrics("clean")[0];
    assert!(record.contains_key("accuracy/first_clean_up"), "{record:?}");
    assert!(!record.contains_key("accuracy/first_coarse"), "{record:?}");
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let project = with_configuration();
    let says = |more: &[&str], expected: &str| {
        let output = train(&project, "refused", more).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    says(&["--data", "images/dog"], "nothing to tell apart");
    says(&["--set", "model.n_classes=1"], "allowed: 2 to");
    says(&["--set", "model.pool=max"], "unknown value `max`");
    says(&["--set", "model.dropout=0.1"], "unknown key `dropout`");
    says(&["--set", "model.channels=33"], "a multiple of 32");
    project.draw("emu/1.png", 11);
    says(&[], "has 3 classes, the classifier only 2");
    // A run of the one kind is none of the other.
    finish(
        &project,
        "run",
        &["--set", "model.n_classes=3", "--max-images", "6"],
    );
    let set = ["--set", "model.n_classes=3"];
    let said = stderr(&project.train("run", &set).output().unwrap());
    assert!(said.contains("run/config.toml"), "{said}");
    let changed = ["--set", "model.n_classes=3", "--set", "optim.lr=2e-3"];
    finish(
        &project,
        "run",
        &[&changed[..], &["--max-images", "12"]].concat(),
    );
    let refused = ["--set", "model.n_classes=3", "--set", "model.pool=spatial"];
    let output = train(&project, "run", &refused).output().unwrap();
    assert!(
        stderr(&output).contains("cannot be continued with another `model.pool`"),
        "{}",
        stderr(&output)
    );
    let file = project.checkpoints("run").join("images-0000000012");
    let stored = StoredTensors::open(&file.join("classifier.safetensors")).unwrap();
    assert!(stored.shape("out.2.positional_embedding") == Some(&[64, 17][..]));
}

/// A model that knows no classes and a classifier of the same noise; both have learnt a little.
fn with_model_and_classifier() -> Project {
    let project = with_configuration();
    let unconditional = [
        "--set",
        "model.n_classes=0",
        "--set",
        "model.label_dropout=0",
    ];
    project.finish("model", &unconditional);
    finish(&project, "classifier", &["--set", "data.crop=center"]);
    project
}

/// Unrounded pixels.
#[track_caller]
fn draw(project: &Project, more: &[&str]) -> Vec<f32> {
    let common = [
        "sample",
        "model",
        "--out",
        "drawn",
        "--raw",
        "raw.safetensors",
    ];
    let arguments = [&common[..], &["--n-images", "6", "--steps", "20"], more].concat();
    let output = p2(project.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let raw = StoredTensors::open(&project.path().join("raw.safetensors")).unwrap();
    raw.values("images").unwrap()
}

/// Mean score of class 1 over class 0, at the cleanest level.
fn preference(project: &Project, pixels: Vec<f32>) -> f32 {
    let cpu = Cpu::best(Threads::new(1));
    let loaded = file::load(&project.path().join("classifier"), cpu).unwrap();
    let images = Tensor::from_vec(pixels, (6, 8, 8, 3), &Device::Cpu).unwrap();
    let scores = loaded.classifier.scores(&images, &[0.0; 6]).unwrap();
    let scores = scores.to_vec2::<f32>().unwrap();
    scores
        .iter()
        .map(|scores| scores[1] - scores[0])
        .sum::<f32>()
        / 6.0
}

#[test]
fn a_classifier_leads_samples_to_its_class() {
    let project = with_model_and_classifier();
    for (sampler, form) in [
        ("ddim", "score"),
        ("heun", "score"),
        ("ancestral", "mean"),
        ("ancestral", "exact"),
        ("ancestral", "score"),
    ] {
        let how = ["--sampler", sampler];
        let with = |class: &str, scale: &str| {
            let guided = ["--classifier", "classifier", "--classifier-form", form];
            let more = ["--class", class, "--classifier-scale", scale];
            draw(&project, &[&how[..], &guided, &more].concat())
        };
        let alone = draw(&project, &how);
        let unmoved = with("0", "0");
        assert!(alone == unmoved, "{sampler}, {form}: a scale of 0 guides");
        let (first, second) = (with("0", "10"), with("1", "10"));
        let [first, alone, second] = [first, alone, second].map(|x| preference(&project, x));
        assert!(
            first < alone && alone < second,
            "{sampler}, {form}: {first} {alone} {second}"
        );
    }
}

#[test]
fn guided_images_depend_on_their_number_alone() {
    let project = with_model_and_classifier();
    let guided = ["--classifier", "classifier", "--classifier-scale", "3"];
    for sampler in ["ancestral", "dpm-2m", "flow"] {
        let how = [&guided[..], &["--sampler", sampler]].concat();
        let expected = draw(&project, &how);
        for more in [
            ["--batch-size", "1"],
            ["--batch-size", "4"],
            ["--threads", "1"],
        ] {
            assert!(
                draw(&project, &[&how[..], &more].concat()) == expected,
                "{more:?}"
            );
        }
    }
    // Without --class all classes come in turn, and the evaluator is told which.
    draw(&project, &[&guided[..], &["--npz", "all.npz"]].concat());
    let bytes = fs::read(project.path().join("all.npz")).unwrap();
    assert!(bytes.windows(9).any(|name| name == b"arr_1.npy"));
}

#[test]
fn a_classifier_of_other_images_or_other_noise_guides_nothing() {
    let project = with_model_and_classifier();
    let says = |more: &[&str], expected: &str| {
        let common = ["sample", "model", "--n-images", "1", "--out", "drawn"];
        let output = p2(project.path(), &[&common[..], more].concat()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = stderr(&output);
        assert!(said.contains(expected), "{said}");
    };
    let made = |out: &str, set: &[&str]| {
        let mut more = vec!["--max-images", "6"];
        more.extend(set.iter().flat_map(|set| ["--set", set]));
        finish(&project, out, &more);
    };
    made(
        "small",
        &["data.image_size=4", "model.attention_resolutions=[2]"],
    );
    made("cosine", &["diffusion.schedule=cosine"]);
    made("clean", &["diffusion.noised=false"]);
    says(
        &["--classifier", "small"],
        "4x4 pixels, which no model draws",
    );
    says(&["--classifier", "cosine"], "different noise schedules");
    says(&["--classifier", "clean"], "trained on clean images");
    says(
        &["--classifier", "model"],
        "there is no classifier at model",
    );
    says(
        &["--classifier", "nowhere"],
        "there is no classifier at nowhere",
    );
    says(
        &["--classifier", "classifier", "--class", "2"],
        "class 2 of a model with 2",
    );
    let mean = ["--classifier", "classifier", "--classifier-form", "mean"];
    says(
        &[&mean[..], &["--sampler", "ddim"]].concat(),
        "has no mean to be moved",
    );
    says(&["--classifier-scale", "2"], "--classifier");
    let negative = ["--classifier", "classifier", "--classifier-scale", "-1"];
    says(&negative, "--classifier-scale is -1");
    let weights = "model/checkpoints/images-0000000120/model.safetensors";
    says(&["--classifier", weights], "none of a classifier");
}
