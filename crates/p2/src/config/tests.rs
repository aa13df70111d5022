//! Reading and writing configurations.

/// What a user is told about those that cannot be read.
mod refused;

use std::fs;

use expect_test::expect;

use p2_diffusion::Weighting;

use super::section::Heads;
use super::*;
use crate::print::{ColorChoice, Printer, Verbosity};

fn preset(name: &str) -> Base {
    Base::Preset(name.to_owned())
}

fn emoji(assignments: &[&str]) -> Result<Run, Problem> {
    let overrides: Vec<_> = assignments.iter().map(|text| Override::set(text)).collect();
    resolve(&Base::File(TEST_CONFIG.into()), &overrides)
}

fn render(problem: Problem) -> String {
    Printer::new(Verbosity::Normal, ColorChoice::Never).render(&anyhow::Error::new(problem))
}

#[test]
fn single_values_are_set() {
    let run = emoji(&[
        "loss.weighting.gamma=0.5",
        "optim.lr = 1e-4",
        "data.path=/some where/é=1 #2",
        "train.total_images=1.5M",
        "model.heads={ count = 4 }",
        "model.channel_mult=[1, 2]",
        "data.horizontal_flip=true",
        "diffusion.schedule=\"cosine\"",
        "model.attention_resolutions=[16]",
    ])
    .unwrap();
    assert_eq!(run.loss.weighting, Weighting::P2 { k: 1.0, gamma: 0.5 });
    assert_eq!(run.optim.lr, 1e-4);
    assert_eq!(run.data.path, "/some where/é=1 #2");
    assert_eq!(run.train.total_images, Count(1_500_000));
    assert_eq!(run.model.heads, Heads::Count(4));
    assert_eq!(run.model.channel_mult, [1, 2]);
    assert!(run.data.horizontal_flip);
    assert_eq!(run.diffusion.schedule, section::Schedule::Cosine);
}

#[test]
fn a_flag_of_its_own_takes_any_text_as_it_is() {
    for path in ["true", "1", "[x]", "a \"b\" 'c'\n", ""] {
        let run = resolve(
            &Base::File(TEST_CONFIG.into()),
            &[Override::flag("--data", "data.path", &path.into())],
        );
        assert_eq!(run.unwrap().data.path, path);
    }
}

#[test]
fn the_last_setting_of_a_key_holds() {
    assert_eq!(
        emoji(&["train.seed=1", "train.seed=2"]).unwrap().train.seed,
        2
    );
}

#[test]
fn written_toml_reads_back_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    for each in PRESETS {
        let run = resolve(&preset(each.name), &[]).unwrap();
        fs::write(&path, run.to_toml().unwrap()).unwrap();
        assert_eq!(resolve(&Base::File(path.clone()), &[]).unwrap(), run);
    }
    let awkward = emoji(&["data.path=\"a\\n'\\\"\"", "optim.lr=1.2345678901234567e-7"]).unwrap();
    fs::write(&path, awkward.to_toml().unwrap()).unwrap();
    assert_eq!(resolve(&Base::File(path), &[]).unwrap(), awkward);
}

