//! Drawn images, which depend on the model, the seed and their number alone.

use std::fs;
use std::path::Path;

use expect_test::{Expect, expect};
use p2::checkpoint::StoredTensors;

use super::program::{self, p2};
use super::project::{Project, names_in, stderr};

/// A model of two classes that has learnt a little, in `run`.
fn trained() -> Project {
    let project = Project::new();
    project.finish("run", &["--max-images", "24", "--threads", "1"]);
    project
}

/// The unrounded pixels of `n_images` images, by bits.
#[track_caller]
fn draw(project: &Project, model: &str, n_images: usize, more: &[&str]) -> Vec<u32> {
    let n = n_images.to_string();
    let arguments = [
        "sample",
        model,
        "--n-images",
        &n,
        "--out",
        "drawn",
        "--raw",
        "raw.safetensors",
    ];
    let output = p2(project.path(), &[&arguments[..], more].concat())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let raw = StoredTensors::open(&project.path().join("raw.safetensors")).unwrap();
    assert_eq!(raw.shape("images"), Some(&[n_images, 8, 8, 3][..]));
    raw.values("images")
        .unwrap()
        .into_iter()
        .map(f32::to_bits)
        .collect()
}

#[test]
fn neither_batch_nor_threads_nor_number_change_an_image() {
    let project = trained();
    let mut seen = Vec::new();
    for how in [
        &["--sampler", "ddim", "--eta", "0", "--steps", "5"][..],
        &["--sampler", "ddim", "--eta", "0.5", "--steps", "5"],
        &["--sampler", "ancestral", "--steps", "5"],
    ] {
        let expected = draw(&project, "run", 17, &[how, &["--threads", "1"]].concat());
        for (batch_size, threads) in [("1", "2"), ("3", "1"), ("3", "2"), ("16", "2")] {
            let more = ["--batch-size", batch_size, "--threads", threads];
            let drawn = draw(&project, "run", 17, &[how, &more].concat());
            assert!(drawn == expected, "{how:?} {more:?}");
        }
        let fewer = draw(&project, "run", 2, how);
        assert!(
            fewer == expected[..fewer.len()],
            "{how:?}: fewer images are others"
        );
        let another_seed = draw(&project, "run", 17, &[how, &["--seed", "1"]].concat());
        assert!(
            another_seed != expected,
            "{how:?}: the seed changes nothing"
        );
        assert!(
            !seen.contains(&expected),
            "{how:?} draws like another sampler"
        );
        seen.push(expected);
    }
}

#[test]
fn every_sampler_draws_an_image_alike_in_any_batch() {
    let project = trained();
    let mut seen = Vec::new();
    for how in [
        "ddim --spacing leading",
        "ddim --spacing trailing",
        "euler --spacing karras",
        "heun",
        "heun --spacing karras",
        "heun-churn",
        "euler-ancestral --eta 1",
        "euler-ancestral --eta 0.5",
        "dpm-2m",
        "dpm-2m --eta 1",
        "dpm-3m",
        "dpm-3m --eta 1",
        "dpm-2s",
        "dpm-2s --eta 1",
        "unipc",
        "plms",
        "flow",
        "pc-vp",
        "pc-ve",
    ] {
        let how: Vec<&str> = ["--sampler"].into_iter().chain(how.split(' ')).collect();
        let how = [&how, &["--steps", "6"][..]].concat();
        let expected = draw(
            &project,
            "run",
            3,
            &[&how[..], &["--threads", "1"]].concat(),
        );
        let more = ["--batch-size", "2", "--threads", "2"];
        let drawn = draw(&project, "run", 3, &[&how[..], &more].concat());
        assert!(drawn == expected, "{how:?}");
        let is_finite = |bits: &u32| f32::from_bits(*bits).is_finite();
        assert!(expected.iter().all(is_finite), "{how:?}");
        assert!(!seen.contains(&expected), "{how:?} draws like another");
        seen.push(expected);
    }
}

/// A sampler that is asked for need not suit the spacing of the model's own.
#[test]
fn a_discrete_sampler_leaves_the_spacing_of_the_models_own() {
    let project = Project::new();
    let set = ["sample.sampler=dpm-2m", "sample.spacing=karras"];
    let set = set.iter().flat_map(|each| ["--set", each]);
    let more: Vec<&str> = set.chain(["--max-images", "12"]).collect();
    project.finish("run", &more);
    let ancestral = ["--sampler", "ancestral", "--steps", "5"];
    let even = [&ancestral[..], &["--spacing", "even"]].concat();
    assert!(draw(&project, "run", 2, &ancestral) == draw(&project, "run", 2, &even));
    assert!(draw(&project, "run", 2, &[]) != draw(&project, "run", 2, &["--spacing", "even"]));
}

