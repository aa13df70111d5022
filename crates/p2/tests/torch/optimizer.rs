//! Optimizers there and back.

use std::io::Cursor;
use std::path::Path;

use p2::checkpoint::{NamedTensor, StoredTensors};
use p2::torch::{self, Adam, Moment, TorchFile};

use super::program::{done, fixture, refused, weights};

/// A state that PyTorch has not seen: settings of its own, and a moment for each parameter.
fn adam(n_params: usize) -> Adam {
    Adam {
        step: 12_345,
        lr: 2e-5,
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.01,
        n_params,
    }
}

/// Moments of the network of a preset; value i of moment m of parameter k is 1000 k + 100 m + (i mod 100).
fn moments(network: &[NamedTensor<'static>]) -> Vec<[NamedTensor<'static>; 2]> {
    let moment = |tensor: &NamedTensor<'static>, start: usize| NamedTensor {
        values: (0..tensor.values.len())
            .map(|i| (start + i % 100) as f32)
            .collect(),
        ..tensor.clone()
    };
    let each = |(k, tensor)| [moment(tensor, 1000 * k), moment(tensor, 1000 * k + 100)];
    network.iter().enumerate().map(each).collect()
}

#[test]
fn what_pytorch_saves_of_its_optimizer_is_understood() {
    let open = |name: &str| TorchFile::open(Path::new(&fixture(name))).unwrap();
    // Steps are tensors, as since PyTorch 1.12.
    let mut newer = open("adam.pt");
    let expected = Adam {
        step: 3,
        lr: 2e-5,
        betas: [0.9, 0.999],
        eps: 1e-8,
        weight_decay: 0.01,
        n_params: 2,
    };
    assert_eq!(newer.adam("").unwrap(), Some(expected));
    // Steps are numbers, in the older container, beside something else.
    let mut older = open("adam-legacy.pt");
    assert_eq!(older.adam("optimizer").unwrap(), Some(expected));
    assert_eq!(older.adam("").unwrap(), None);
    assert_eq!(open("plain.pt").adam("").unwrap(), None);
    // Gradients 1, 2 and 3 in both columns, times the step: Adam's averages by hand.
    let first = 0.1 * (0.9 * 0.9 + 0.9 * 2.0 + 3.0);
    let second = 0.001 * (0.999 * 0.999 + 0.999 * 4.0 + 9.0);
    for (moment, factor) in [(Moment::First, first), (Moment::Second, second)] {
        let power = if moment == Moment::First { 1 } else { 2 };
        let expected: Vec<f64> = [1.0_f64, 1.0, 2.0, 2.0, 3.0, 3.0]
            .iter()
            .map(|gradient| factor * gradient.powi(power))
            .collect();
        for (file, place) in [(&mut newer, ""), (&mut older, "optimizer")] {
            let values = file.values(&moment.tensor_name(place, 0)).unwrap();
            let close = |(a, b): (&f32, &f64)| (f64::from(*a) / b - 1.0).abs() < 1e-5;
            assert!(
                values.iter().zip(&expected).all(close),
                "{values:?} {expected:?}"
            );
        }
    }
}

/// The state in the older container, which has no checksums, with some bytes replaced.
#[test]
fn states_of_other_optimizers_are_refused() {
    let sound = std::fs::read(fixture("adam-legacy.pt")).unwrap();
    // Replaces some bytes where they first stand behind the last mention of a name.
    let check = |name: &str, old: &[u8], new: &[u8], message: &str| {
        let start = sound
            .windows(name.len())
            .rposition(|part| part == name.as_bytes());
        let start = start.unwrap() + name.len();
        let found = sound[start..]
            .windows(old.len())
            .position(|part| part == old);
        let at = start + found.unwrap();
        let mut changed = sound.clone();
        changed[at..at + old.len()].copy_from_slice(new);
        let mut file = TorchFile::read(Cursor::new(changed), "x.pt").unwrap();
        let said = format!("{:#}", file.adam("optimizer").unwrap_err());
        assert!(said.contains(message), "{message}: {said}");
    };
    check("amsgrad", b"\x89", b"\x88", "amsgrad = True");
    check("maximize", b"\x89", b"\x88", "maximize = True");
    let decoupled = "decoupled_weight_decay";
    check(decoupled, b"\x88", b"\x89", "as Adam and not as AdamW");
    check("step", b"K\x03", b"K\x04", "have taken 4 and 3 steps");
    check(
        "step",
        b"K\x03",
        b"h\x03",
        "`optimizer.state.0.step` is no number",
    );
    check("params", b"K\x01", b"K\x02", "not counted from 0");
    check(
        "param_groups",
        b"\x02\0\0\0lr",
        b"\x02\0\0\0lx",
        "its group has no lr",
    );
}