#[test]
fn written_toml_looks_like_a_preset() {
    expect![[r#"
        [data]
        path = "bundled:emoji-32"
        image_size = 32
        crop = "center"
        horizontal_flip = false
        held_out = 0.1
        group_by = "first-code-point"
        skin_tones = "one"

        [model]
        channels = 64
        channel_mult = [1, 2, 2]
        n_res_blocks = 1
        attention_resolutions = [16, 8]
        heads = { channels = 32 }
        attention_order = "legacy"
        resample = "res-block"
        time_conditioning = "scale-shift"
        dropout = 0.0
        n_classes = 0
        label_dropout = 0.0
        low_res_size = 0
        low_res_noise = 0.0

        [diffusion]
        schedule = "linear"
        n_timesteps = 1000
        time = "discrete"
        rescale_timesteps = false
        prediction = "eps"
        variance = "learned-range"

        [loss]
        objective = "rescaled-mse"
        weighting = { kind = "simple" }
        density = "uniform"
        strata = 1
        antithetic = false

        [optim]
        lr = 0.0005
        warmup_images = 3200
        decay = "none"
        beta1 = 0.9
        beta2 = 0.999
        eps = 0.00000001
        weight_decay = 0.0
        max_grad_norm = 1.0

        [ema]
        halflife_images = 20000
        rampup_ratio = 0.05

        [train]
        seed = 0
        batch_size = 32
        micro_batch_size = 32
        precision = "f32"
        recompute = "nothing"
        total_images = 2000000
        log_every = 640
        held_out_every = 6400
        sample_every = 6400
        checkpoint_every = 6400
        keep_last = 2
        keep_every = 500000

        [sample]
        sampler = "ddim"
        n_steps = 25
        spacing = "even"
        eta = 0.0
        guidance = 1.0
        n_images = 64
        seed = 0
    "#]]
    .assert_eq(
        &emoji(&["loss.weighting={kind=\"simple\"}"])
            .unwrap()
            .to_toml()
            .unwrap(),
    );
}

#[test]
fn metadata_holds_everything_but_the_path_and_reads_back() {
    let run = emoji(&["data.path=/home/me/secret"]).unwrap();
    let json = run.to_metadata().unwrap();
    assert!(!json.contains("secret"));
    assert_eq!(
        Run::from_metadata(&json).unwrap(),
        emoji(&["data.path=\"\""]).unwrap()
    );
    let bad = json.replace("\"channels\":64", "\"channels\":65");
    assert!(
        Run::from_metadata(&bad)
            .unwrap_err()
            .to_string()
            .contains("model.channels")
    );
    assert!(Run::from_metadata("{}").is_err());
}

#[test]
fn presets_say_everything_in_aligned_comments() {
    for preset in PRESETS.iter().chain(&CLASSIFIER_PRESETS) {
        assert!(preset.text.starts_with("# "), "{}", preset.name);
        assert!(!preset.summary().is_empty());
        let mut column = None;
        for line in preset
            .text
            .lines()
            .filter(|line| line.contains(" = ") && !line.starts_with('#'))
        {
            let comment = line
                .rfind("# ")
                .unwrap_or_else(|| panic!("{}: no comment: {line}", preset.name));
            // Further right where a value is long, but all below each other.
            let column = *column.get_or_insert(comment);
            assert!(comment == column && column >= 54, "{}: {line}", preset.name);
        }
    }
}

#[test]
fn a_run_is_named_after_its_preset_file_or_folder() {
    let name = |path: &str| Base::File(path.into()).run_name();
    assert_eq!(preset("smoke").run_name(), "smoke");
    assert_eq!(name("configs/flowers.toml"), "flowers");
    assert_eq!(name("runs/roses/config.toml"), "roses");
    assert_eq!(name("config.toml"), "config");
}

#[test]
fn an_empty_data_path_has_a_way_out() {
    let run = resolve(&preset("paper-256"), &[]).unwrap();
    let problem = run.data_path().unwrap_err();
    assert!(problem.way_out().unwrap().contains("--data PATH"));
    assert_eq!(emoji(&[]).unwrap().data_path().unwrap(), "bundled:emoji-32");
}

#[test]
fn no_text_makes_the_reader_panic() {
    let text = include_str!("tests.toml");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.toml");
    let last_key = text.rfind("seed").unwrap();
    let mut n_refused = 0;
    for index in (0..text.len()).step_by(37) {
        for garbage in ["\"", "[", "\u{0}", "9999999999999999999999", "é"] {
            if !text.is_char_boundary(index) {
                continue;
            }
            let mut broken = text.to_owned();
            broken.insert_str(index, garbage);
            fs::write(&path, broken).unwrap();
            n_refused += usize::from(
                resolve(&Base::File(path.clone()), &[])
                    .map_err(render)
                    .is_err(),
            );
        }
        fs::write(&path, &text.as_bytes()[..index.min(last_key)]).unwrap();
        assert!(
            resolve(&Base::File(path.clone()), &[])
                .map_err(render)
                .is_err()
        );
    }
    assert!(n_refused > 50, "{n_refused}");
}
