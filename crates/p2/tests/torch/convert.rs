//! Weights there and back.

use std::path::Path;
use std::process::Output;

use candle_core::{Device, Tensor};
use p2::checkpoint::{NamedTensor, StoredTensors};
use p2::config::{Base, resolve};
use p2::model::file::load;
use p2::model::{Condition, Model, Noised};
use p2::torch::TorchFile;
use p2_nn::{Cpu, Threads};

use super::program::{NETWORK, fixture, p2, set};

#[track_caller]
fn convert(folder: &Path, input: &str, output: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["convert", input, output];
    if input.ends_with(".pt") {
        arguments.extend(["--preset", "smoke"]);
        arguments.extend(set(&NETWORK));
    }
    arguments.extend(more);
    p2(folder, &arguments)
}

#[track_caller]
fn converted(folder: &Path, input: &str, output: &str, more: &[&str]) {
    let done = convert(folder, input, output, more);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

#[test]
fn pytorch_weights_are_a_model_and_go_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    converted(at, &fixture("plain.pt"), "a.safetensors", &[]);
    let stored = StoredTensors::open(&at.join("a.safetensors")).unwrap();
    // By the formula of the script that made the fixture.
    let mut file = TorchFile::open(Path::new(&fixture("plain.pt"))).unwrap();
    let names: Vec<String> = file.tensors().keys().cloned().collect();
    assert!(names.len() > 50, "{}", names.len());
    assert!(names.iter().map(String::as_str).eq(stored.names()));
    let first = stored.values("time_embed.0.weight").unwrap();
    for (i, value) in first.iter().enumerate().take(1000) {
        let expected = 0.1 * (0.37 * i as f64).sin();
        assert!((f64::from(*value) - expected).abs() < 1e-7, "{i}: {value}");
    }
    // It draws.
    let drawn = p2(
        at,
        &[
            "sample",
            "a.safetensors",
            "--n-images",
            "1",
            "--steps",
            "2",
            "--out",
            "x",
        ],
    );
    assert!(
        drawn.status.success(),
        "{}",
        String::from_utf8_lossy(&drawn.stderr)
    );
    // And back: the same names with the same bits.
    converted(at, "a.safetensors", "b.pt", &[]);
    let mut back = TorchFile::open(&at.join("b.pt")).unwrap();
    assert_eq!(back.tensors().len(), names.len());
    for name in &names {
        assert_eq!(file.tensors()[name].shape, back.tensors()[name].shape);
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let [a, b] = [&mut file, &mut back].map(|file| bits(file.values(name).unwrap()));
        assert_eq!(a, b, "{name}");
    }
    converted(at, "b.pt", "c.safetensors", &[]);
    let read = |name: &str| std::fs::read(at.join(name)).unwrap();
    assert_eq!(read("a.safetensors"), read("c.safetensors"));
}

/// What PyTorch's network made of the same weights, images and noise levels.
#[test]
fn the_network_answers_as_in_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let exact = ["--set", "train.precision=exact"];
    converted(folder.path(), &fixture("plain.pt"), "a.safetensors", &exact);
    let cpu = Cpu::best(Threads::new(1));
    let model = load(&folder.path().join("a.safetensors"), cpu)
        .unwrap()
        .model;
    let mut forward = TorchFile::open(Path::new(&fixture("forward.pt"))).unwrap();
    let mut nhwc = |name: &str, channels: usize| {
        let values = forward.values(name).unwrap();
        let nchw = Tensor::from_vec(values, (2, channels, 8, 8), &Device::Cpu).unwrap();
        nchw.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
    };
    let (x_t, expected) = (nhwc("x", 3), nhwc("y", 6));
    let noised = Noised {
        x_t: &x_t,
        t: &[7.0, 500.0],
        condition: Condition::of_classes(&[0, 0]),
    };
    let got = model.predict(noised).unwrap();
    let norm = |x: &Tensor| -> f32 {
        let squares = x.sqr().unwrap().sum_all().unwrap();
        squares.to_scalar::<f32>().unwrap().sqrt()
    };
    let error = norm(&(&got - &expected).unwrap()) / norm(&expected);
    assert!(error < 1e-5, "relative error {error:e}");
    assert!(norm(&expected) > 1.0, "the comparison is blind");
}