#[test]
fn an_optimizer_goes_to_a_checkpoint_and_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let network = weights("smoke", &[], 0.0);
    let moments = moments(&network);
    torch::save_adam(&at.join("opt.pt"), &adam(network.len()), &moments).unwrap();
    let arguments = ["convert", "opt.pt", "opt.safetensors", "--preset", "smoke"];
    let said = done(at, &arguments);
    let steps = format!("moments of {} parameters after 12345 steps", network.len());
    assert!(said.contains(&steps), "{said}");
    assert!(said.contains("train with --set optim.beta2=0.99"), "{said}");
    let stored = StoredTensors::open(&at.join("opt.safetensors")).unwrap();
    for (tensor, moments) in network.iter().zip(&moments) {
        for (moment, expected) in Moment::BOTH.iter().zip(moments) {
            let name = format!("{}.{}", moment.name(), tensor.name);
            assert_eq!(stored.values(&name).unwrap(), *expected.values, "{name}");
            assert_eq!(stored.shape(&name), Some(tensor.shape.as_slice()));
        }
    }
    done(
        at,
        &["convert", "opt.safetensors", "back.pt", "--preset", "smoke"],
    );
    let mut back = TorchFile::open(&at.join("back.pt")).unwrap();
    let found = back.adam("").unwrap().unwrap();
    assert_eq!((found.step, found.n_params), (12_345, network.len()));
    for (k, moments) in moments.iter().enumerate() {
        for (moment, expected) in Moment::BOTH.iter().zip(moments) {
            let name = moment.tensor_name("", k);
            assert_eq!(back.values(&name).unwrap(), *expected.values, "{name}");
        }
    }
}

/// In a checkpoint the network stands beside the optimizer, and so do its steps.
#[test]
fn an_optimizer_of_a_run_needs_no_words() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let train = [
        "train",
        "--preset",
        "smoke",
        "--out",
        "run",
        "--max-steps",
        "2",
    ];
    done(at, &train);
    let checkpoints = std::fs::read_dir(at.join("run/checkpoints")).unwrap();
    let checkpoint = checkpoints
        .map(|entry| entry.unwrap().path())
        .max()
        .unwrap();
    let optimizer = checkpoint.join("optimizer.safetensors");
    let input = optimizer.display().to_string();
    done(at, &["convert", &input, "opt.pt"]);
    let mut converted = TorchFile::open(&at.join("opt.pt")).unwrap();
    let adam = converted.adam("").unwrap().unwrap();
    assert_eq!(adam.step, 2);
    let stored = StoredTensors::open(&optimizer).unwrap();
    assert_eq!(2 * adam.n_params, stored.names().count());
    // The names, and the values of all, come back as a run wrote them.
    done(at, &["convert", "opt.pt", "x.safetensors", "--like", "run"]);
    let back = StoredTensors::open(&at.join("x.safetensors")).unwrap();
    assert!(back.names().eq(stored.names()));
    for name in stored.names() {
        assert_eq!(back.values(name).unwrap(), stored.values(name).unwrap());
    }
    // Taken out of the checkpoint it does not say these things.
    std::fs::copy(&optimizer, at.join("alone.safetensors")).unwrap();
    let said = refused(at, &["convert", "alone.safetensors", "y.pt"]);
    assert!(said.contains("which network the optimizer is of"), "{said}");
    let with = ["convert", "alone.safetensors", "y.pt", "--like", "run"];
    let said = refused(at, &with);
    assert!(
        said.contains("how many steps the optimizer has taken"),
        "{said}"
    );
}

#[test]
fn optimizers_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let network = weights("smoke", &[], 0.0);
    let tensor = |shape: &[usize]| NamedTensor {
        name: String::new(),
        shape: shape.to_vec(),
        values: vec![0.5; shape.iter().product()].into(),
    };
    let save = |name: &str, moments: &[[NamedTensor<'static>; 2]]| {
        torch::save_adam(&at.join(name), &adam(moments.len()), moments).unwrap();
    };
    save(
        "half.pt",
        &[&[7][..], &[1, 9]].map(|shape| [tensor(shape), tensor(shape)]),
    );
    save("short.pt", &moments(&network)[1..]);
    let mut other = moments(&network);
    other.swap(0, 1);
    save("other.pt", &other);
    let with = |name: &str, more: &[&str]| {
        refused(at, &[&["convert", name, "x.safetensors"], more].concat())
    };
    let smoke = ["--preset", "smoke"];
    let n = network.len();
    for (name, more, message) in [
        (
            "half.pt",
            &smoke[..],
            "of a run in half precision".to_owned(),
        ),
        (
            "short.pt",
            &smoke,
            format!("moves {} parameters, the network has {n}", n - 1),
        ),
        ("other.pt", &smoke, "`state.0.exp_avg` has shape".to_owned()),
        (
            "other.pt",
            &[],
            "does not say which network it is of".to_owned(),
        ),
    ] {
        let said = with(name, more);
        assert!(said.contains(&message), "{message}: {said}");
    }
    assert!(!at.join("x.safetensors").exists());
}
