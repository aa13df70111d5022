//! What is told, and what is not.

use super::super::check;
use super::super::tests::with;

const DENSITY: &str = "loss.density={log-normal={mean=0.0,std=1.0}}";
const IMPORTANCE: &str = "loss.density={loss-second-moment={n_history=10,uniform=0.001}}";

fn weighting(text: &str) -> String {
    format!("loss.weighting={{kind={text}}}")
}

/// Each of the assignments is doubtful for one reason, which is told.
#[track_caller]
fn check_told(rows: &[(&[&str], &str)]) {
    for (assignments, expected) in rows {
        let warnings = check(&with(assignments)).unwrap();
        assert_eq!(warnings.len(), 1, "{assignments:?}: {warnings:#?}");
        assert!(warnings[0].contains(expected), "{}", warnings[0]);
    }
}

fn karras([from, to]: [f64; 2]) -> String {
    format!("diffusion.schedule={{karras={{sigma_min={from:?},sigma_max={to:?},rho=7.0}}}}")
}

#[test]
fn weights_that_are_not_what_they_seem() {
    let (clean, noisy) = (karras([0.01, 0.4]), karras([1.0, 80.0]));
    let min_snr = weighting("\"min-snr\",gamma=5.0");
    check_told(&[
        (&["loss.weighting.gamma=3.0"][..], "keep visible noise"),
        (
            &[&weighting("\"p2-raw\",k=1.0,gamma=1.0")],
            "mistakes included",
        ),
        (&[&min_snr, &clean], "or write x0-uniform,"),
        (&[&min_snr, &noisy], "or write simple,"),
        (
            &[&weighting("\"max-snr\",gamma=5.0"), &clean],
            "or write simple,",
        ),
        (
            &[&weighting("\"truncated-snr\""), &noisy],
            "or write x0-uniform,",
        ),
    ]);
}

#[test]
fn preferences_that_count_twice() {
    check_told(&[
        (&[DENSITY][..], "for the paper's objective"),
        (
            &[&weighting("\"flow-cosmap\""), DENSITY],
            "written as a weight",
        ),
        (
            &[
                &weighting("\"edm\",sigma_data=1.0"),
                "diffusion.schedule={log-normal={mean=0.0,std=1.0}}",
                DENSITY,
            ],
            "has its levels where its density is",
        ),
        (
            &[
                &weighting("\"flow-cosmap\""),
                "diffusion.schedule={log-normal={mean=0.0,std=1.0}}",
            ],
            "flow-cosmap weighs by one as well",
        ),
    ]);
}

#[test]
fn what_learns_or_runs_in_vain() {
    let cosine = "diffusion.schedule=cosine";
    check_told(&[
        (
            &[&*weighting(
                "\"adaptive-buckets\",n_buckets=300,min_log_snr=50.0,max_log_snr=60.0,beta=0.99",
            )][..],
            "all levels in one bucket",
        ),
        (
            &[
                IMPORTANCE,
                "train.total_images=9k",
                "ema.halflife_images=1k",
            ],
            "the run has 9k",
        ),
        (
            &[
                &weighting("\"vlb\""),
                "diffusion.time=continuous",
                "diffusion.variance=fixed-small",
            ],
            "write vlb-continuous",
        ),
        (
            &[
                &weighting("\"simple\""),
                "loss.density={laplace={mean=0.0,scale=0.001}}",
            ],
            "try a wider density",
        ),
        (
            &[
                &weighting(
                    "\"adaptive-buckets\",n_buckets=300,min_log_snr=-10.0,max_log_snr=10.0,beta=0.99",
                ),
                IMPORTANCE,
            ],
            "one undoes the other",
        ),
        (
            &[&weighting("\"x0-uniform\""), cosine],
            "the others hardly count",
        ),
        (
            &[
                &weighting("\"simple\""),
                "loss.objective=rescaled-kl",
                "diffusion.prediction=x0",
            ],
            "loss.objective = rescaled-kl puts",
        ),
        (
            &[
                "ema.halflife_images=4k",
                "ema.rampup_ratio=0",
                "train.total_images=3k",
            ],
            "longer than the run of 3k images",
        ),
        (
            &["sample.sampler=heun", "sample.eta=0.5"],
            "changes nothing: heun",
        ),
        (
            &["diffusion.variance=learned", "sample.sampler=ancestral"],
            "take 1000 steps or ddim",
        ),
    ]);
}

#[test]
fn what_is_usual_is_not_told() {
    let min_snr = weighting("\"min-snr\",gamma=5.0");
    let (v, cosine) = ("diffusion.prediction=v", "diffusion.schedule=cosine");
    for assignments in [
        &[][..],
        &[IMPORTANCE],
        &["loss.weighting.gamma=0.0", DENSITY],
        &[&min_snr],
        &[&min_snr, v, cosine],
        &[&weighting("\"x0-uniform\""), v, cosine],
        &["ema.halflife_images=4k", "train.total_images=3k"],
        &[&weighting("\"edm\",sigma_data=1.0"), DENSITY],
        &[&weighting("\"simple\""), "loss.objective=kl"],
        &[&weighting("\"simple\""), "loss.objective=kl", v, cosine],
        &["diffusion.variance=learned"],
    ] {
        assert_eq!(
            check(&with(assignments)).unwrap(),
            [""; 0],
            "{assignments:?}"
        );
    }
}