/// The reference's names for noise levels.
#[test]
fn levels_can_be_named() {
    let project = trained();
    let named = |spec: &str| {
        let sampler = ["--sampler", "ddim", "--eta", "0"];
        draw(
            &project,
            "run",
            2,
            &[&sampler[..], &["--respacing", spec]].concat(),
        )
    };
    let steps = ["--sampler", "ddim", "--eta", "0", "--steps", "5"];
    assert!(named("5") == draw(&project, "run", 2, &steps));
    let leading = [&steps[..], &["--spacing", "leading"]].concat();
    // A stride of 200 gives five of 1000 levels, both ways.
    assert!(named("ddim5") == draw(&project, "run", 2, &leading));
    assert!(named("1,1,3") != named("5") && named("3,1,1") != named("1,1,3"));
    fs::remove_dir_all(project.path().join("drawn")).unwrap();
    let respacing = ["--respacing", "ddim60"];
    check_refused(
        project.path(),
        "run",
        &respacing,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: --respacing "ddim60" selects no noise levels
          cause: cannot space 1000 timesteps as `ddim60`: no stride gives exactly 60 steps

        hint: give steps (250), steps of equal sections (10,15,25), ddim50, leading50 or trailing50
    "#]],
    );
}

/// The SDE of one sampler is no wish for fresh noise in another.
#[test]
fn another_sampler_than_the_models_own_has_its_usual_eta() {
    let project = Project::new();
    let set = ["sample.sampler=dpm-2m", "sample.eta=1"];
    let set = set.iter().flat_map(|each| ["--set", each]);
    let more: Vec<&str> = set.chain(["--max-images", "12"]).collect();
    project.finish("run", &more);
    for (sampler, usual) in [
        ("dpm-2m", "1"),
        ("ddim", "0"),
        ("dpm-3m", "0"),
        ("euler-ancestral", "1"),
    ] {
        let sampler = ["--sampler", sampler, "--steps", "5"];
        let drawn = draw(&project, "run", 2, &sampler);
        for eta in ["0", "1"] {
            let with_eta = draw(
                &project,
                "run",
                2,
                &[&sampler[..], &["--eta", eta]].concat(),
            );
            assert_eq!(drawn == with_eta, eta == usual, "{sampler:?} {eta}");
        }
    }
}

