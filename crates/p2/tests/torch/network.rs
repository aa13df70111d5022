//! Which network weights are of, where nobody says it.

use expect_test::expect;
use p2::checkpoint::{NamedTensor, StoredTensors};
use p2::classifier::{self, Classifier};
use p2::config::{Base, ClassifierRun, Override};
use p2::torch;
use p2_nn::{Cpu, Threads};

use super::program::{NETWORK, done, fixture, refused, set, weights};

/// What the weights of the fixture leave open.
const OPEN: [&str; 8] = [
    "data.image_size=8",
    "model.heads={channels=32}",
    "model.attention_order=legacy",
    "diffusion.schedule=linear",
    "diffusion.n_timesteps=1000",
    "diffusion.rescale_timesteps=false",
    "diffusion.prediction=eps",
    "diffusion.variance=learned-range",
];

fn convert<'a>(input: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["convert", input, "x.safetensors"], more].concat()
}

#[test]
fn what_weights_leave_open_is_asked_for_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let plain = fixture("plain.pt");
    let said = refused(folder.path(), &convert(&plain, &[]));
    expect![[r"
        error: the weights do not say all of what they are
          because names and shapes say model.channels=32, model.channel_mult=[1], model.n_res_blocks=1, model.resample=res-block, model.time_conditioning=scale-shift, model.label_dropout=0.0, model.low_res_size=0, with attention at the levels [], and no more

        hint: add what is missing, or --preset NAME or --like MODEL that has it all:
          --set data.image_size=PIXELS
          --set model.heads={channels=64}|{count=4}|..
          --set model.attention_order=legacy|new
          --set diffusion.schedule=linear|cosine|..
          --set diffusion.n_timesteps=1000|..
          --set diffusion.rescale_timesteps=false|true
          --set diffusion.prediction=eps|x0|v|x-prev
          --set diffusion.variance=learned-range|learned
    "]]
    .assert_eq(&said);
    // Each of them is missed alone; a part of a value is enough.
    for (i, left) in OPEN.iter().enumerate() {
        let mut given = OPEN.to_vec();
        given.remove(i);
        let said = refused(folder.path(), &convert(&plain, &set(&given)));
        let (key, _) = left.split_once('=').unwrap();
        let asked: Vec<_> = said
            .lines()
            .filter(|line| line.contains("--set "))
            .collect();
        assert_eq!(asked.len(), 1, "{said}");
        assert!(asked[0].contains(key), "{said}");
    }
    assert!(!folder.path().join("x.safetensors").exists());
}

#[test]
fn weights_and_what_they_leave_open_are_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // The reference saves averaged weights under such a name, as plain as others.
    let plain = "ema_0.9999_010000.pt";
    std::fs::copy(fixture("plain.pt"), at.join(plain)).unwrap();
    let said = done(at, &convert(plain, &set(&OPEN)));
    assert!(said.contains("model.attention_resolutions=[]"), "{said}");
    assert!(said.contains("as in the preset paper-256"), "{said}");
    let network = set(&[&NETWORK[..], &OPEN].concat());
    let like = [&["--preset", "paper-256"], &network[..]].concat();
    done(
        at,
        &[&["convert", plain, "y.safetensors"], &like[..]].concat(),
    );
    let open = |name: &str| StoredTensors::open(&at.join(name)).unwrap();
    let [x, y] = ["x.safetensors", "y.safetensors"].map(open);
    for name in y.names() {
        assert_eq!(x.values(name).unwrap(), y.values(name).unwrap(), "{name}");
    }
    let model = |stored: &StoredTensors| -> serde_json::Value {
        let config: serde_json::Value = serde_json::from_str(stored.metadata().unwrap()).unwrap();
        serde_json::json!([
            config["data"]["image_size"],
            config["model"],
            config["diffusion"]
        ])
    };
    assert_eq!(model(&x), model(&y));
    let drawn = ["sample", "x.safetensors", "--n-images", "1", "--steps", "2"];
    done(at, &[&drawn[..], &["--out", "drawn"]].concat());
}

/// A network with everything: classes and none, attention at two of three levels, convolutions for resampling.
#[test]
fn all_that_names_and_shapes_say_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let open = [
        "data.image_size=16",
        "model.heads={count=2}",
        "model.attention_order=new",
        "diffusion.schedule=cosine",
        "diffusion.n_timesteps=500",
        "diffusion.rescale_timesteps=false",
        "diffusion.prediction=v",
        "diffusion.variance=fixed-small",
        "model.label_dropout=0.2",
    ];
    let inferred = [
        "model.channels=32",
        "model.channel_mult=[1,2,3]",
        "model.n_res_blocks=2",
        "model.attention_resolutions=[16,4]",
        "model.resample=conv",
        "model.time_conditioning=additive",
        "model.n_classes=9",
    ];
    let network = weights("paper-256", &[&open[..], &inferred].concat(), 0.25);
    torch::save(&at.join("all.pt"), &network).unwrap();
    let said = done(at, &convert("all.pt", &set(&open)));
    for value in inferred {
        assert!(said.contains(value), "{value}: {said}");
    }
    // Ten embeddings are of nine classes and of none; or of ten.
    let ten = [&open[..8], &["model.label_dropout=0"]].concat();
    let said = done(at, &convert("all.pt", &set(&ten)));
    assert!(said.contains("model.n_classes=10"), "{said}");
    let said = refused(at, &convert("all.pt", &set(&open[..8])));
    assert!(said.contains("--set model.label_dropout=0|0.1"), "{said}");
    // What is set goes before what is inferred, and is then not what the weights need.
    let wrong = [&open[..], &["model.n_res_blocks=1"]].concat();
    let said = refused(at, &convert("all.pt", &set(&wrong)));
    let needed = "the weights need model.n_res_blocks=2, not 1";
    assert!(said.contains(needed), "{said}");
    // So it is with a preset, and with another model.
    let said = refused(at, &convert("all.pt", &["--preset", "smoke"]));
    let hint = "hint: add --set 'model.channel_mult=[1,2,3]' --set model.n_res_blocks=2 \
                --set 'model.attention_resolutions=";
    assert!(said.contains(hint), "{said}");
    done(
        at,
        &[&["convert", "all.pt", "all.safetensors"], &set(&open)[..]].concat(),
    );
    let plain = fixture("plain.pt");
    let said = refused(at, &convert(&plain, &["--like", "all.safetensors"]));
    assert!(said.contains("model.n_classes=0, not 9"), "{said}");
    assert!(
        said.contains("all.safetensors is another network"),
        "{said}"
    );
}

