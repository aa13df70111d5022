//! Images as noise, drawn again.

use std::fs;
use std::path::Path;

use expect_test::{Expect, expect};
use p2::checkpoint::StoredTensors;
use serde_json::Value;

use super::program::{self, p2};
use super::project::{Project, names_in, stderr};

/// A model of two classes that has learnt a little, in `run`.
fn trained() -> Project {
    let project = Project::new();
    project.finish("run", &["--max-images", "60", "--threads", "1"]);
    project
}

/// What a command that succeeds says on stdout and stderr.
#[track_caller]
fn run(project: &Project, arguments: &[&str]) -> (String, String) {
    let output = p2(project.path(), arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    (stdout, stderr(&output))
}

#[track_caller]
fn encode(project: &Project, more: &[&str]) -> Value {
    let arguments = ["encode", "run", "--data", "images", "--json"];
    let out = ["--out", "codes.safetensors"];
    let (stdout, _) = run(project, &[&arguments[..], &out, more].concat());
    serde_json::from_str(&stdout).unwrap()
}

/// The tensor of a file, and its shape.
#[track_caller]
fn tensor(project: &Project, file: &str, name: &str) -> (Vec<usize>, Vec<f32>) {
    let stored = StoredTensors::open(&project.path().join(file)).unwrap();
    let shape = stored.shape(name).unwrap().to_vec();
    (shape, stored.values(name).unwrap())
}

/// The unrounded pixels of the codes' images.
#[track_caller]
fn decode(project: &Project, more: &[&str]) -> Vec<f32> {
    let arguments = ["sample", "run", "--codes", "codes.safetensors"];
    let out = ["--out", "drawn", "--raw", "raw.safetensors"];
    run(project, &[&arguments[..], &out, more].concat());
    tensor(project, "raw.safetensors", "images").1
}

#[test]
fn more_steps_bring_images_back_more_exactly() {
    let project = trained();
    let rms = |steps: &str| {
        let result = encode(&project, &["--check", "--steps", steps]);
        assert_eq!(result["n_images"], 10);
        result["round_trip_rms"].as_f64().unwrap()
    };
    let errors = ["10", "40", "160"].map(rms);
    assert!(
        errors[0] > 1.5 * errors[1] && errors[1] > 1.5 * errors[2],
        "{errors:?}"
    );
    assert!(errors[2] < 4.0, "{errors:?}");
    let (shape, codes) = tensor(&project, "codes.safetensors", "codes");
    assert_eq!(shape, [10, 8, 8, 3]);
    assert!(codes.iter().all(|x| x.is_finite()));
}

#[test]
fn codes_draw_the_images_that_they_were_made_of() {
    let project = trained();
    let more = ["--check", "--steps", "40"];
    let result = encode(&project, &[&more[..], &["--threads", "1"]].concat());
    assert_eq!(
        (&result["n_steps"], &result["nfe"]),
        (&40.into(), &80.into())
    );
    let codes = fs::read(project.path().join("codes.safetensors")).unwrap();
    let drawn = decode(&project, &[]);
    let names = names_in(&project.path().join("drawn"));
    assert_eq!(
        (names[0].as_str(), names[9].as_str()),
        ("000000.png", "000009.png")
    );
    // The first image in its middle, as the dataset crops it.
    let error = result["round_trip_rms"].as_f64().unwrap();
    let picture = image::open(project.path().join("drawn/000000.png"))
        .unwrap()
        .to_rgb8();
    for (byte, x) in picture.as_raw().iter().zip(&drawn) {
        assert!((f64::from(*byte) - 127.5 * (f64::from(*x) + 1.0)).abs() <= 0.51 || x.abs() > 1.0);
    }
    assert!(error > 0.0);
    for (batch_size, threads) in [("1", "2"), ("3", "1"), ("4", "2")] {
        let how = ["--batch-size", batch_size, "--threads", threads];
        let again = encode(&project, &[&more[..], &how].concat());
        assert_eq!(again, result, "{how:?}");
        let bytes = fs::read(project.path().join("codes.safetensors")).unwrap();
        assert!(bytes == codes, "{how:?}");
        assert!(decode(&project, &how) == drawn, "{how:?}");
    }
    let few = decode(&project, &["--n-images", "2"]);
    assert!(few == drawn[..few.len()]);
}

#[test]
fn classes_come_from_folders_or_from_the_command_line() {
    let project = trained();
    encode(&project, &["--steps", "20"]);
    let path = project.path().join("codes.safetensors");
    let stored = StoredTensors::open(&path).unwrap();
    let metadata: Value = serde_json::from_str(stored.metadata().unwrap()).unwrap();
    assert_eq!(
        metadata["labels"],
        serde_json::json!([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    );
    let of_folder = tensor(&project, "codes.safetensors", "codes").1;
    let own = decode(&project, &[]);
    let as_dogs = decode(&project, &["--class", "1"]);
    let n = own.len() / 10;
    assert!(own[..4 * n] != as_dogs[..4 * n] && own[4 * n..] == as_dogs[4 * n..]);
    encode(&project, &["--steps", "20", "--class", "1"]);
    let of_dogs = tensor(&project, "codes.safetensors", "codes").1;
    assert!(of_folder[..4 * n] != of_dogs[..4 * n] && of_folder[4 * n..] == of_dogs[4 * n..]);
}

#[test]
fn images_between_codes_lead_from_one_to_the_next() {
    let project = trained();
    encode(&project, &["--steps", "20", "--n-images", "3"]);
    let ends = decode(&project, &[]);
    let all = decode(&project, &["--interpolate", "2"]);
    let n = ends.len() / 3;
    assert_eq!(all.len(), 7 * n);
    for (i, end) in ends.chunks(n).enumerate() {
        assert!(all[3 * i * n..][..n] == *end, "image {i}");
    }
    // Two rows of three, and the last image alone; between images lie two pixels.
    let grid = image::open(project.path().join("drawn/grid.png")).unwrap();
    assert_eq!(
        (grid.width(), grid.height()),
        (3 * 8 + 2 * 2, 3 * 8 + 2 * 2)
    );
    let more = ["--interpolate", "2", "--batch-size", "2", "--threads", "2"];
    assert!(decode(&project, &more) == all);
}

#[test]
fn other_steps_than_those_of_the_codes_are_told() {
    let project = trained();
    encode(&project, &["--steps", "20", "--n-images", "1"]);
    let arguments = [
        "-q",
        "sample",
        "run",
        "--codes",
        "codes.safetensors",
        "--out",
        "drawn",
    ];
    let (_, said) = run(&project, &arguments);
    assert_eq!(said, "");
    let (_, said) = run(&project, &[&arguments[..], &["--steps", "30"]].concat());
    assert_eq!(
        said,
        "warning: the codes were made in 20 steps: in 30 they come back less exactly\n"
    );
}

fn check_refused(folder: &Path, model: &str, codes: &str, more: &[&str], expected: &Expect) {
    let arguments = ["-q", "sample", model, "--codes", codes, "--out", "drawn"];
    program::check(folder, &[&arguments[..], more].concat(), expected);
    assert!(!folder.join("drawn").exists(), "something was drawn");
}

#[test]
fn files_without_codes_are_refused() {
    let project = trained();
    let folder = project.path();
    encode(&project, &["--steps", "20", "--n-images", "2"]);
    let check = |codes: &str, expected: &Expect| {
        check_refused(folder, "run", codes, &[], expected);
    };
    check(
        "nowhere",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no codes in nowhere
          cause: cannot read nowhere
          cause: No such file or directory (os error 2)

        hint: give a .safetensors file that p2 encode wrote
    "#]],
    );
    check(
        "tiny.toml",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no codes in tiny.toml
          cause: cannot read tiny.toml
          cause: header too large

        hint: give a .safetensors file that p2 encode wrote
    "#]],
    );
    let model = "run/checkpoints/images-0000000060/model.safetensors";
    check(
        model,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no codes in run/checkpoints/images-0000000060/model.safetensors
          cause: its metadata is not that of codes
          cause: unknown field `data`, expected `codes` or `labels` at line 1 column 7

        hint: give a .safetensors file that p2 encode wrote
    "#]],
    );
    let bytes = fs::read(folder.join("codes.safetensors")).unwrap();
    fs::write(folder.join("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    check(
        "cut.safetensors",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no codes in cut.safetensors
          cause: cannot read cut.safetensors
          cause: incomplete metadata, file not fully covered

        hint: give a .safetensors file that p2 encode wrote
    "#]],
    );
}

#[test]
fn codes_of_another_kind_than_the_models_are_refused() {
    let project = trained();
    let folder = project.path();
    encode(&project, &["--steps", "20", "--n-images", "2"]);
    let codes = "codes.safetensors";
    let check = |model: &str, more: &[&str], expected: &Expect| {
        check_refused(folder, model, codes, more, expected);
    };
    check(
        "run",
        &["--class", "2"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: class 2 of a model with 2 classes

        hint: use --class from 0 to 1
    "#]],
    );
    check(
        "run",
        &["--n-images", "3"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: 3 images, but there are 2 codes

        hint: use --n-images from 1 to 2, or leave it away
    "#]],
    );
    check(
        "run",
        &["--n-images", "1", "--interpolate", "2"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: nothing lies between one code and the next: there is one

            hint: encode two images or more
        "#]],
    );
    check(
        "run",
        &["--steps", "1001"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: 1001 steps, but the model knows 1000 noise levels

        hint: use --steps from 1 to 1000
    "#]],
    );
    for (name, set) in [
        ("larger", "data.image_size=16"),
        ("cosine", "diffusion.schedule=cosine"),
    ] {
        let attention = "model.attention_resolutions=[8]";
        let attention = if name == "larger" { attention } else { set };
        project.finish(
            name,
            &["--max-steps", "1", "--set", set, "--set", attention],
        );
    }
    check(
        "larger",
        &[],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: codes of 8x8 images, but the model draws 16x16

        hint: give the model that encoded them, or another one of its size and noise
    "#]],
    );
    check(
        "cosine",
        &[],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: the codes come from another noise schedule than the model's

        hint: give the model that encoded them, or another one of its size and noise
    "#]],
    );
}

#[test]
fn images_that_cannot_be_encoded_are_refused() {
    let project = trained();
    let folder = project.path();
    project.draw("../flat/1.png", 1);
    let check = |data: &str, more: &[&str], expected: &Expect| {
        let arguments = [
            "-q",
            "encode",
            "run",
            "--data",
            data,
            "--out",
            "codes.safetensors",
        ];
        program::check(folder, &[&arguments[..], more].concat(), expected);
        assert!(
            !folder.join("codes.safetensors").exists(),
            "something was encoded"
        );
    };
    check(
        "nowhere",
        &[],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read data: nowhere
          cause: No such file or directory (os error 2)

        hint: give a folder or .zip of images with --data PATH, or --data bundled:emoji-32
    "#]],
    );
    check(
        "flat",
        &[],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: the model knows 2 classes, flat has 0
          because folders are classes, in the order of their names

        hint: say the class of all images with --class
    "#]],
    );
    check(
        "images",
        &["--class", "2"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: class 2 of a model with 2 classes

        hint: use --class from 0 to 1
    "#]],
    );
    check(
        "images",
        &["--n-images", "11"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: 11 images, but there are 10

        hint: use --n-images from 1 to 10, or leave it away
    "#]],
    );
    check(
        "images",
        &["--steps", "1001"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: 1001 steps, but the model knows 1000 noise levels

        hint: use --steps from 1 to 1000
    "#]],
    );
}