/// The mean of a step to the timestep before is one at timesteps, to which some samplers keep.
#[test]
fn a_mean_of_steps_is_drawn_from_at_timesteps_alone() {
    let project = Project::new();
    let set = ["--set", "diffusion.prediction=x-prev"];
    project.finish("run", &[&set[..], &["--max-images", "24"]].concat());
    let mut seen = Vec::new();
    for sampler in [
        "ancestral",
        "ddim",
        "euler",
        "heun",
        "dpm-3m",
        "unipc",
        "plms",
        "pc-vp",
    ] {
        let drawn = draw(&project, "run", 2, &["--sampler", sampler, "--steps", "6"]);
        assert!(drawn.iter().all(|bits| f32::from_bits(*bits).is_finite()));
        assert!(!seen.contains(&drawn), "{sampler} draws like another");
        seen.push(drawn);
    }
    fs::remove_dir_all(project.path().join("drawn")).unwrap();
    let karras = ["--sampler", "dpm-2m", "--spacing", "karras"];
    check_refused(
        project.path(),
        "run",
        &karras,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: karras spacing has noise levels between timesteps
          because the model predicts the mean of the step to the timestep before (x-prev), and knows none there

        hint: use --sampler ancestral or --sampler ddim, with --spacing even
    "#]],
    );
    for sampler in ["heun-churn", "dpm-2s", "flow"] {
        let arguments = [
            "sample",
            "run",
            "--n-images",
            "1",
            "--out",
            "drawn",
            "--sampler",
            sampler,
        ];
        let output = p2(project.path(), &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{sampler}");
    }
}

#[test]
fn evaluations_of_the_network_are_counted() {
    let project = trained();
    for (sampler, n_evaluations) in [("ddim", 6.0), ("heun", 11.0), ("plms", 6.0)] {
        let arguments = ["sample", "run", "--n-images", "3", "--out", "drawn"];
        let more = ["--steps", "6", "--sampler", sampler, "--json"];
        let output = p2(project.path(), &[&arguments[..], &more].concat()).output();
        let result: serde_json::Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        assert_eq!(result["nfe"], n_evaluations, "{sampler}");
    }
}

/// Pixels cut off to whole numbers, and the classes, at the places where NumPy's format has them.
#[test]
fn samples_are_saved_for_the_evaluator() {
    let project = trained();
    let npz = ["--npz", "for/evaluator.npz"];
    let bits = draw(&project, "run", 5, &npz);
    let file = fs::File::open(project.path().join("for/evaluator.npz")).unwrap();
    let mut zip = zip::ZipArchive::new(file).unwrap();
    let mut read = |name: &str| {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut zip.by_name(name).unwrap(), &mut bytes).unwrap();
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!(start % 64, 0);
        let header = String::from_utf8(bytes[10..start].to_vec()).unwrap();
        (header, bytes[start..].to_vec())
    };
    let (header, pixels) = read("arr_0.npy");
    assert!(header.contains("'descr': '|u1'"), "{header}");
    assert!(header.contains("'shape': (5, 8, 8, 3, )"), "{header}");
    assert_eq!(pixels.len(), bits.len());
    for (pixel, bits) in pixels.iter().zip(bits) {
        let expected = (f32::from_bits(bits) + 1.0) * 127.5;
        assert_eq!(*pixel, expected.clamp(0.0, 255.0).floor() as u8);
    }
    let (header, labels) = read("arr_1.npy");
    assert!(
        header.contains("'descr': '<i8'") && header.contains("(5, )"),
        "{header}"
    );
    let labels: Vec<u8> = labels.chunks(8).map(|label| label[0]).collect();
    assert_eq!(labels, [0, 1, 0, 1, 0]);
}

#[test]
fn classes_are_drawn_in_turn_or_alone() {
    let project = trained();
    let n_pixels = 8 * 8 * 3;
    let all = draw(&project, "run", 4, &[]);
    for class in [0, 1] {
        let alone = draw(&project, "run", 4, &["--class", &class.to_string()]);
        for (image, (a, b)) in all.chunks(n_pixels).zip(alone.chunks(n_pixels)).enumerate() {
            assert_eq!(a == b, image % 2 == class, "image {image}, class {class}");
        }
    }
}

#[test]
fn a_run_a_checkpoint_and_a_file_are_the_same_model() {
    let project = trained();
    let expected = draw(&project, "run", 3, &[]);
    let checkpoint = "run/checkpoints/images-0000000024";
    let averaged = "ema-halflife-40.safetensors";
    let file = project.path().join(checkpoint).join(averaged);
    let elsewhere = project.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::copy(&file, elsewhere.join("mine.safetensors")).unwrap();
    let file = file.to_str().unwrap();
    for model in [checkpoint, file, "elsewhere/mine.safetensors"] {
        assert!(draw(&project, model, 3, &[]) == expected, "{model}");
    }
    // The weights that are not averaged are another model.
    let weights = format!("{checkpoint}/model.safetensors");
    assert!(draw(&project, &weights, 3, &[]) != expected);
    // Pictures are named by number, in whatever order and company.
    let drawn = names_in(&project.path().join("drawn"));
    assert_eq!(
        drawn,
        ["000000.png", "000001.png", "000002.png", "grid.png"]
    );
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let project = trained();
    let before = draw(&project, "run/checkpoints/images-0000000012", 2, &[]);
    let newest = project.checkpoints("run").join("images-0000000024");
    fs::write(newest.join("state.json"), "{}").unwrap();
    let arguments = ["-q", "sample", "run", "--n-images", "1", "--out", "drawn"];
    let output = p2(project.path(), &arguments).output().unwrap();
    assert!(output.status.success());
    let said = stderr(&output);
    let expected = "warning: run/checkpoints/images-0000000024 is damaged and left alone: ";
    assert!(
        said.starts_with(expected) && said.lines().count() == 1,
        "{said}"
    );
    assert!(draw(&project, "run", 2, &[]) == before);
}

