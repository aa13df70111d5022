//! Where a run's values come from, and what is wrong with them.

use std::fs;

use expect_test::expect;
use tempfile::tempdir;

use super::program::{check, p2};

/// A complete configuration file called `my.toml`, with one text replaced.
fn folder_with(from: &str, to: &str) -> tempfile::TempDir {
    let folder = tempdir().unwrap();
    let preset = include_str!("../../../../configs/smoke.toml");
    assert!(preset.contains(from));
    fs::write(folder.path().join("my.toml"), preset.replacen(from, to, 1)).unwrap();
    folder
}

#[test]
fn a_misspelt_key_is_corrected() {
    let folder = folder_with("gamma = 1.0", "gama = 1.0");
    check(
        folder.path(),
        &["train", "my.toml"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: unknown key `gama` in `loss.weighting`
              --> my.toml:37:38
               |
            37 | weighting  = { kind = "p2", k = 1.0, gama = 1.0 }    # the published command's; emoji-32 has gamma = 0.5
               |

            hint: did you mean `gamma`?
        "#]],
    );
}

#[test]
fn a_misspelt_key_on_the_command_line_is_corrected() {
    let folder = tempdir().unwrap();
    let arguments = ["train", "--preset", "smoke", "--set", "optim.learning=1e-4"];
    check(
        folder.path(),
        &arguments,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: unknown key `learning` in [optim]
         --> --set:1:7
          |
        1 | optim.learning=1e-4
          |

        hint: allowed here: `lr`, `warmup_images`, `decay`, `beta1`, `beta2`, `eps`, `weight_decay`, `max_grad_norm`
    "#]],
    );
    let arguments = ["train", "--preset", "smoke", "--set", "train.batchsize=4"];
    check(
        folder.path(),
        &arguments,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: unknown key `batchsize` in [train]
         --> --set:1:7
          |
        1 | train.batchsize=4
          |

        hint: did you mean `batch_size`?
    "#]],
    );
}

#[test]
fn a_value_out_of_range_is_refused() {
    let folder = folder_with("eta      = 0.0 ", "eta      = 1.5 ");
    check(
        folder.path(),
        &["train", "my.toml"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: `sample.eta` is 1.5; allowed: 0 to 1
              --> my.toml:74:12
               |
            74 | eta      = 1.5                                        # the same noise gives the same picture
               |

            hint: change it where it stands, or override it with --set sample.eta=VALUE
        "#]],
    );
}

#[test]
fn a_configuration_that_is_a_folder_is_refused() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("my.toml")).unwrap();
    check(
        folder.path(),
        &["train", "my.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read the configuration: my.toml
          cause: Is a directory (os error 21)

        hint: `p2 presets` lists the configurations that need no file
    "#]],
    );
}

#[test]
fn a_configuration_that_is_no_text_is_refused() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("my.toml"), b"[data]\n\xff\xfe").unwrap();
    check(
        folder.path(),
        &["train", "my.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: the configuration is not UTF-8 text: my.toml
          cause: invalid utf-8 sequence of 1 bytes from index 7

        hint: save it as UTF-8 in a text editor
    "#]],
    );
}

#[test]
fn a_missing_configuration_is_named() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["train", "nowhere.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read the configuration: nowhere.toml
          cause: No such file or directory (os error 2)

        hint: `p2 presets` lists the configurations that need no file
    "#]],
    );
    check(
        folder.path(),
        &["train", "smoke"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read the configuration: smoke
          cause: No such file or directory (os error 2)

        hint: for the preset write --preset smoke
    "#]],
    );
}

#[test]
fn an_unknown_preset_is_corrected() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["train", "--preset", "emoji32"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: there is no preset `emoji32`

            hint: did you mean `emoji-32`?
        "#]],
    );
    check(
        folder.path(),
        &["train", "--preset", "photos"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: there is no preset `photos`

            hint: the presets are smoke, emoji-32, bench-small, bench-medium, paper-256, p2-ffhq-256, p2-celebahq-256, p2-cub-256, p2-afhq-dog-256, p2-flowers-256, p2-metfaces-256, p2-cub-256-conv-resample, p2-cub-256-attention-middle, p2-cub-256-two-res-blocks, p2-cub-256-fast, ddpm-cifar10, ddpm-256, iddpm-cifar10, iddpm-cifar10-vlb, iddpm-64, iddpm-64-vlb, adm-64, adm-128, adm-256, adm-256-uncond, adm-lsun-256, adm-64-256, edm-cifar10, edm-64; `p2 presets` says what they are
        "#]],
    );
}

#[test]
fn a_preset_without_images_asks_for_them() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["train", "--preset", "paper-256"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: no images are given: `data.path` is empty

            hint: give a folder or .zip of images with --data PATH, or --data bundled:emoji-32
        "#]],
    );
}

#[test]
fn a_device_that_this_build_does_not_know_is_refused() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["train", "--preset", "smoke", "--device", "cuda:0"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: invalid value 'cuda:0' for '--device <DEVICE>': this build computes on `cpu` alone

            For more information, try '--help'.
        "#]],
    );
}

#[test]
fn resume_and_fresh_exclude_each_other() {
    let folder = tempdir().unwrap();
    let arguments = ["train", "--preset", "smoke", "--resume", "--fresh"];
    check(
        folder.path(),
        &arguments,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: the argument '--resume' cannot be used with '--fresh'

        Usage: p2 train --resume <CONFIG.toml|--preset <NAME>>

        For more information, try '--help'.
    "#]],
    );
}

#[test]
fn a_dry_run_prints_what_reads_back_to_the_same() {
    let folder = tempdir().unwrap();
    let arguments = [
        "train",
        "--preset",
        "smoke",
        "--seed",
        "7",
        "--data",
        "my images",
        "--dry-run",
    ];
    let first = p2(folder.path(), &arguments).output().unwrap();
    assert!(first.status.success());
    fs::write(folder.path().join("again.toml"), &first.stdout).unwrap();
    let second = p2(folder.path(), &["train", "again.toml", "--dry-run"])
        .output()
        .unwrap();
    assert_eq!(first.stdout, second.stdout);
    assert!(second.status.success());
    let text = String::from_utf8(first.stdout).unwrap();
    assert!(
        text.contains("seed = 7\n") && text.contains("path = \"my images\"\n"),
        "{text}"
    );
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        1,
        "a dry run made files"
    );
}

#[test]
fn a_doubtful_value_is_a_warning() {
    let folder = tempdir().unwrap();
    let arguments = [
        "-q",
        "train",
        "--preset",
        "smoke",
        "--set",
        "loss.weighting.gamma=3",
        "--dry-run",
    ];
    let output = p2(folder.path(), &arguments).output().unwrap();
    assert!(output.status.success());
    expect![[r#"
        warning: loss.weighting.gamma = 3 is above 2: samples tend to keep visible noise; the paper's are 0.5 and 1
    "#]]
    .assert_eq(&String::from_utf8(output.stderr).unwrap());
}

#[test]
fn a_malformed_fault_is_refused() {
    let folder = tempdir().unwrap();
    let output = p2(folder.path(), &["presets"])
        .env("P2_FAULT", "nonsense")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    expect![[r#"
        error: P2_FAULT=nonsense is not of the form point:count or point:count=EFFECT, EFFECT one of enospc, eio, nan

        hint: unset P2_FAULT: it is for tests
    "#]]
    .assert_eq(&String::from_utf8(output.stderr).unwrap());
}
