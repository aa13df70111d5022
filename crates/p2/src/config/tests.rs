//! Reading configurations: what is accepted, and what a user is told about the rest.

use std::fs;

use expect_test::{Expect, expect};

use super::section::{Heads, Weighting};
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

/// The message about `emoji-32` with one text replaced, read from a file.
fn check_file(from: &str, to: &str, expected: &Expect) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.toml");
    let text = include_str!("tests.toml");
    assert!(text.contains(from), "{from:?} is not in the preset");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    let problem = resolve(&Base::File(path), &[]).unwrap_err();
    let message = render(problem).replace(&format!("{}/", folder.path().display()), "");
    expected.assert_eq(&message);
}

fn check_set(assignment: &str, expected: &Expect) {
    expected.assert_eq(&render(emoji(&[assignment]).unwrap_err()));
}

#[test]
fn a_misspelt_key_is_named_with_its_place() {
    check_file(
        "gamma = 1.0",
        "gama = 1.0",
        &expect![[r#"
        error: unknown key `gama` in `loss.weighting`
          --> my.toml:31:37
           |
        31 | weighting = { kind = "p2", k = 1.0, gama = 1.0 }     # the paper's choice; gamma = 0 is the baseline
           |

        hint: did you mean `gamma`?"#]],
    );
    check_file(
        "beta1 ",
        "betta1 ",
        &expect![[r#"
        error: unknown key `betta1` in [optim]
          --> my.toml:37:1
           |
        37 | betta1         = 0.9                                   # usual
           |

        hint: did you mean `beta1`?"#]],
    );
    check_file(
        "[ema]",
        "[emma]",
        &expect![[r#"
        error: unknown key `emma` in the configuration
          --> my.toml:43:2
           |
        43 | [emma]
           |

        hint: did you mean `ema`?"#]],
    );
    check_file(
        "channels = 32",
        "chanels = 32",
        &expect![[r#"
        error: unknown value `chanels` for `model.heads`
          --> my.toml:17:27
           |
        17 | heads                 = { chanels = 32 }             # two to four heads
           |

        hint: did you mean `channels`?"#]],
    );
}

#[test]
fn an_unknown_name_is_refused_with_the_allowed_ones() {
    check_file(
        "\"linear\"",
        "\"quadratic\"",
        &expect![[r#"
        error: unknown value `quadratic` for `diffusion.schedule`
          --> my.toml:25:15
           |
        25 | schedule    = "quadratic"                                # as in the paper
           |

        hint: allowed here: `linear`, `cosine`"#]],
    );
    check_file(
        "\"linear\"",
        "\"cosin\"",
        &expect![[r#"
        error: unknown value `cosin` for `diffusion.schedule`
          --> my.toml:25:15
           |
        25 | schedule    = "cosin"                                # as in the paper
           |

        hint: did you mean `cosine`?"#]],
    );
    check_file(
        "\"p2\"",
        "\"p3\"",
        &expect![[r#"
        error: unknown value `p3` for `loss.weighting.kind`
          --> my.toml:31:22
           |
        31 | weighting = { kind = "p3", k = 1.0, gamma = 1.0 }     # the paper's choice; gamma = 0 is the baseline
           |

        hint: allowed here: `simple`, `p2`, `p2-raw`"#]],
    );
}

#[test]
fn a_missing_key_or_section_is_named() {
    check_file(
        "eps           = 1e-8",
        "",
        &expect![[r#"
        error: missing key `eps` in [optim]
          --> my.toml:33:2
           |
        33 | [optim]
           |

        hint: every value stands in the file; `p2 train --preset smoke --dry-run` shows all"#]],
    );
    check_file(
        ", gamma = 1.0",
        "",
        &expect![[r#"
        error: missing key `gamma` in `loss.weighting`
          --> my.toml:31:1
           |
        31 | weighting = { kind = "p2", k = 1.0 }     # the paper's choice; gamma = 0 is the baseline
           |

        hint: every value stands in the file; `p2 train --preset smoke --dry-run` shows all"#]],
    );
    check_file(
        "[sample]",
        "[train.more]",
        &expect![[r#"
        error: unknown key `more` in [train]
          --> my.toml:59:8
           |
        59 | [train.more]
           |

        hint: allowed here: `seed`, `batch_size`, `micro_batch_size`, `total_images`, `log_every`, `held_out_every`, `sample_every`, `checkpoint_every`, `keep_last`, `keep_every`"#]],
    );
}

#[test]
fn a_wrong_type_is_named() {
    check_file(
        "\"2M\"",
        "\"2MM\"",
        &expect![[r#"
        error: `train.total_images`: expected a whole number of images such as 12800, "200k" or "1.5M", found the text "2MM"
          --> my.toml:51:20
           |
        51 | total_images     = "2MM"                               # some 600 epochs
           |"#]],
    );
    check_file(
        "= 1000 ",
        "= 1000.5 ",
        &expect![[r#"
        error: `diffusion.n_timesteps`: expected a whole number, 0 or more, found `1000.5`
          --> my.toml:26:15
           |
        26 | n_timesteps = 1000.5                                    # as in the paper
           |"#]],
    );
    check_file(
        "[1, 2, 2]",
        "[1, -2, 2]",
        &expect![[r#"
        error: `model.channel_mult`: expected a whole number, 0 or more, found `-2`
          --> my.toml:14:29
           |
        14 | channel_mult          = [1, -2, 2]                     # 64 at 32x32, 128 at 16x16 and 8x8
           |"#]],
    );
    check_file(
        "{ channels = 32 }",
        "32",
        &expect![[r#"
        error: `model.heads`: expected one of channels, count
          --> my.toml:17:25
           |
        17 | heads                 = 32             # two to four heads
           |"#]],
    );
    check_file(
        "k = 1.0",
        "k = true",
        &expect![[r#"
        error: `loss.weighting`: expected a number, found `true`
          --> my.toml:31:13
           |
        31 | weighting = { kind = "p2", k = true, gamma = 1.0 }     # the paper's choice; gamma = 0 is the baseline
           |"#]],
    );
}

#[test]
fn a_value_out_of_range_is_named_with_the_range() {
    check_file(
        "channels              = 64",
        "channels              = 65",
        &expect![[r#"
            error: `model.channels` is 65; allowed: a multiple of 32, at most 65536
              --> my.toml:13:25
               |
            13 | channels              = 65                            # half of the paper's: a step takes a laptop well under a second
               |
              because each norm has 32 groups of channels

            hint: change it where it stands, or override it with --set model.channels=VALUE"#]],
    );
    check_file(
        "gamma = 1.0",
        "gamma = 7.0",
        &expect![[r#"
            error: `loss.weighting.gamma` is 7; allowed: 0 up to but not 5
              --> my.toml:31:45
               |
            31 | weighting = { kind = "p2", k = 1.0, gamma = 7.0 }     # the paper's choice; gamma = 0 is the baseline
               |
              because at gamma = 5 the clean levels, which the eye sees first, weigh nothing against the noisy ones

            hint: change it where it stands, or override it with --set loss.weighting.gamma=VALUE"#]],
    );
}

#[test]
fn broken_toml_is_named_with_its_place() {
    check_file(
        "beta1         = 0.9 ",
        "beta1         = ",
        &expect![[r#"
        error: not TOML: string values must be quoted, expected literal string
          --> my.toml:37:51
           |
        37 | beta1         =                                   # usual
           |"#]],
    );
    check_file(
        "[ema]",
        "[optim]",
        &expect![[r#"
        error: not TOML: duplicate key
          --> my.toml:43:2
           |
        43 | [optim]
           |"#]],
    );
}

#[test]
fn a_flag_gets_the_same_checks_as_a_file() {
    check_set(
        "loss.weighting.gama=0.5",
        &expect![[r#"
        error: unknown key `gama` in `loss.weighting`
         --> --set:1:16
          |
        1 | loss.weighting.gama=0.5
          |

        hint: did you mean `gamma`?"#]],
    );
    check_set(
        "optim.lr=-1",
        &expect![[r#"
            error: `optim.lr` is -1; allowed: above 0, finite
             --> --set:1:10
              |
            1 | optim.lr=-1
              |

            hint: change it where it stands, or override it with --set optim.lr=VALUE"#]],
    );
    check_set(
        "optim.lr=fast",
        &expect![[r#"
        error: `optim.lr`: expected a number, found the text "fast"
         --> --set:1:10
          |
        1 | optim.lr=fast
          |"#]],
    );
    check_set(
        "lr.optim.x=1",
        &expect![[r#"
        error: unknown key `lr` in the configuration
         --> --set:1:1
          |
        1 | lr.optim.x=1
          |

        hint: allowed here: `data`, `model`, `diffusion`, `loss`, `optim`, `ema`, `train`, `sample`"#]],
    );
    check_set(
        "optim.lr.x=1",
        &expect![[r#"
        error: `x` lies inside a value that is no table
         --> --set:1:10
          |
        1 | optim.lr.x=1
          |"#]],
    );
    check_set(
        "model.channel_mult=[1, 2",
        &expect![[r#"
        error: not a TOML value: unclosed array, expected `]`
         --> --set:1:20
          |
        1 | model.channel_mult=[1, 2
          |"#]],
    );
    check_set(
        "nonsense",
        &expect![[r#"
        error: `nonsense` is not of the form section.key=value

        hint: write it like --set optim.lr=1e-4"#]],
    );
    check_set(
        "optim.=1",
        &expect![[r#"
        error: `optim.=1` is not of the form section.key=value

        hint: write it like --set optim.lr=1e-4"#]],
    );
    check_set(
        "loss.weighting.kind=simple",
        &expect![[r#"
            error: unknown key `k` in `loss.weighting`
              --> src/config/tests.toml:31:28
               |
            31 | weighting = { kind = "p2", k = 1.0, gamma = 1.0 }     # the paper's choice; gamma = 0 is the baseline
               |

            hint: remove it; on the command line set the whole table, as in --set 'loss.weighting={ kind = "simple" }'"#]],
    );
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

        [diffusion]
        schedule = "linear"
        n_timesteps = 1000
        prediction = "eps"
        variance = "learned-range"

        [loss]
        weighting = { kind = "simple" }

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
        eta = 0.0
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
    for preset in PRESETS {
        assert!(preset.text.starts_with("# "), "{}", preset.name);
        assert!(!preset.summary().is_empty());
        for line in preset
            .text
            .lines()
            .filter(|line| line.contains(" = ") && !line.starts_with('#'))
        {
            let comment = line
                .rfind("# ")
                .unwrap_or_else(|| panic!("{}: no comment: {line}", preset.name));
            assert_eq!(comment, 54, "{}: {line}", preset.name);
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
