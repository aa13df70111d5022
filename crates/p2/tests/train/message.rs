//! What the program says about images, folders and runs that it cannot use.

use std::fs;

use expect_test::{Expect, expect};

use super::program;
use super::project::{Project, names_in};

fn check(project: &Project, arguments: &[&str], expected: &Expect) {
    program::check(project.path(), arguments, expected);
}

#[test]
fn a_missing_folder_of_images_is_named() {
    let project = Project::new();
    check(
        &project,
        &["train", "tiny.toml", "--data", "photos"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read data: photos
          cause: No such file or directory (os error 2)

        hint: give a folder or .zip of images with --data PATH, or --data bundled:emoji-32
    "#]],
    );
    assert_eq!(
        names_in(project.path()),
        ["images", "tiny.toml"],
        "a run was made"
    );
}

#[test]
fn images_of_another_kind_are_refused() {
    let project = Project::new();
    check(
        &project,
        &["train", "tiny.toml", "--data", "tiny.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read data: tiny.toml is neither a folder nor a .zip

        hint: give a folder or .zip of images with --data PATH, or --data bundled:emoji-32
    "#]],
    );
    fs::write(project.path().join("x.zip"), "PK, but no archive").unwrap();
    check(
        &project,
        &["train", "tiny.toml", "--data", "x.zip"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: cannot read archive: x.zip
          cause: invalid Zip archive: Could not find EOCD

        hint: pack the images anew, or give the folder that they lie in
    "#]],
    );
    check(
        &project,
        &["train", "tiny.toml", "--data", "bundled:cats"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no bundled data called `cats`

        hint: there is bundled:emoji-32
    "#]],
    );
}

#[test]
fn a_folder_without_usable_images_is_refused() {
    let project = Project::without_images();
    check(
        &project,
        &["train", "tiny.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no usable image in images

        hint: images are files that end in jpg, jpeg, png, gif, bmp, webp, in it or in folders below
    "#]],
    );
    fs::write(project.path().join("images/a.png"), "").unwrap();
    fs::write(project.path().join("images/b.jpg"), "no jpeg").unwrap();
    check(
        &project,
        &["train", "tiny.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: no usable image in images: 2 skipped, the first is a.png: the file is empty

        hint: images are files that end in jpg, jpeg, png, gif, bmp, webp, in it or in folders below
    "#]],
    );
}

#[test]
fn a_batch_larger_than_the_data_is_refused() {
    let project = Project::new();
    let arguments = ["train", "tiny.toml", "--set", "train.batch_size=11"];
    check(
        &project,
        &arguments,
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: batch of 11 images from only 10 training images in images

        hint: set train.batch_size to at most 10, or give more images
    "#]],
    );
}

#[test]
fn more_classes_than_the_model_knows_are_refused() {
    let project = Project::new();
    project.draw("emu/10.png", 10);
    check(
        &project,
        &["train", "tiny.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: images has 3 classes, the model only 2

        hint: raise model.n_classes
    "#]],
    );
}

#[test]
fn a_run_that_should_be_there_or_not_is_missed_or_refused() {
    let project = Project::new();
    check(
        &project,
        &["train", "tiny.toml", "--resume"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        images: 10 images to train on, 0 held out
        error: there is no run to continue in runs/tiny

        hint: leave --resume away to begin one, or give the folder of the run with --out DIR
    "#]],
    );
    project.finish("run", &["--max-steps", "1"]);
    check(
        &project,
        &["train", "tiny.toml", "--out", "run", "--fresh"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        images: 10 images to train on, 0 held out
        error: there is a run already in run

        hint: leave --fresh away to continue it, or choose another folder with --out DIR
    "#]],
    );
    fs::create_dir(project.path().join("other")).unwrap();
    fs::write(project.path().join("other/letter.txt"), "").unwrap();
    check(
        &project,
        &["train", "tiny.toml", "--out", "other"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        images: 10 images to train on, 0 held out
        error: other holds no run, but other things, such as letter.txt

        hint: choose another folder with --out DIR
    "#]],
    );
    check(
        &project,
        &["train", "tiny.toml", "--out", "tiny.toml"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        images: 10 images to train on, 0 held out
        error: cannot use tiny.toml
          cause: Not a directory (os error 20)

        hint: a file is in the way: choose another folder with --out DIR
    "#]],
    );
}

#[test]
fn a_run_cannot_become_another_one() {
    let project = Project::new();
    project.finish("run", &["--max-steps", "1"]);
    let arguments = [
        "train",
        "tiny.toml",
        "--out",
        "run",
        "--set",
        "model.dropout=0.5",
    ];
    check(
        &project,
        &arguments,
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            images: 10 images to train on, 0 held out
            error: a run cannot be continued with another `model.dropout`: it has 0.2, now given 0.5
              because only these may change on the way: data.path, loss.weighting, optim.lr, train.recompute, train.total_images, train.log_every, train.held_out_every, train.sample_every, train.checkpoint_every, train.keep_last, train.keep_every

            hint: give the old value, or start another run with --out DIR
        "#]],
    );
    project.draw("cat/new.png", 11);
    check(
        &project,
        &["train", "tiny.toml", "--out", "run"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        images: 11 images to train on, 0 held out
        error: the images are not those that run was begun with
          because the same place in the run would mean another image

        hint: restore the images, or begin another run with --out DIR
    "#]],
    );
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew() {
    let project = Project::new();
    project.finish("run", &["--max-images", "24", "--threads", "1"]);
    for name in names_in(&project.checkpoints("run")) {
        let state = project.checkpoints("run").join(name).join("state.json");
        fs::write(state, "{}").unwrap();
    }
    let before = project.last_checkpoint("run");
    check(
        &project,
        &["train", "tiny.toml", "--out", "run"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        images: 10 images to train on, 0 held out
        error: no checkpoint in run/checkpoints is usable
          because the newest, run/checkpoints/images-0000000024, is damaged: state.json: missing field `format` at line 1 column 2

        hint: train anew into another folder with --out DIR
    "#]],
    );
    before.assert_same(&project.last_checkpoint("run"), "damaged");
}

#[test]
fn limits_beyond_any_run_are_survived() {
    let project = Project::new();
    project.finish("run", &["--max-minutes", "1e17", "--max-images", "6"]);
    let most = u64::MAX.to_string();
    project.finish("run", &["--max-steps", &most, "--max-images", "12"]);
    assert_eq!(project.last_checkpoint("run").name, "images-0000000012");
}