/// The network of the paper's checkpoints: 362 tensors by name, made here, are taken strictly, and draw.
#[test]
fn weights_of_the_papers_size_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let run = resolve(&Base::Preset("paper-256".into()), &[]).unwrap();
    let model = Model::zeros(&run, Cpu::best(Threads::new(2))).unwrap();
    let tensors: Vec<NamedTensor<'_>> = model
        .params()
        .iter()
        .map(|param| {
            let shape = param.reference_shape();
            let n: usize = shape.iter().product();
            let values: Vec<f32> = (0..n).map(|i| 0.02 * (i as f32 * 0.7).sin()).collect();
            NamedTensor {
                name: param.name().to_owned(),
                shape,
                values: values.into(),
            }
        })
        .collect();
    assert_eq!(tensors.len(), 362);
    p2::torch::save(&at.join("paper.pt"), &tensors).unwrap();
    drop(tensors);
    let converted = p2(
        at,
        &[
            "convert",
            "paper.pt",
            "paper.safetensors",
            "--preset",
            "paper-256",
        ],
    );
    let said = String::from_utf8_lossy(&converted.stderr).into_owned();
    assert!(said.contains("93563910 numbers in 362 tensors"), "{said}");
    let arguments = [
        "sample",
        "paper.safetensors",
        "--n-images",
        "1",
        "--steps",
        "1",
    ];
    let drawn = p2(at, &[&arguments[..], &["--out", "drawn"]].concat());
    assert!(
        drawn.status.success(),
        "{}",
        String::from_utf8_lossy(&drawn.stderr)
    );
    let picture = image::open(at.join("drawn/000000.png")).unwrap();
    assert_eq!((picture.width(), picture.height()), (256, 256));
}

#[test]
fn views_parameters_and_deeper_places_are_understood() {
    let open = |name: &str| TorchFile::open(Path::new(&fixture(name))).unwrap();
    let (mut plain, mut odd) = (open("plain.pt"), open("odd.pt"));
    let names: Vec<String> = odd.tensors().keys().cloned().collect();
    assert_eq!(names.len(), 12);
    for name in names {
        let plain = plain.values(name.strip_prefix("ema.").unwrap()).unwrap();
        assert_eq!(odd.values(&name).unwrap(), plain, "{name}");
    }
    let mut half = open("half.pt");
    assert_eq!(half.values("x").unwrap(), [1.5, -2.0]);
    assert_eq!(half.values("y").unwrap(), [1.5, -2.0]);
    let bias = half.values("time_embed.0.bias").unwrap();
    let expected = 0.1 * (0.1_f64 + 0.37).sin();
    assert!((f64::from(bias[1]) - expected).abs() < 1e-4, "{}", bias[1]);
}

/// The container before PyTorch 1.6, with views in one storage, a parameter, and numbers of three types.
#[test]
fn the_older_container_is_understood() {
    let open = |name: &str| TorchFile::open(Path::new(&fixture(name))).unwrap();
    let mut legacy = open("legacy.pt");
    let names: Vec<&String> = legacy.tensors().keys().collect();
    assert_eq!(
        names,
        [
            "ema.ema.time_embed.0.bias",
            "ema.ema.x",
            "ema.ema.y",
            "half"
        ]
    );
    for name in ["half", "ema.ema.x", "ema.ema.y"] {
        assert_eq!(legacy.values(name).unwrap(), [1.5, -2.0], "{name}");
    }
    let bias = open("half.pt").values("time_embed.0.bias").unwrap();
    assert_eq!(legacy.values("ema.ema.time_embed.0.bias").unwrap(), bias);
    let mut adam = open("adam-legacy.pt");
    assert_eq!(adam.values("epoch").unwrap(), [7.0]);
    assert_eq!(
        adam.values("optimizer.state.1.exp_avg_sq").unwrap().len(),
        3
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let plain = fixture("plain.pt");
    let refused = |input: &str, output: &str, more: &[&str], message: &str| {
        let done = convert(at, input, output, more);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
        assert!(!at.join(output).exists());
    };
    refused(
        &plain,
        "x.safetensors",
        &["--set", "model.n_res_blocks=2"],
        "the weights need model.n_res_blocks=1, not 2\n\nhint: add --set model.n_res_blocks=1",
    );
    refused(
        &fixture("half.pt"),
        "x.safetensors",
        &[],
        "the network has no `x`",
    );
    refused(
        &plain,
        "x.safetensors",
        &["--set", "diffusion.variance=fixed-small"],
        "hint: add --set diffusion.variance=learned-range",
    );
    refused(&fixture("odd.pt"), "x.safetensors", &[], "--key ema");
    refused(
        &fixture("odd.pt"),
        "x.safetensors",
        &["--key", "ema"],
        "the file has no `ema.",
    );
    refused(&plain, "x.pt", &[], "are of one kind");
    refused("nowhere.pt", "x.safetensors", &[], "nowhere.pt");
}
