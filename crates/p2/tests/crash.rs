//! Checkpoints survive a process that is killed at any point of saving, and a full disk.

#![allow(clippy::disallowed_methods, reason = "tests write scratch files")]
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};

use p2::checkpoint::{
    NamedTensor, Position, Retention, StoredTensors, TensorFile, clean, newest, save,
};
use p2::fault;

const FOLDER: &str = "P2_CRASH_TEST_FOLDER";
const VALUE: &str = "P2_CRASH_TEST_VALUE";

fn files(value: f32) -> Vec<TensorFile<'static>> {
    ["model.safetensors", "optimizer.safetensors"]
        .map(|name| TensorFile {
            name: name.to_owned(),
            metadata: None,
            tensors: vec![NamedTensor {
                name: "w".to_owned(),
                shape: vec![3],
                values: vec![value; 3].into(),
            }],
        })
        .to_vec()
}

fn save_at(folder: &Path, images_seen: u64, value: f32) -> anyhow::Result<()> {
    let position = Position {
        images_seen,
        step: images_seen,
    };
    let retention = Retention {
        keep_last: 1,
        keep_every: 0,
    };
    save(
        &folder.join("checkpoints"),
        position,
        &files(value),
        retention,
    )
    .map(drop)
}

/// Not a test of its own: what the killed process does, as this program called again by the others.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let folder = Path::new(&folder);
    let value = std::env::var(VALUE).unwrap().parse().unwrap();
    fault::arm_from_env().unwrap();
    clean(&folder.join("checkpoints")).unwrap();
    if let Err(error) = save_at(folder, 128, value) {
        let hint = p2::problem::Problem::inside(&error).and_then(|problem| problem.way_out());
        fs::write(
            folder.join("error"),
            format!("{error:#} | {}", hint.unwrap_or_default()),
        )
        .unwrap();
    }
}

fn save_128_in_child(folder: &Path, value: f32, planned: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--quiet"])
        .env(FOLDER, folder)
        .env(VALUE, value.to_string())
        .env(fault::VARIABLE, planned)
        .output()
        .unwrap()
        .status
}

/// Images and value of the checkpoint that a resumed run would start from.
fn resumed(folder: &Path) -> (u64, f32) {
    clean(&folder.join("checkpoints")).unwrap();
    let found = newest(&folder.join("checkpoints")).unwrap().unwrap();
    assert!(found.skipped.is_empty(), "{:?}", found.skipped);
    let values = ["model.safetensors", "optimizer.safetensors"].map(|name| {
        StoredTensors::open(&found.path.join(name))
            .unwrap()
            .values("w")
            .unwrap()[0]
    });
    assert_eq!(values[0], values[1], "files of two checkpoints are mixed");
    (found.state.position.images_seen, values[0])
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Kills a save at every point; each time the run goes on from one of `expected`.
#[track_caller]
fn check(prepare: impl Fn(&Path), planned: &str, expected: (u64, f32)) {
    use std::os::unix::process::ExitStatusExt as _;
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let status = save_128_in_child(folder.path(), 2.0, planned);
    assert_eq!(status.signal(), Some(9), "{planned} was not passed");
    assert_eq!(resumed(folder.path()), expected, "{planned}");
    // The run continues, and nothing is left behind.
    save_at(folder.path(), 128, 3.0).unwrap();
    assert_eq!(resumed(folder.path()), (128, 3.0), "{planned}");
    assert_eq!(entries(folder.path()), ["images-0000000128"], "{planned}");
}

#[test]
fn a_save_that_is_killed_leaves_the_old_or_the_new_checkpoint() {
    let prepare = |folder: &Path| save_at(folder, 64, 1.0).unwrap();
    let (old, new) = ((64, 1.0), (128, 2.0));
    for (planned, expected) in [
        ("checkpoint.write:1", old),
        ("checkpoint.after-temp-write:1", old),
        ("checkpoint.after-temp-write:2", old),
        ("checkpoint.after-temp-write:3", old),
        ("checkpoint.before-fsync:1", old),
        ("checkpoint.after-fsync:1", old),
        ("checkpoint.before-rename:1", old),
        ("checkpoint.after-rename:1", new),
        ("checkpoint.before-prune:1", new),
        ("checkpoint.within-prune:1", new),
        ("checkpoint.after-prune:1", new),
    ] {
        check(prepare, planned, expected);
    }
}

#[test]
fn a_replacement_that_is_killed_leaves_the_old_or_the_new_checkpoint() {
    let prepare = |folder: &Path| save_at(folder, 128, 1.0).unwrap();
    let (old, new) = ((128, 1.0), (128, 2.0));
    for (planned, expected) in [
        ("checkpoint.after-temp-write:3", old),
        ("checkpoint.before-rename:1", old),
        ("checkpoint.between-renames:1", old),
        ("checkpoint.after-replace:1", new),
        ("checkpoint.after-rename:1", new),
    ] {
        check(prepare, planned, expected);
    }
}

#[test]
fn a_full_disk_keeps_the_last_checkpoint_and_says_so() {
    for count in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), 64, 1.0).unwrap();
        let status = save_128_in_child(
            folder.path(),
            2.0,
            &format!("checkpoint.write:{count}=enospc"),
        );
        assert!(status.success(), "{status}");
        let error = fs::read_to_string(folder.path().join("error")).unwrap();
        for part in [
            "earlier ones are intact",
            "safetensors",
            "no storage space",
            "the disk is full",
        ] {
            let is_state = part == "safetensors" && count == 3;
            assert!(is_state || error.contains(part), "{part}: {error}");
        }
        assert_eq!(entries(folder.path()), ["images-0000000064"]);
        assert_eq!(resumed(folder.path()), (64, 1.0));
    }
}
