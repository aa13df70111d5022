//! Bounds on the likelihood of images.

use serde_json::Value;

use super::program::p2;
use super::project::{Project, stderr};

/// A model that has learnt a little from six images; four are held out.
fn trained() -> Project {
    let project = Project::new();
    let set = ["--set", "data.held_out=0.2", "--threads", "1"];
    project.finish("run", &set);
    project
}

#[track_caller]
fn bound(project: &Project, model: &str, more: &[&str]) -> Value {
    let arguments = [&["likelihood", model, "--data", "images", "--json"], more].concat();
    let output = p2(project.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn neither_batch_nor_threads_change_a_bound() {
    let project = trained();
    let more = ["--training", "--steps", "40"];
    let expected = bound(&project, "run", &[&more[..], &["--threads", "1"]].concat());
    for (batch_size, threads) in [("1", "2"), ("3", "1"), ("3", "2")] {
        let how = ["--batch-size", batch_size, "--threads", threads];
        let got = bound(&project, "run", &[&more[..], &how].concat());
        assert_eq!(got, expected, "{how:?}");
    }
    assert_eq!(expected["n_images"], 6);
    assert_eq!(expected["nfe"], 40);
    let other = bound(&project, "run", &[&more[..], &["--seed", "1"]].concat());
    assert_ne!(other["bits_per_dim"], expected["bits_per_dim"]);
}

#[test]
fn the_bound_is_the_sum_of_its_terms() {
    let project = trained();
    let bound = bound(&project, "run", &["--steps", "100"]);
    assert_eq!(bound["n_images"], 4);
    let number = |value: &Value| value.as_f64().unwrap();
    let terms: Vec<f64> = bound["terms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|term| number(&term["bits_per_dim"]))
        .collect();
    assert_eq!(terms.len(), 100);
    assert!(terms.iter().all(|&term| term >= 0.0), "{terms:?}");
    let total = terms.iter().sum::<f64>() + number(&bound["prior_bpd"]);
    assert!((total - number(&bound["bits_per_dim"])).abs() < 1e-9 * total);
    let stages = ["clean_up", "content", "coarse"].map(|name| number(&bound["stage_bpd"][name]));
    let total = stages.iter().sum::<f64>() + number(&bound["prior_bpd"]);
    assert!((total - number(&bound["bits_per_dim"])).abs() < 1e-9 * total);
    // Eight bits would need no model.
    assert!(number(&bound["bits_per_dim"]) < 40.0);
}

#[test]
fn fewer_levels_bound_worse() {
    let project = trained();
    let bits = |steps: &str| {
        let bound = bound(&project, "run", &["--training", "--steps", steps]);
        bound["bits_per_dim"].as_f64().unwrap()
    };
    let (few, many) = (bits("10"), bits("250"));
    assert!(many < few, "{many} {few}");
}

#[test]
fn neither_company_nor_threads_change_an_exact_likelihood() {
    let project = trained();
    let exact = |more: &[&str]| {
        let exact = ["--exact", "--tolerance", "1e-3"];
        bound(&project, "run", &[&exact[..], more].concat())
    };
    let both = exact(&["--probes", "2", "--threads", "1"]);
    assert_eq!(both["n_images"], 4);
    assert_eq!(
        (&both["n_probes"], &both["tolerance"]),
        (&2.into(), &1e-3.into())
    );
    let images: Vec<f64> = serde_json::from_value(both["images"].clone()).unwrap();
    let mean = images.iter().sum::<f64>() / 4.0;
    // JSON is read to an ulp or so.
    let total = both["bits_per_dim"].as_f64().unwrap();
    assert!((total - mean).abs() < 1e-12, "{total} {mean}");
    assert!(
        images
            .iter()
            .all(|bits| bits.is_finite() && bits.abs() < 40.0),
        "{images:?}"
    );
    let one = exact(&["--probes", "2", "--threads", "2", "--n-images", "1"]);
    assert_eq!(one["images"][0], images[0]);
    assert_eq!(one["standard_error"], Value::Null);
    for other in [
        exact(&["--n-images", "1"]),
        exact(&["--n-images", "1", "--seed", "1"]),
        exact(&["--n-images", "1", "--training"]),
    ] {
        assert_ne!(other["images"][0], one["images"][0]);
    }
    let finer = bound(&project, "run", &["--exact", "--n-images", "1"]);
    let coarser = exact(&["--n-images", "1"]);
    let number = |value: &Value| value.as_f64().unwrap();
    let [few, many] = [&coarser, &finer].map(|result| number(&result["nfe"]));
    assert!(few >= 7.0 && few < many, "{few} {many}");
    let [few, many] = [&coarser, &finer].map(|result| number(&result["bits_per_dim"]));
    assert!((few - many).abs() < 0.05, "{few} {many}");
}

#[test]
fn what_cannot_be_bounded_is_refused() {
    let project = Project::new();
    project.finish("run", &["--max-images", "12"]);
    for (more, message) in [
        (&["--data", "images"][..], "no held-out images"),
        (
            &["--data", "images", "--training", "--n-images", "11"],
            "11 images, but there are 10",
        ),
        (
            &["--data", "images", "--training", "--steps", "1001"],
            "knows 1000 noise levels",
        ),
        (&["--data", "nowhere", "--training"], "nowhere"),
        (&[], "--data <PATH>"),
        (
            &["--data", "images", "--exact", "--steps", "10"],
            "'--exact' cannot be used with '--steps <STEPS>'",
        ),
        (&["--data", "images", "--probes", "2"], "--exact"),
        (
            &["--data", "images", "--exact", "--tolerance", "0"],
            "expected a number above 0 and below 1",
        ),
    ] {
        let output = p2(project.path(), &[&["likelihood", "run"], more].concat()).output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(2), "{more:?}");
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
}
