//! Samples pushed away from a worse guess.

use p2::checkpoint::StoredTensors;
use serde_json::Value;

use super::program::p2;
use super::project::{Project, stderr};

/// Pixels by bits, and the network's evaluations per image.
#[track_caller]
fn draw(project: &Project, more: &[&str]) -> (Vec<u32>, f64) {
    let arguments = [
        "sample",
        "run",
        "--n-images",
        "4",
        "--out",
        "drawn",
        "--json",
    ];
    let raw = [
        "--raw",
        "raw.safetensors",
        "--sampler",
        "heun",
        "--steps",
        "6",
    ];
    let output = p2(project.path(), &[&arguments[..], &raw, more].concat()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let raw = StoredTensors::open(&project.path().join("raw.safetensors")).unwrap();
    let bits = raw.values("images").unwrap().into_iter().map(f32::to_bits);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    (bits.collect(), result["nfe"].as_f64().unwrap())
}

#[test]
fn guidance_goes_from_no_class_through_the_class() {
    let project = Project::new();
    project.finish("run", &["--threads", "1"]);
    let (alone, n_alone) = draw(&project, &[]);
    assert_eq!(draw(&project, &["--guidance-scale", "1"]).0, alone);
    let (guided, n_guided) = draw(&project, &["--guidance-scale", "3"]);
    assert_ne!(guided, alone);
    assert_eq!((n_alone, n_guided), (11.0, 22.0));
    for how in [["--batch-size", "1"], ["--threads", "2"]] {
        let more = [&["--guidance-scale", "3"], &how[..]].concat();
        assert_eq!(draw(&project, &more).0, guided, "{how:?}");
    }
    // With a scale of 0 the class is nothing to the image.
    let without = ["--guidance-scale", "0"];
    let of_class = |class| draw(&project, &[&without[..], &["--class", class]].concat()).0;
    assert_eq!(of_class("0"), of_class("1"));
    // In between, a part of the evaluations is saved.
    let sigmas = ["--guidance-scale", "3", "--guidance-sigmas", "0.1", "2"];
    let (partly, n_partly) = draw(&project, &sigmas);
    assert!(partly != guided && partly != alone);
    assert!(n_alone < n_partly && n_partly < n_guided, "{n_partly}");
    let nowhere = ["--guidance-scale", "3", "--guidance-sigmas", "1000", "2000"];
    assert_eq!(draw(&project, &nowhere), (alone, n_alone));
}

#[test]
fn a_model_is_guided_by_its_earlier_self() {
    let project = Project::new();
    project.finish("run", &["--threads", "1"]);
    let earlier = "run/checkpoints/images-0000000108";
    let guide = ["--guidance-scale", "2", "--guide", earlier];
    let (alone, guided) = (draw(&project, &[]).0, draw(&project, &guide).0);
    assert_ne!(guided, alone);
    // Itself as its guide leads nowhere else, but for rounding.
    let itself = ["--guidance-scale", "2", "--guide", "run"];
    let drawn = draw(&project, &itself).0;
    for (a, b) in drawn.iter().zip(&alone) {
        let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}

#[test]
fn what_cannot_guide_is_refused() {
    let project = Project::new();
    let set = ["--set", "model.label_dropout=0", "--max-images", "12"];
    project.finish("run", &set);
    for (more, message) in [
        (&["--guidance-scale", "2"][..], "cannot guide itself"),
        (&["--guidance-scale", "-1"], "--guidance-scale"),
        (&["--guide", "run"], "guides nothing"),
        (&["--guidance-scale", "2", "--guide", "nowhere"], "nowhere"),
        (
            &[
                "--guidance-scale",
                "2",
                "--guide",
                "run",
                "--guidance-sigmas",
                "2",
                "1",
            ],
            "least noise first",
        ),
    ] {
        let arguments = ["sample", "run", "--n-images", "1", "--out", "drawn"];
        let output = p2(project.path(), &[&arguments[..], more].concat()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
}
