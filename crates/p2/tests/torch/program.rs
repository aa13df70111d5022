//! The program, and the files that PyTorch wrote.

use std::path::Path;
use std::process::{Command, Output};

use p2::checkpoint::NamedTensor;
use p2::config::{Base, Override, resolve};
use p2::model::Model;
use p2_nn::{Cpu, Threads};

/// The network of the fixtures, out of the bundled preset.
pub(super) const NETWORK: [&str; 9] = [
    "data.image_size=8",
    "model.channels=32",
    "model.channel_mult=[1]",
    "model.attention_resolutions=[]",
    "model.n_res_blocks=1",
    "diffusion.variance=learned-range",
    "diffusion.prediction=eps",
    "sample.sampler=ddim",
    "sample.spacing=even",
];

/// A file beside this one.
pub(super) fn fixture(name: &str) -> String {
    format!("{}/tests/torch/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs the program in a folder.
pub(super) fn p2(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p2"));
    command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the program, which must do its work, and returns what it tells people.
#[track_caller]
pub(super) fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = p2(folder, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// Runs the program, which must give up, and returns what it tells people.
#[track_caller]
pub(super) fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = p2(folder, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

/// Each with `--set` before it.
pub(super) fn set<'a>(values: &[&'a str]) -> Vec<&'a str> {
    values.iter().flat_map(|value| ["--set", value]).collect()
}

/// Parameters of the network that a configuration describes, in its order, all of this value.
pub(super) fn weights(base: &str, overrides: &[&str], value: f32) -> Vec<NamedTensor<'static>> {
    let overrides: Vec<_> = overrides.iter().map(|text| Override::set(text)).collect();
    let run = resolve(&Base::Preset(base.into()), &overrides).unwrap();
    let model = Model::zeros(&run, Cpu::best(Threads::new(1))).unwrap();
    let params = model.params().iter();
    params
        .map(|param| {
            let shape = param.reference_shape();
            NamedTensor {
                name: param.name().to_owned(),
                values: vec![value; shape.iter().product()].into(),
                shape,
            }
        })
        .collect()
}
