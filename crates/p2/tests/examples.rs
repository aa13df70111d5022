//! The examples, run as a user runs them: `cargo test` has built them beside this test.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use p2::checkpoint::StoredTensors;
use p2::config::{Base, Override, resolve};
use p2::model::{Condition, Model, file};
use p2::monitor::grid::{Images, Size};
use p2::sample::{SampleOptions, draw};
use p2_nn::{Cpu, Threads};

fn executable(name: &str) -> PathBuf {
    // target/PROFILE/deps/examples-HASH, next to target/PROFILE/examples/NAME.
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let path = profile
        .join("examples")
        .join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        path.is_file(),
        "{} is missing; hint: cargo build --examples",
        path.display()
    );
    path
}

fn run(name: &str, args: &[&str], folder: &Path) -> Output {
    Command::new(executable(name))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// What an example printed, if it went well.
#[track_caller]
fn stdout(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The numbers in the line that starts with a word.
#[track_caller]
fn numbers(text: &str, word: &str) -> Vec<f64> {
    let line = text.lines().find(|line| line.starts_with(word));
    let line = line.unwrap_or_else(|| panic!("no line `{word}` in: {text}"));
    line.split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

fn png_size(path: &Path) -> (u32, u32) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    (reader.info().width, reader.info().height)
}

#[test]
fn toy_2d_shows_that_p2_gives_up_clean_up_for_content() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(run("toy_2d", &["toy.png"], folder.path()));
    let mut excess = vec![];
    for stage in ["clean-up", "content", "coarse"] {
        let [best, simple, p2, excess_simple, excess_p2] = numbers(&text, stage)[..] else {
            panic!("{stage}: {text}");
        };
        for (error, excess) in [(simple, excess_simple), (p2, excess_p2)] {
            // Errors around the best guess and of the best guess are orthogonal, so that squares add up; the
            // difference is the chance of 1000 points at each of some 30 levels. A wrong closed form is not
            // orthogonal.
            assert!((error - best - excess).abs() < 0.005, "{stage}: {text}");
        }
        excess.push((excess_simple, excess_p2));
    }
    // Excess of P2 per excess of simple, measured over 3 seeds: clean-up 1.81 to 2.41, content 0.43 to 0.69,
    // coarse 0.71 to 0.91; stray samples 0.52 to 0.65. Excess of simple at content levels: 0.028 to 0.040.
    let [clean_up, content, coarse] = excess[..] else {
        panic!("{text}")
    };
    assert!(
        clean_up.1 > 1.3 * clean_up.0,
        "clean-up costs nothing: {text}"
    );
    assert!(content.1 < 0.8 * content.0, "content gains nothing: {text}");
    assert!(coarse.1 < coarse.0, "coarse gains nothing: {text}");
    assert!(content.0 < 0.08, "simple has not learned: {text}");
    let [.., strays_of_simple, strays_of_p2] = numbers(&text, "stray samples")[..] else {
        panic!("{text}")
    };
    assert!(strays_of_p2 < 0.8 * strays_of_simple, "{text}");
    assert_eq!(png_size(&folder.path().join("toy.png")), (960, 720));
}

#[test]
fn custom_weighting_learns_most_where_it_looks() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(run("custom_weighting", &[], folder.path()));
    let [_, clean_up, content, _] = numbers(&text, "384")[..] else {
        panic!("{text}")
    };
    // A network that says nothing has an error of 1 everywhere.
    assert!(content < 0.2, "{text}");
    assert!(content < 0.5 * clean_up, "{text}");
}

#[test]
fn sample_from_checkpoint_draws_what_the_library_draws() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let settings = resolve(&Base::Preset("smoke".into()), &[]).unwrap();
    let cpu = Cpu::best(Threads::new(1));
    let model = Model::new(&settings, cpu).unwrap();
    // Its last layer starts at 0, where all models are alike.
    let last = model.params().iter().last().unwrap();
    last.set_values(&[0.3, -0.2, 0.1, 0.0, 0.0, 0.0]).unwrap();
    file::save(&at("model.safetensors"), &model, &settings).unwrap();
    stdout(run(
        "sample_from_checkpoint",
        &["model.safetensors", "ours.png"],
        folder.path(),
    ));

    let options = SampleOptions::of(&settings.sample);
    let condition = Condition::of_classes(&[0; 16]);
    let drawn = draw(&model, 0..16, condition, &options, || Ok(())).unwrap();
    let pixels: Vec<f32> = drawn.pixels.flatten_all().unwrap().to_vec1().unwrap();
    let images = Images::new(
        Size {
            height: 32,
            width: 32,
        },
        &pixels,
    )
    .unwrap();
    images.save_grid(&at("theirs.png")).unwrap();
    let bytes = |name: &str| std::fs::read(at(name)).unwrap();
    assert_eq!(bytes("ours.png"), bytes("theirs.png"));

    stdout(run("sample_from_checkpoint", &[], folder.path()));
    assert_eq!(
        png_size(&at("samples.png")),
        (4 * 32 + 3 * 2, 4 * 32 + 3 * 2)
    );
    assert_ne!(bytes("ours.png"), bytes("samples.png"));
}

#[test]
fn sample_from_checkpoint_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let output = run("sample_from_checkpoint", &["nothing-here"], folder.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("nothing-here"),
        "{stderr}"
    );
}

#[test]
fn parity_trace_tells_what_two_steps_began_with_and_saw() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "diffusion.variance=fixed-large",
        "train.total_images=16",
        "train.seed=3",
    ];
    let args = [&["trace.safetensors"][..], &settings].concat();
    let text = stdout(run("parity_trace", &args, folder.path()));
    assert!(text.contains(r#""n_steps":2"#), "{text}");

    let trace = StoredTensors::open(&folder.path().join("trace.safetensors")).unwrap();
    assert_eq!(trace.shape("x0").unwrap(), [2, 8, 32, 32, 3]);
    assert_eq!(trace.shape("t").unwrap(), [2, 8]);
    let run = resolve(&Base::Preset("smoke".into()), &settings.map(Override::set)).unwrap();
    let model = Model::new(&run, Cpu::best(Threads::new(1))).unwrap();
    for param in model.params().iter() {
        let initial = param.to_reference(&param.values().unwrap()).unwrap();
        let name = format!("initial.{}", param.name());
        assert_eq!(trace.values(&name).unwrap(), initial, "{name}");
    }
    // The last layer is the first to learn.
    let values = |prefix: &str| trace.values(&format!("{prefix}.out.2.weight")).unwrap();
    assert_ne!(values("final"), values("initial"));
    assert_ne!(values("ema"), values("initial"));
    // A network begins with a guess of 0, and the weight is 1 - alpha_bar.
    let (t, eps) = (trace.values("t").unwrap(), trace.values("eps").unwrap());
    let losses = trace.values("weighted").unwrap();
    let images = eps.chunks(32 * 32 * 3).zip(t.iter().zip(losses)).take(8);
    for (eps, (&t, loss)) in images {
        let alpha_bar = model.schedule().alpha_bar()[t as usize];
        let squares: f64 = eps.iter().map(|&eps| f64::from(eps).powi(2)).sum();
        let expected = (1.0 - alpha_bar) * squares / eps.len() as f64;
        assert!(
            (f64::from(loss) - expected).abs() < 1e-5 * expected,
            "{loss} {expected}"
        );
    }
}