fn check_refused(folder: &Path, model: &str, more: &[&str], expected: &Expect) {
    let arguments = [
        &["sample", model, "--n-images", "1", "--out", "drawn"],
        more,
    ]
    .concat();
    program::check(folder, &arguments, expected);
    assert!(!folder.join("drawn").exists(), "something was drawn");
}

#[test]
fn what_is_no_model_is_refused() {
    let project = trained();
    let folder = project.path();
    let check = |model: &str, expected: &Expect| check_refused(folder, model, &[], expected);
    check(
        "nowhere",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: there is no model at nowhere

        hint: give a run folder, a checkpoint folder or a .safetensors file, as p2 train writes them
    "#]],
    );
    check(
        "images",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: there is no model at images

        hint: give a run folder, a checkpoint folder or a .safetensors file, as p2 train writes them
    "#]],
    );
    check(
        "tiny.toml",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot use tiny.toml
          cause: cannot read tiny.toml
          cause: header too large

        hint: give a run folder, a checkpoint folder or a .safetensors file, as p2 train writes them
    "#]],
    );
    check(
        "run/checkpoints/images-0000000024/optimizer.safetensors",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot use run/checkpoints/images-0000000024/optimizer.safetensors
          cause: it carries no configuration of p2

        hint: give a run folder, a checkpoint folder or a .safetensors file, as p2 train writes them
    "#]],
    );
    let model = folder.join("run/checkpoints/images-0000000024/model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(folder.join("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    check(
        "cut.safetensors",
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot use cut.safetensors
          cause: cannot read cut.safetensors
          cause: incomplete metadata, file not fully covered

        hint: give a run folder, a checkpoint folder or a .safetensors file, as p2 train writes them
    "#]],
    );
}

#[test]
fn what_the_model_cannot_draw_is_refused() {
    let project = trained();
    let folder = project.path();
    let check = |more: &[&str], expected: &Expect| check_refused(folder, "run", more, expected);
    check(
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
        &["--steps", "1001"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: 1001 steps, but the model knows 1000 noise levels

        hint: use --steps from 1 to 1000
    "#]],
    );
    check(
        &["--sampler", "ancestral", "--eta", "0.5"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: ancestral has no eta

            hint: leave --eta away, or use --sampler ddim
        "#]],
    );
    project.finish(
        "plain",
        &[
            "--max-steps",
            "1",
            "--set",
            "model.n_classes=0",
            "--set",
            "model.label_dropout=0",
        ],
    );
    check_refused(
        folder,
        "plain",
        &["--class", "0"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: the model knows no classes

        hint: leave --class away
    "#]],
    );
}

#[test]
fn a_damaged_checkpoint_that_is_asked_for_is_refused() {
    let project = trained();
    let checkpoint = "run/checkpoints/images-0000000024";
    let file = project
        .path()
        .join(checkpoint)
        .join("ema-halflife-40.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let arguments = ["sample", checkpoint, "--n-images", "1", "--out", "drawn"];
    let output = p2(project.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    for part in ["damaged checkpoint", "does not hold"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn the_folder_of_unrounded_pixels_is_made() {
    let project = trained();
    draw(&project, "run", 1, &[]);
    let raw = project.path().join("raw.safetensors");
    let first = fs::read(raw).unwrap();
    let arguments = ["sample", "run", "--n-images", "1", "--out", "drawn"];
    let more = ["--raw", "new/folder/raw.safetensors"];
    let output = p2(project.path(), &[&arguments[..], &more].concat()).output();
    assert!(output.unwrap().status.success());
    let second = fs::read(project.path().join("new/folder/raw.safetensors")).unwrap();
    assert!(second == first);
}

#[test]
fn a_folder_that_cannot_be_made_is_refused() {
    let project = trained();
    let folder = project.path();
    let arguments = [
        "-q",
        "sample",
        "run",
        "--n-images",
        "1",
        "--out",
        "tiny.toml/drawn",
    ];
    program::check(
        folder,
        &arguments,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot make the folder tiny.toml/drawn
          cause: Not a directory (os error 20)

        hint: a file is in the way: choose another folder with --out DIR
    "#]],
    );
    let arguments = [
        "-q",
        "sample",
        "run",
        "--n-images",
        "1",
        "--out",
        "tiny.toml",
    ];
    program::check(
        folder,
        &arguments,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot make the folder tiny.toml
          cause: File exists (os error 17)

        hint: a file is in the way: choose another folder with --out DIR
    "#]],
    );
}
