//! Measuring: which numbers come out, and what is refused.

use expect_test::expect;
use serde_json::Value;
use tempfile::tempdir;

use super::program::{check, p2};

fn json(arguments: &[&str]) -> Value {
    let folder = tempdir().unwrap();
    let output = p2(folder.path(), arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The numbers under a key: one, or a list of so many.
fn positive(value: &Value, key: &str) -> usize {
    let numbers = match &value[key] {
        Value::Array(list) => list.clone(),
        other => vec![other.clone()],
    };
    for number in &numbers {
        assert!(number.as_f64().unwrap() > 0.0, "{key}: {number}");
    }
    numbers.len()
}

#[test]
fn training_is_measured_on_random_pixels() {
    let arguments = ["bench", "--preset", "smoke", "--json", "--steps", "2"];
    let small = ["--set", "data.image_size=16", "--batch-size", "2"];
    let report = json(&[&arguments[..], &small[..]].concat());
    for key in [
        "train_images_per_second",
        "forward_images_per_second",
        "gemm_peak_gflops",
        "train_share_of_gemm_peak",
        "multiply_adds_per_image",
        "n_parameters",
        "n_threads",
    ] {
        assert_eq!(positive(&report, key), 1);
    }
    if cfg!(target_os = "linux") {
        assert_eq!(positive(&report, "peak_memory_bytes"), 1);
    }
    assert_eq!(positive(&report, "step_seconds"), 2);
    assert_eq!(positive(&report, "forward_seconds"), 2);
    assert_eq!(report["batch_size"], 2);
    let ops: Vec<&str> = report["ops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|op| op["op"].as_str().unwrap())
        .collect();
    for op in [
        "conv 3x3",
        "linear and 1x1",
        "group norm",
        "attention",
        "resample",
        "elementwise",
        "optimizer",
        "rest",
    ] {
        assert!(ops.contains(&op), "{op} is not among {ops:?}");
    }
}

#[test]
fn drawing_is_measured_in_whole_drawings() {
    let arguments = ["bench", "--preset", "smoke", "--sampling", "--json"];
    let few = ["--steps", "1", "--set", "sample.n_images=3"];
    let report = json(&[&arguments[..], &few[..]].concat());
    assert_eq!(positive(&report, "sampling_images_per_second"), 1);
    assert_eq!(positive(&report, "draw_seconds"), 1);
    assert_eq!(
        (&report["n_images"], &report["n_sampling_steps"]),
        (&3.into(), &4.into())
    );
    assert_eq!(report["step_seconds"], Value::Null);
}

#[test]
fn the_measured_networks_have_their_published_sizes() {
    for (preset, n_parameters) in [
        ("bench-small", 5_662_598),
        ("bench-medium", 56_470_566),
        ("paper-256", 93_563_910),
    ] {
        let info = json(&["info", "--preset", preset, "--json"]);
        assert_eq!(info["n_parameters"], n_parameters, "{preset}");
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["bench", "--preset", "bench-smal"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: there is no preset `bench-smal`

            hint: did you mean `bench-small`?
        "#]],
    );
    check(
        folder.path(),
        &["bench", "--preset", "smoke", "--set", "model.channels=33"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: `model.channels` is 33; allowed: a multiple of 32, at most 65536
             --> --set:1:16
              |
            1 | model.channels=33
              |
              because each norm has 32 groups of channels

            hint: change it where it stands, or override it with --set model.channels=VALUE
        "#]],
    );
    check(
        folder.path(),
        &["bench", "--steps", "0"],
        &expect![[r#"
        exit: 2
        --- stdout
        --- stderr
        error: invalid value '0' for '--steps <STEPS>': number would be zero for non-zero type

        For more information, try '--help'.
    "#]],
    );
}
