//! Runs that begin with the weights of a model.

use super::project::{Project, names_in, stderr};

/// A run of some steps, to begin others with.
fn project() -> Project {
    let project = Project::new();
    project.finish("parent", &["--threads", "1", "--max-images", "24"]);
    project
}

#[test]
fn a_run_begins_with_the_averaged_weights_of_another() {
    let project = project();
    let parent = project.last_tensors("parent");
    let out = project
        .train(
            "child",
            &[
                "--init-from",
                "parent",
                "--max-images",
                "6",
                "--set",
                "optim.lr=1e-30",
            ],
        )
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let said = stderr(&out);
    assert!(
        said.contains("beginning with the weights of parent/checkpoints"),
        "{said}"
    );
    let child = project.last_tensors("child");
    let average = "ema-halflife-40.safetensors/";
    let mut n_tensors = 0;
    for (name, values) in &parent {
        let Some(name) = name.strip_prefix(average) else {
            continue;
        };
        assert_eq!(
            child[&format!("model.safetensors/{name}")],
            *values,
            "{name}"
        );
        assert_eq!(child[&format!("{average}{name}")], *values, "{name}");
        n_tensors += 1;
    }
    assert!(n_tensors > 50);
    let manifest = std::fs::read(project.path().join("child/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let from = manifest["init_from"].as_str().unwrap();
    assert!(
        from.ends_with("images-0000000024/ema-halflife-40.safetensors"),
        "{from}"
    );
}

#[test]
fn a_run_that_began_with_weights_is_killed_and_goes_on() {
    let project = project();
    let init = ["--init-from", "parent", "--threads", "1"];
    project.finish("whole", &init);
    for planned in [
        "checkpoint.before-rename:1",
        "train.step:1",
        "train.gradient:70",
    ] {
        project.train_until(planned, "killed", &init);
    }
    // The parent is needed no longer.
    std::fs::rename(project.path().join("parent"), project.path().join("moved")).unwrap();
    project.finish("killed", &["--threads", "1"]);
    let whole = project.last_checkpoint("whole");
    whole.assert_same(&project.last_checkpoint("killed"), "killed");
    assert_eq!(project.metrics("whole"), project.metrics("killed"));
    project.finish("random", &["--threads", "1"]);
    assert_ne!(project.metrics("whole"), project.metrics("random"));
}

#[test]
fn weights_that_were_never_saved_are_asked_for_again() {
    let project = project();
    let init = ["--init-from", "parent"];
    project.train_until("checkpoint.before-rename:1", "killed", &init);
    assert!(
        names_in(&project.checkpoints("killed"))
            .iter()
            .all(|name| name.starts_with('.'))
    );
    let output = project.train("killed", &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--init-from"),
        "{}",
        stderr(&output)
    );
    project.finish("killed", &init);
}

#[test]
fn other_classes_start_afresh_and_other_networks_are_refused() {
    let project = project();
    let said = |more: &[&str], code: i32| {
        let arguments = [&["--init-from", "parent", "--max-images", "6"], more].concat();
        let output = project
            .train(&more[1].replace('.', "-"), &arguments)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        stderr(&output)
    };
    let told = said(&["--set", "model.n_classes=7"], 0);
    assert!(told.contains("`label_emb.weight` starts afresh"), "{told}");
    let told = said(&["--set", "model.n_res_blocks=2"], 2);
    assert!(told.contains("cannot begin with the weights of"), "{told}");
    let told = said(&["--set", "diffusion.variance=fixed-small"], 2);
    assert!(told.contains("out.2.weight"), "{told}");
    let output = project
        .train("x", &["--init-from", "nowhere"])
        .output()
        .unwrap();
    assert!(stderr(&output).contains("there is no model at nowhere"));
}
