//! Networks of many configurations, built and told from their parameters.

use p2_nn::{Cpu, Threads};

use super::*;
use crate::config::{Base, Override, Run, resolve};
use crate::model::Model;

fn run(overrides: &[&str]) -> Run {
    let overrides: Vec<_> = overrides.iter().map(|text| Override::set(text)).collect();
    resolve(&Base::Preset("smoke".into()), &overrides).unwrap()
}

fn shapes(run: &Run) -> Shapes {
    let model = Model::zeros(run, Cpu::best(Threads::new(1))).unwrap();
    let params = model.params().iter();
    params
        .map(|param| (param.name().to_owned(), param.reference_shape()))
        .collect()
}

/// Values that change nothing else, so that each row says what it is about.
const PLAIN: [&str; 6] = [
    "data.image_size=32",
    "model.channels=32",
    "model.channel_mult=[1,2]",
    "model.n_res_blocks=1",
    "model.attention_resolutions=[]",
    "model.heads={channels=32}",
];

const ROWS: [&[&str]; 18] = [
    &[],
    &["model.channels=64"],
    &["model.channel_mult=[1]"],
    &["model.channel_mult=[2]", "model.resample=conv"],
    &["model.channel_mult=[1,1,2,3]"],
    &["model.channel_mult=[3,1,1]"],
    &["model.n_res_blocks=2"],
    &["model.n_res_blocks=3", "model.channel_mult=[1,1,1]"],
    &["model.attention_resolutions=[32]"],
    &["model.attention_resolutions=[16,32]"],
    &[
        "model.attention_resolutions=[16]",
        "model.channel_mult=[1,1,2]",
    ],
    &["model.resample=conv"],
    &[
        "model.resample=conv",
        "model.attention_resolutions=[8,16]",
        "model.channel_mult=[1,2,3]",
        "model.n_res_blocks=2",
    ],
    &["model.time_conditioning=additive"],
    &["model.n_classes=10"],
    &["diffusion.variance=fixed-small"],
    &["diffusion.variance=learned"],
    &["model.low_res_size=8"],
];

#[test]
fn networks_are_told_from_their_parameters() {
    for row in ROWS {
        let run = run(&[&PLAIN[..], row].concat());
        let found = infer(&shapes(&run)).unwrap();
        assert_eq!(found, Architecture::of(&run), "{row:?}");
        assert_eq!(found.differences(&run), [], "{row:?}");
        // All that it does not say is said to be open.
        let mut keys: Vec<_> = found.assignments().iter().map(|each| each.key).collect();
        keys.extend(found.left_open().iter().map(|each| each.key));
        keys.extend([
            found.attention_resolutions(32).key,
            found.n_classes(0.0).key,
        ]);
        let config = serde_json::to_value(run.config()).unwrap();
        for section in ["model", "diffusion"] {
            for key in config[section].as_object().unwrap().keys() {
                let key = format!("{section}.{key}");
                // Of training alone.
                let of_training = ["model.dropout", "model.low_res_noise", "diffusion.time"];
                let is_training = of_training.contains(&key.as_str());
                assert!(
                    is_training || keys.contains(&key.as_str()),
                    "{row:?}: {key}"
                );
            }
        }
    }
}

#[test]
fn the_papers_network_is_told() {
    let run = resolve(&Base::Preset("paper-256".into()), &[]).unwrap();
    let found = infer(&shapes(&run)).unwrap();
    assert_eq!(
        found,
        Architecture {
            channels: 128,
            channel_mult: vec![1, 1, 2, 2, 4, 4],
            n_res_blocks: 1,
            attention_levels: vec![4],
            resample: Some(Resample::ResBlock),
            time_conditioning: TimeConditioning::ScaleShift,
            n_label_rows: 0,
            out_channels: 6,
            enlarges: false,
        }
    );
    let resolutions = found.attention_resolutions(256).to_string();
    assert_eq!(resolutions, "model.attention_resolutions=[16]");
}

