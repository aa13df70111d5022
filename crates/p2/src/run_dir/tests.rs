//! A run has one folder and one process.

use super::*;
use crate::config::{Override, Run, RunConfig, resolve};

fn run(assignments: &[&str]) -> Run {
    let overrides: Vec<_> = assignments.iter().map(|text| Override::set(text)).collect();
    resolve(&Base::Preset("smoke".to_owned()), &overrides).unwrap()
}

fn open(path: &Path, start: Start) -> anyhow::Result<(RunDir, Before<RunConfig>)> {
    RunDir::open(path, start)
}

#[test]
fn a_run_is_found_again_with_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("runs/a");
    let (run_dir, before) = open(&path, Start::Either).unwrap();
    assert!(matches!(before, Before::Nothing));
    for folder in [
        run_dir.checkpoints(),
        run_dir.samples(),
        run_dir.tensorboard(),
    ] {
        assert!(folder.is_dir());
    }
    run_dir.write_config(&run(&["train.seed=5"])).unwrap();
    drop(run_dir);
    for start in [Start::Either, Start::Resume] {
        let Before::Run(found) = open(&path, start).unwrap().1 else {
            panic!("no run")
        };
        assert_eq!(*found, run(&["train.seed=5"]));
    }
}

#[test]
fn resume_insists_on_a_run_and_fresh_on_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let error = open(&path, Start::Resume).unwrap_err().to_string();
    assert!(error.contains("no run to continue"), "{error}");
    assert!(!path.exists(), "a refusal made a folder");
    let (run_dir, _) = open(&path, Start::Fresh).unwrap();
    run_dir.write_config(&run(&[])).unwrap();
    drop(run_dir);
    let error = open(&path, Start::Fresh).unwrap_err().to_string();
    assert!(error.contains("a run already"), "{error}");
}

#[test]
fn a_start_that_died_before_its_configuration_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let (run_dir, _) = open(folder.path(), Start::Either).unwrap();
    run_dir
        .write_manifest(&Manifest::new(1, "x".to_owned()))
        .unwrap();
    drop(run_dir);
    std::fs::write(folder.path().join(".config.toml.tmp"), "[da").unwrap();
    assert!(matches!(
        open(folder.path(), Start::Fresh).unwrap().1,
        Before::Nothing
    ));
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let (first, _) = open(folder.path(), Start::Either).unwrap();
    let error = open(folder.path(), Start::Either).unwrap_err().to_string();
    assert!(error.contains("another process is training"), "{error}");
    drop(first);
    open(folder.path(), Start::Either).unwrap();
}

#[test]
fn a_folder_of_other_things_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.tex"), "x").unwrap();
    let error = open(folder.path(), Start::Either).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_manifest_comes_back_and_a_damaged_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (run_dir, _) = open(folder.path(), Start::Either).unwrap();
    let mut manifest = Manifest::new(7, "abc".to_owned());
    let engine = Engine::of(
        crate::engine::Device::Cpu,
        p2_nn::Cpu::best(p2_nn::Threads::new(2)),
    );
    let change = crate::config::Change {
        key: "optim.lr".to_owned(),
        old: "1".to_owned(),
        new: "2".to_owned(),
    };
    manifest
        .starts
        .push(StartRecord::now(64, engine, vec![change]));
    run_dir.write_manifest(&manifest).unwrap();
    assert_eq!(run_dir.read_manifest().unwrap(), manifest);
    std::fs::write(folder.path().join("manifest.json"), "{").unwrap();
    let error = run_dir.read_manifest().unwrap_err().to_string();
    assert!(error.contains("damaged manifest"), "{error}");
}
