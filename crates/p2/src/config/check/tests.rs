//! What is in its range, and by which key the rest is refused.

use super::*;
use crate::config::{Base, ClassifierRun, Configuration as _, Override, TEST_CONFIG, resolve};

pub(super) fn with(assignments: &[&str]) -> RunConfig {
    let base = Base::File(TEST_CONFIG.into());
    // Values are put in by serde alone: the ranges are what is tested.
    let mut tree = base.tree(RunConfig::PRESETS).unwrap();
    for assignment in assignments {
        Override::set(assignment).apply(&mut tree).unwrap();
    }
    crate::config::read::read(&tree).unwrap()
}

#[test]
fn values_outside_their_range_are_refused_by_key() {
    let rows: &[(&str, &[&str])] = &[
        ("data.image_size", &["0", "4097", "30", "2"]),
        ("data.held_out", &["1.0", "-0.1", "nan"]),
        (
            "model.channels",
            &["0", "48", "9223372036854775807", "9223372036854775776"],
        ),
        (
            "model.channel_mult",
            &["[]", "[1,0]", "[1,100000]", "[9223372036854775807]"],
        ),
        ("model.n_res_blocks", &["0", "65"]),
        (
            "model.attention_resolutions",
            &["[15]", "[64]", "[16,16]", "[4]"],
        ),
        ("model.heads.channels", &["0", "48", "256"]),
        ("model.dropout", &["1.0", "-0.1", "nan"]),
        ("model.n_classes", &["1000001"]),
        ("model.label_dropout", &["1.0", "-0.1", "0.1"]),
        ("model.low_res_size", &["32", "33"]),
        ("model.low_res_noise", &["0.1", "-0.1"]),
        ("diffusion.n_timesteps", &["0", "20", "100001"]),
        ("loss.weighting.k", &["0", "-1", "inf", "nan"]),
        ("loss.weighting.gamma", &["-0.1", "5", "6", "inf", "nan"]),
        ("optim.lr", &["0", "-1e-4", "inf", "nan"]),
        ("optim.beta1", &["1.0", "-0.1"]),
        ("optim.beta2", &["1.0", "nan"]),
        ("optim.eps", &["0", "inf"]),
        ("optim.weight_decay", &["-1", "inf"]),
        ("optim.max_grad_norm", &["-1", "nan"]),
        ("ema.halflife_images", &["0"]),
        ("ema.rampup_ratio", &["-1", "inf"]),
        ("train.batch_size", &["0"]),
        ("train.micro_batch_size", &["0", "33"]),
        ("train.total_images", &["0"]),
        ("train.log_every", &["0"]),
        ("train.checkpoint_every", &["0"]),
        ("train.keep_last", &["0"]),
        ("sample.n_steps", &["0", "1001"]),
        ("sample.spacing", &["karras"]),
        ("sample.guidance", &["-1", "inf", "2"]),
        ("sample.eta", &["-0.1", "1.1", "nan"]),
        ("sample.n_images", &["0", "4097"]),
    ];
    for (key, values) in rows {
        for value in *values {
            let violation = check(&with(&[&format!("{key}={value}")])).unwrap_err();
            assert_eq!(violation.key, *key, "{key}={value}");
        }
    }
}

#[test]
fn values_at_the_edge_of_their_range_are_accepted() {
    for assignments in [
        &["data.held_out=0"][..],
        &["model.channel_mult=[1]", "model.attention_resolutions=[]"],
        &[
            "data.image_size=1",
            "model.channel_mult=[1]",
            "model.attention_resolutions=[1]",
        ],
        &["model.heads={count=64}"],
        &["diffusion.n_timesteps=21", "sample.n_steps=21"],
        &[
            "diffusion.schedule=cosine",
            "diffusion.n_timesteps=2",
            "sample.n_steps=2",
        ],
        &["loss.weighting.gamma=0"],
        &["loss.weighting={kind=\"simple\"}"],
        &[
            "optim.beta1=0",
            "optim.weight_decay=0",
            "optim.max_grad_norm=0",
        ],
        &[
            "train.sample_every=0",
            "train.held_out_every=0",
            "train.keep_every=0",
        ],
        &["sample.eta=1"],
    ] {
        assert_eq!(check(&with(assignments)), Ok(vec![]), "{assignments:?}");
    }
}

#[test]
fn heads_are_checked_in_the_middle_even_without_other_attention() {
    let config = with(&["model.attention_resolutions=[]", "model.heads={count=3}"]);
    assert_eq!(check(&config).unwrap_err().key, "model.heads.count");
}

#[test]
fn a_decay_needs_room_after_the_warm_up() {
    let warmup = "optim.warmup_images=2M";
    assert_eq!(
        check(&with(&[warmup, "optim.decay=cosine"]))
            .unwrap_err()
            .key,
        "optim.warmup_images"
    );
    assert_eq!(check(&with(&[warmup])), Ok(vec![]));
}

#[test]
fn a_gamma_above_2_is_a_warning() {
    assert!(
        check(&with(&["loss.weighting.gamma=2"]))
            .unwrap()
            .is_empty()
    );
    let warnings = check(&with(&["loss.weighting.gamma=2.5"])).unwrap();
    assert!(warnings[0].contains("2.5"), "{warnings:?}");
}

#[test]
fn all_presets_are_in_range_without_warnings() {
    for preset in crate::config::PRESETS {
        let run = resolve(&Base::Preset(preset.name.to_owned()), &[]).unwrap();
        assert_eq!(run.warnings(), &[] as &[String], "{}", preset.name);
    }
    for preset in crate::config::CLASSIFIER_PRESETS {
        let run = ClassifierRun::resolve(&Base::Preset(preset.name.to_owned()), &[]).unwrap();
        assert_eq!(run.warnings(), &[] as &[String], "{}", preset.name);
    }
}

/// The network refuses what does not fit together as well, without knowing where the values stand.
/// Whatever passes here must pass there, and nothing may be refused here that it could be built of.
#[test]
fn sizes_that_pass_are_those_that_a_network_can_be_built_of() {
    let (mut n_passed, mut n_refused) = (0, 0);
    for size in ["1", "8", "12", "32"] {
        for channels in ["0", "32", "48", "64"] {
            for mult in ["[]", "[0]", "[1]", "[1,3]", "[2,1,2]", "[1,1,1,1]"] {
                for attention in ["[]", "[8]", "[4,8]", "[16]"] {
                    for heads in ["{channels=32}", "{channels=0}", "{count=3}", "{count=4}"] {
                        let config = with(&[
                            &format!("data.image_size={size}"),
                            &format!("model.channels={channels}"),
                            &format!("model.channel_mult={mult}"),
                            &format!("model.attention_resolutions={attention}"),
                            &format!("model.heads={heads}"),
                        ]);
                        let checked = check(&config).is_ok();
                        let network = crate::model::unet(&config).check();
                        assert_eq!(checked, network.is_ok(), "{:?}: {network:?}", config.model);
                        n_passed += usize::from(checked);
                        n_refused += usize::from(!checked);
                    }
                }
            }
        }
    }
    assert!(n_passed > 50 && n_refused > 50, "{n_passed} {n_refused}");
}
