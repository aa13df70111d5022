//! Weightings: which there are, what they minimize, and what is refused.

use std::fs;

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

#[test]
fn numbers_are_those_of_the_dossier() {
    for (schedule, gamma, mean_weight, peak) in [
        ("linear", 1.0, 0.72449, None),
        ("linear", 0.5, 0.80589, None),
        ("cosine", 0.5, 0.64195, Some(-(2.0_f64.ln()))),
        ("cosine", 1.0, 0.50442, Some(-(3.0_f64.ln()))),
    ] {
        let spec = format!("p2:k=1,gamma={gamma}");
        let shown = json(&["weights", "show", &spec, "--schedule", schedule, "--json"]);
        let report = &shown["weightings"][0];
        let near = |value: &Value, expected: f64, tolerance: f64| {
            let value = value.as_f64().unwrap();
            assert!(
                (value - expected).abs() < tolerance,
                "{spec}: {value}, {expected}"
            );
        };
        assert_eq!(report["kind"], "p2");
        near(&report["mean_weight"], mean_weight, 5e-6);
        if let Some(peak) = peak {
            near(&report["peak_log_snr"], peak, 0.01);
        }
        let shares = report["stage_shares"].as_object().unwrap().values();
        near(
            &shares
                .map(|share| share.as_f64().unwrap())
                .sum::<f64>()
                .into(),
            1.0,
            1e-9,
        );
        assert_eq!(report["table"].as_array().unwrap().len(), 1000);
    }
}

#[test]
fn a_density_changes_the_objective_and_a_raw_kind_depends_on_the_prediction() {
    let peak = |arguments: &[&str]| {
        let shown = json(&[&["weights", "show", "--json"], arguments].concat());
        shown["weightings"][0]["peak_log_snr"].as_f64().unwrap()
    };
    let laplace = peak(&[
        "simple",
        "--schedule",
        "cosine",
        "--density",
        "{laplace={mean=1.0,scale=0.5}}",
    ]);
    assert!((laplace - 1.0).abs() < 0.02, "{laplace}");
    let raw = "p2-raw:k=1,gamma=1";
    assert!(peak(&[raw, "--prediction", "v"]) < peak(&[raw]) - 0.5);
    assert_eq!(
        peak(&["p2:k=1,gamma=1", "--prediction", "v"]),
        peak(&["p2:k=1,gamma=1"])
    );
}

#[test]
fn every_kind_is_listed() {
    let list = json(&["weights", "list", "--json"]);
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), p2::weights::catalog::EXAMPLES.len());
    let raw = list.iter().filter(|kind| kind["raw"] == true);
    assert_eq!(raw.count(), 4);
    let learns = list.iter().filter(|kind| kind["learns"] == true);
    assert_eq!(learns.count(), 2);
}

#[test]
fn levels_and_figure_are_written() {
    let folder = tempdir().unwrap();
    let arguments = [
        "weights",
        "show",
        "simple",
        "min-snr:gamma=5",
        "--csv",
        "w.csv",
        "--png",
        "w.png",
    ];
    let output = p2(folder.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let csv = fs::read_to_string(folder.path().join("w.csv")).unwrap();
    assert_eq!(csv.lines().count(), 2001);
    assert!(csv.lines().all(|line| line.split(',').count() == 11));
    let figure = image::open(folder.path().join("w.png")).unwrap().to_rgb8();
    assert_eq!(figure.dimensions(), (1200, 720));
    let curve = image::Rgb([213, 94, 0]);
    assert!(figure.pixels().filter(|pixel| **pixel == curve).count() > 500);
    // The axis at the bottom is drawn from end to end.
    assert!((110..1170).all(|x| *figure.get_pixel(x, 630) == image::Rgb([120; 3])));
}

#[test]
fn people_are_told_what_is_trained_with() {
    let folder = tempdir().unwrap();
    for target in ["eps", "x0", "v", "x-prev"] {
        let arguments = ["weights", "show", "simple", "--prediction", target];
        let output = p2(folder.path(), &arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let told = format!("the network is trained with the column `on {target}`");
        assert!(text.contains(&told), "{text}");
        assert!(text.contains(&format!("  on {target} ")), "{text}");
    }
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let folder = tempdir().unwrap();
    check(
        folder.path(),
        &["weights", "show", "min-sner:gamma=5"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: unknown weighting `min-sner` in `min-sner:gamma=5`

            hint: did you mean `min-snr`?
        "#]],
    );
    check(
        folder.path(),
        &["weights", "show", "p2:k=1"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: missing key `gamma` in `p2:k=1`

            hint: write it as in p2:gamma=1,k=1
        "#]],
    );
    check(
        folder.path(),
        &["weights", "show", "p2:k=-1,gamma=1"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: `p2:gamma=1,k=-1` is no weighting: k is -1, expected a finite number of at least 0

            hint: `p2 weights list` shows each with constants that work
        "#]],
    );
    check(
        folder.path(),
        &["weights", "show", "kohya-debiased-v"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: prediction eps cannot be trained with `kohya-debiased-v`
              because this raw weighting reproduces another program, which does not predict eps with it

            hint: try another --prediction or --schedule
        "#]],
    );
    check(
        folder.path(),
        &["weights", "show", "simple", "--schedule", "cosin"],
        &expect![[r#"
            exit: 2
            --- stdout
            --- stderr
            error: unknown value `cosin` for `diffusion.schedule`

            hint: change it with --schedule, --prediction, --density or --timesteps
        "#]],
    );
}
