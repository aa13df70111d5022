//! Pictures and held-out losses during a run, which change nothing of it.

use std::fs;
use std::path::PathBuf;

use super::project::{Project, names_in, stderr};

const WATCHED: [&str; 12] = [
    "--set",
    "train.sample_every=60",
    "--set",
    "train.held_out_every=60",
    "--set",
    "data.held_out=0.3",
    "--set",
    "sample.n_images=5",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.micro_batch_size=4",
];

/// The same training, unwatched.
const ALONE: [&str; 6] = [
    "--set",
    "data.held_out=0.3",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.micro_batch_size=4",
];

fn pictures(project: &Project, out: &str) -> Vec<(String, Vec<u8>)> {
    let folder: PathBuf = project.path().join(out).join("samples");
    let read = |name: String| (name.clone(), fs::read(folder.join(name)).unwrap());
    names_in(&folder).into_iter().map(read).collect()
}

#[test]
fn pictures_show_the_same_noise_and_leave_the_run_as_it_is() {
    let project = Project::new();
    project.finish("watched", &[&WATCHED[..], &["--threads", "2"]].concat());
    project.finish("again", &[&WATCHED[..], &["--threads", "1"]].concat());
    let drawn = pictures(&project, "watched");
    let names: Vec<&str> = drawn.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["images-0000000060.png", "images-0000000120.png"]);
    assert_ne!(drawn[0].1, drawn[1].1, "the weights have moved in between");
    assert!(drawn == pictures(&project, "again"));
    assert_eq!(project.metrics("watched"), project.metrics("again"));

    let held_out =
        |record: &&serde_json::Map<_, _>| record.contains_key("held_out/mse_eps_content");
    assert_eq!(
        project.metrics("watched").iter().filter(held_out).count(),
        2
    );

    project.finish("alone", &ALONE);
    assert!(project.last_tensors("watched") == project.last_tensors("alone"));
}

#[test]
fn a_run_killed_between_pictures_ends_with_the_same_ones() {
    let project = Project::new();
    project.finish("whole", &WATCHED);
    project.train_until("train.loss:25", "run", &WATCHED);
    project.finish("run", &WATCHED);
    assert!(pictures(&project, "whole") == pictures(&project, "run"));
    assert_eq!(project.metrics("whole"), project.metrics("run"));
}

#[test]
fn minutes_end_a_run_with_a_picture_and_a_checkpoint() {
    let project = Project::new();
    let more = ["--max-minutes", "0.05", "--set", "train.total_images=100M"];
    let output = project
        .train("run", &[&WATCHED[..], &more].concat())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("the same command continues"),
        "{}",
        stderr(&output)
    );
    assert!(!pictures(&project, "run").is_empty());
    assert!(!names_in(&project.checkpoints("run")).is_empty());
}
