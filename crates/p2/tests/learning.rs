//! A short training learns more about real images than the best linear denoiser of single pixels.

use std::process::Command;

use p2::config::{Base, resolve};
use p2::data::Dataset;
use p2::model::schedule;
use p2::train::LinearDenoiser;
use p2_diffusion::Stage;

/// The preset of the README with a network of a seventh of its size and a tenth of its images.
#[test]
fn a_minute_of_training_beats_the_best_linear_denoiser_of_single_pixels() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_p2"))
        .args(["train", "--preset", "emoji-32", "--max-images", "1920"])
        .args(["--json", "--out"])
        .arg(folder.path().join("run"))
        .args(["--set", "model.channels=32"])
        .args(["--set", "model.channel_mult=[1, 2]"])
        .args(["--set", "model.attention_resolutions=[]"])
        .args(["--set", "optim.lr=2e-3"])
        .args(["--set", "train.sample_every=0"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let held_out = |stage: &str| outcome["held_out_mse_eps"][stage].as_f64().unwrap();

    let run = resolve(&Base::Preset("emoji-32".into()), &[]).unwrap();
    let linear = LinearDenoiser::fit(&Dataset::open(&run.data).unwrap()).unwrap();
    let schedule = schedule(&run.diffusion).unwrap();
    let mark = |stage| linear.mse_eps(&schedule, stage);
    let [clean_up, content] = [held_out("clean_up"), held_out("content")];
    assert!(clean_up < 0.8 * mark(Stage::CleanUp), "clean-up {clean_up}");
    assert!(content < mark(Stage::Content), "content {content}");
    // What no network can reach: the noise is not known exactly.
    assert!(clean_up > 0.02 && content > 0.002, "{clean_up} {content}");
}