#[test]
fn weights_that_lie_deeper_or_are_of_another_kind_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let odd = fixture("odd.pt");
    let said = refused(at, &convert(&odd, &[]));
    assert!(
        said.contains("hint: the weights lie deeper: add --key ema"),
        "{said}"
    );
    let network = weights("smoke", &[], 0.0);
    let save = |name: &str, change: &dyn Fn(&mut NamedTensor<'static>) -> bool| {
        let mut network = network.clone();
        network.retain_mut(change);
        torch::save(&at.join(name), &network).unwrap();
    };
    save("wrapped.pt", &|tensor| {
        tensor.name = format!("module.{}", tensor.name);
        true
    });
    let said = refused(at, &convert("wrapped.pt", &["--preset", "smoke"]));
    assert!(said.contains("add --key module"), "{said}");
    done(
        at,
        &convert("wrapped.pt", &["--preset", "smoke", "--key", "module"]),
    );
    save("classifier.pt", &|tensor| {
        !tensor.name.starts_with("output_blocks.")
    });
    for more in [&[][..], &["--preset", "smoke"]] {
        let said = refused(at, &convert("classifier.pt", more));
        assert!(said.contains("of a classifier"), "{said}");
    }
}

/// A classifier there and back, and what moves it.
#[test]
fn classifiers_go_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let small = [
        "data.image_size=8",
        "model.channels=32",
        "model.channel_mult=[1,2]",
        "model.n_res_blocks=1",
        "model.attention_resolutions=[4]",
        "model.heads={channels=32}",
        "model.n_classes=3",
        "model.pool=spatial-v2",
    ];
    let overrides = small.map(Override::set);
    let base = Base::Preset("classifier-64".into());
    let run = ClassifierRun::resolve(&base, &overrides).unwrap();
    let classifier = Classifier::new(&run, Cpu::best(Threads::new(1))).unwrap();
    classifier::file::save(&at.join("c.safetensors"), &classifier, &run).unwrap();
    done(at, &["convert", "c.safetensors", "c.pt"]);
    let said = refused(at, &convert("c.pt", &[]));
    assert!(said.contains("--preset classifier-64"), "{said}");
    let named = [&["--preset", "classifier-64"], &set(&small)[..]].concat();
    done(at, &convert("c.pt", &named));
    let bytes = |name: &str| std::fs::read(at.join(name)).unwrap();
    assert!(bytes("c.safetensors") == bytes("x.safetensors"));
    done(
        at,
        &[
            "convert",
            "c.pt",
            "y.safetensors",
            "--like",
            "c.safetensors",
        ],
    );
    assert!(bytes("c.safetensors") == bytes("y.safetensors"));
    let other = [&named[..], &["--set", "model.n_classes=4"]].concat();
    let said = refused(at, &convert("c.pt", &other));
    assert!(
        said.contains("has shape [3, 2048]") && said.contains("another classifier"),
        "{said}"
    );
}

/// A super-resolution network sees six channels; which size it enlarges stands nowhere.
#[test]
fn networks_that_enlarge_are_told_and_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let small = ["model.low_res_size=4"];
    let network = weights("paper-256", &[&NETWORK[..], &OPEN, &small].concat(), 0.25);
    torch::save(&at.join("sr.pt"), &network).unwrap();
    let said = refused(at, &convert("sr.pt", &set(&OPEN)));
    assert!(said.contains("--set model.low_res_size=PIXELS"), "{said}");
    done(at, &convert("sr.pt", &set(&[&OPEN[..], &small].concat())));
    done(at, &["convert", "x.safetensors", "again.pt"]);
    let bytes = |name: &str| std::fs::read(at.join(name)).unwrap();
    assert!(bytes("sr.pt") == bytes("again.pt"));
    let said = refused(
        at,
        &["sample", "x.safetensors", "--n-images", "1", "--out", "y"],
    );
    assert!(said.contains("enlarges images of 4x4 pixels"), "{said}");
    let plain = fixture("plain.pt");
    let said = refused(at, &convert(&plain, &["--like", "x.safetensors"]));
    assert!(said.contains("model.low_res_size=0, not 4"), "{said}");
}

/// Shapes that hold nothing must not make a network that holds much.
#[test]
fn a_network_larger_than_the_file_is_not_built() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut network = weights("smoke", &[], 0.0);
    for tensor in &mut network {
        let shape = match &tensor.name {
            name if name.ends_with("out_layers.3.weight") => vec![65_536, 0, 3, 3],
            name if name.ends_with("emb_layers.1.weight") => vec![131_072, 0],
            _ => continue,
        };
        (tensor.shape, tensor.values) = (shape, vec![].into());
    }
    torch::save(&at.join("x.pt"), &network).unwrap();
    let open = [&OPEN[..], &["diffusion.variance=fixed-small"]].concat();
    let said = refused(at, &convert("x.pt", &set(&open)));
    let message = "the network has more than 77";
    assert!(said.contains(message), "{said}");
}
