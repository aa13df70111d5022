//! Models that enlarge images, and cascades of them.

use p2::checkpoint::StoredTensors;
use serde_json::Value;

use super::program::p2;
use super::project::{Project, stderr};

/// A super-resolution model from 4×4 to 8×8 pixels.
const ENLARGES: [&str; 4] = [
    "--set",
    "model.low_res_size=4",
    "--set",
    "model.low_res_noise=0.2",
];
/// A model of 4×4 pixels.
const SMALL: [&str; 6] = [
    "--set",
    "data.image_size=4",
    "--set",
    "model.attention_resolutions=[2]",
    "--set",
    "model.n_classes=2",
];

/// `base` draws 4×4 pixels, `sr` enlarges them to 8×8; both have learnt a little.
fn trained() -> Project {
    let project = Project::new();
    project.finish("base", &[&SMALL[..], &["--max-images", "24"]].concat());
    project.finish("sr", &[&ENLARGES[..], &["--max-images", "24"]].concat());
    project
}

/// Unrounded pixels and evaluations per image.
#[track_caller]
fn draw(project: &Project, more: &[&str]) -> (Vec<f32>, f64) {
    let common = ["sample", "--out", "drawn", "--raw", "raw.safetensors"];
    let steps = ["--json", "--n-images", "6", "--steps", "4"];
    let arguments = [&common[..], &steps, more].concat();
    let output = p2(project.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let raw = StoredTensors::open(&project.path().join("raw.safetensors")).unwrap();
    assert_eq!(raw.shape("images"), Some(&[6, 8, 8, 3][..]));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    (
        raw.values("images").unwrap(),
        result["nfe"].as_f64().unwrap(),
    )
}

#[test]
fn what_one_model_draws_another_enlarges() {
    let project = trained();
    let cascade = ["--cascade", "base,sr"];
    let (expected, nfe) = draw(&project, &[&cascade[..], &["--sampler", "ddim"]].concat());
    assert_eq!(nfe, 8.0);
    for more in [
        ["--batch-size", "1"],
        ["--batch-size", "4"],
        ["--threads", "1"],
    ] {
        let arguments = [&cascade[..], &["--sampler", "ddim"], &more].concat();
        assert!(draw(&project, &arguments).0 == expected, "{more:?}");
    }
    for sampler in [
        "ancestral",
        "euler",
        "heun",
        "heun-churn",
        "euler-ancestral",
        "dpm-2m",
        "dpm-3m",
        "dpm-2s",
        "unipc",
        "plms",
        "flow",
        "pc-vp",
        "pc-ve",
    ] {
        let drawn = draw(&project, &[&cascade[..], &["--sampler", sampler]].concat()).0;
        assert!(drawn.iter().all(|x| x.is_finite()), "{sampler}");
        assert!(drawn != expected, "{sampler} is ddim");
    }
    let guided = draw(
        &project,
        &[&cascade[..], &["--guidance-scale", "2"]].concat(),
    );
    assert_eq!(guided.1, 16.0);
}

/// A model that had not seen the small image could not show it.
#[test]
fn the_small_image_is_seen_and_each_kind_of_noise_counts() {
    let project = trained();
    let enlarge = ["sr", "--low-res", "images", "--sampler", "ddim"];
    let (enlarged, nfe) = draw(&project, &enlarge);
    assert_eq!(nfe, 4.0);
    let folder = project.path().join("images/cat");
    let first = std::fs::read(folder.join("0.png")).unwrap();
    std::fs::copy(folder.join("1.png"), folder.join("0.png")).unwrap();
    let (other, _) = draw(&project, &enlarge);
    std::fs::write(folder.join("0.png"), first).unwrap();
    // Images are enlarged in turn: only the first one has another original.
    assert!(other[..192] != enlarged[..192]);
    assert!(other[192..] == enlarged[192..]);
    let without = ["--set", "model.low_res_noise=0", "--max-images", "24"];
    project.finish("other", &[&ENLARGES[..], &without].concat());
    assert!(project.last_checkpoint("sr") != project.last_checkpoint("other"));
}

#[test]
fn a_killed_run_that_enlarges_ends_with_the_same_bits() {
    let project = Project::new();
    project.finish("whole", &ENLARGES);
    let killed = project.train_until("train.step:4", "parts", &ENLARGES);
    assert!(!killed.status.success());
    project.finish("parts", &[&ENLARGES[..], &["--threads", "1"]].concat());
    let whole = project.last_checkpoint("whole");
    whole.assert_same(&project.last_checkpoint("parts"), "killed and continued");
}

#[test]
fn held_out_losses_pictures_bounds_and_benchmarks_know_of_small_images() {
    let project = Project::new();
    let watched = [
        "--set",
        "data.held_out=0.2",
        "--set",
        "train.batch_size=4",
        "--set",
        "train.micro_batch_size=4",
        "--set",
        "train.held_out_every=12",
        "--set",
        "train.sample_every=12",
        "--set",
        "sample.n_steps=2",
    ];
    let output = project
        .train(
            "run",
            &[&ENLARGES[..], &watched, &["--max-images", "24"]].concat(),
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("held-out error") && said.contains("samples:"),
        "{said}"
    );
    let arguments = [
        "likelihood",
        "run",
        "--data",
        "images",
        "--training",
        "--steps",
        "3",
    ];
    let output = p2(project.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for more in [&["--steps", "1"][..], &["--steps", "1", "--sampling"]] {
        let bench = [
            "bench",
            "--preset",
            "smoke",
            "--set",
            "model.low_res_size=8",
        ];
        let output = p2(project.path(), &[&bench[..], more].concat())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

#[test]
fn networks_that_do_not_fit_together_are_named() {
    let project = trained();
    let says = |more: &[&str], expected: &str| {
        let arguments = [&["sample", "--n-images", "1", "--out", "drawn"], more].concat();
        let output = p2(project.path(), &arguments).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    says(&["sr"], "enlarges images of 4x4 pixels");
    says(&["sr"], "--cascade BASE,MODEL");
    says(&["base", "--low-res", "images"], "enlarges no images");
    says(&["--cascade", "sr,base"], "enlarges images of 4x4 pixels");
    says(&["--cascade", "base,base"], "draws from noise alone");
    says(&["--cascade", "base,sr,sr"], "before it draws 8x8 pixels");
    says(
        &["--cascade", "base,sr", "--class", "2"],
        "class 2 of a model with 2 classes",
    );
    says(&["base", "--cascade", "base,sr"], "cannot be used with");
    says(&["--low-res", "images"], "<MODEL>");
    let encode = [
        "encode",
        "sr",
        "--data",
        "images",
        "--out",
        "codes.safetensors",
    ];
    let output = p2(project.path(), &encode).output().unwrap();
    assert!(
        stderr(&output).contains("draws from noise alone"),
        "{}",
        stderr(&output)
    );
}