#[test]
fn an_embedding_of_no_class_is_none_of_a_class() {
    let run = run(&[
        &PLAIN[..],
        &["model.n_classes=10", "model.label_dropout=0.1"],
    ]
    .concat());
    let found = infer(&shapes(&run)).unwrap();
    assert_eq!(found.n_label_rows, 11);
    assert_eq!(found.n_classes(0.1).value, "10");
    assert_eq!(found.n_classes(0.0).value, "11");
    assert_eq!(found.differences(&run), []);
}

#[test]
fn differences_are_the_values_to_set() {
    for (row, expected) in [
        (
            &["model.channels=64"][..],
            &["model.channels=64 for 32"][..],
        ),
        (&["model.n_res_blocks=3"], &["model.n_res_blocks=3 for 1"]),
        (
            &["model.channel_mult=[1,2,2]", "model.resample=conv"],
            &[
                "model.channel_mult=[1,2,2] for [1,2]",
                "model.resample=conv for res-block",
            ],
        ),
        (
            &["model.channel_mult=[1]", "model.attention_resolutions=[32]"],
            &[
                "model.channel_mult=[1] for [1,2]",
                "model.attention_resolutions=[32] for []",
            ],
        ),
        (
            &[
                "model.n_classes=5",
                "model.time_conditioning=additive",
                "diffusion.variance=fixed-small",
            ],
            &[
                "model.time_conditioning=additive for scale-shift",
                "model.n_classes=5 for 0",
                "diffusion.variance=fixed-large for learned-range",
            ],
        ),
    ] {
        let learned = ["diffusion.variance=learned-range"];
        let plain = run(&[&PLAIN[..], &learned].concat());
        let file = run(&[&PLAIN[..], &learned, row].concat());
        let found = infer(&shapes(&file)).unwrap().differences(&plain);
        let found: Vec<_> = found
            .iter()
            .map(|each| format!("{} for {}", each.needed, each.has))
            .collect();
        assert_eq!(found, expected, "{row:?}");
    }
}

#[test]
fn other_networks_are_told_apart() {
    let unet = shapes(&run(&PLAIN));
    let changed = |change: &dyn Fn(&mut Shapes)| -> String {
        let mut shapes = unet.clone();
        change(&mut shapes);
        let problem = infer(&shapes).unwrap_err();
        crate::print::Printer::new(
            crate::print::Verbosity::Normal,
            crate::print::ColorChoice::Never,
        )
        .render(&problem.into())
    };
    let set = |name: &'static str, shape: &'static [usize]| {
        move |shapes: &mut Shapes| drop(shapes.insert(name.to_owned(), shape.to_vec()))
    };
    let without = |part: &'static str| {
        move |shapes: &mut Shapes| shapes.retain(|name, _| !name.starts_with(part))
    };
    for (said, message) in [
        (changed(&without("output_blocks.")), "of a classifier"),
        (
            changed(&set("input_blocks.0.0.weight", &[32, 4, 3, 3])),
            "of shape [32, 4, 3, 3]",
        ),
        (changed(&set("out.2.weight", &[4])), "4 channels of output"),
        (changed(&set("out.2.weight", &[])), "no `out.2.weight`"),
        (
            changed(&without("input_blocks.")),
            "no `input_blocks.0.0.weight`",
        ),
        (changed(&without("time_embed.")), "no `time_embed.0.weight`"),
        (
            changed(&set("time_embed.0.weight", &[256, 64])),
            "32 channels at level 0, no multiple of the 64",
        ),
        (
            changed(&set("time_embed.0.weight", &[256, 0])),
            "no multiple of the 0",
        ),
        (
            changed(&without("output_blocks.0.")),
            "an encoder of 4 blocks and a decoder of 3",
        ),
        (
            changed(&set("output_blocks.0.1.conv.weight", &[1])),
            "of which [0, 1] double the image",
        ),
        (
            changed(&set("input_blocks.1.0.emb_layers.1.weight", &[33, 128])),
            "33 channels of noise level for 32",
        ),
    ] {
        assert!(said.contains(message), "{message}: {said}");
    }
}
