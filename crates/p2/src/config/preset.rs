//! The presets: complete configuration files that travel inside the binary.

/// A named configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What `--preset` is given.
    pub name: &'static str,
    /// The TOML text, with its comments.
    pub text: &'static str,
}

/// The preset of a file in `configs/`.
macro_rules! preset {
    ($name:literal, $path:literal) => {
        Preset {
            name: $name,
            text: include_str!(concat!("../../../../", $path)),
        }
    };
}

/// All presets of models: to try things, to measure, and what was published.
pub const PRESETS: [Preset; 29] = [
    preset!("smoke", "configs/smoke.toml"),
    preset!("emoji-32", "configs/emoji-32.toml"),
    preset!("bench-small", "configs/bench-small.toml"),
    preset!("bench-medium", "configs/bench-medium.toml"),
    preset!("paper-256", "configs/paper-256.toml"),
    preset!("p2-ffhq-256", "configs/p2-ffhq-256.toml"),
    preset!("p2-celebahq-256", "configs/p2-celebahq-256.toml"),
    preset!("p2-cub-256", "configs/p2-cub-256.toml"),
    preset!("p2-afhq-dog-256", "configs/p2-afhq-dog-256.toml"),
    preset!("p2-flowers-256", "configs/p2-flowers-256.toml"),
    preset!("p2-metfaces-256", "configs/p2-metfaces-256.toml"),
    preset!(
        "p2-cub-256-conv-resample",
        "configs/p2-cub-256-conv-resample.toml"
    ),
    preset!(
        "p2-cub-256-attention-middle",
        "configs/p2-cub-256-attention-middle.toml"
    ),
    preset!(
        "p2-cub-256-two-res-blocks",
        "configs/p2-cub-256-two-res-blocks.toml"
    ),
    preset!("p2-cub-256-fast", "configs/p2-cub-256-fast.toml"),
    preset!("ddpm-cifar10", "configs/ddpm-cifar10.toml"),
    preset!("ddpm-256", "configs/ddpm-256.toml"),
    preset!("iddpm-cifar10", "configs/iddpm-cifar10.toml"),
    preset!("iddpm-cifar10-vlb", "configs/iddpm-cifar10-vlb.toml"),
    preset!("iddpm-64", "configs/iddpm-64.toml"),
    preset!("iddpm-64-vlb", "configs/iddpm-64-vlb.toml"),
    preset!("adm-64", "configs/adm-64.toml"),
    preset!("adm-128", "configs/adm-128.toml"),
    preset!("adm-256", "configs/adm-256.toml"),
    preset!("adm-256-uncond", "configs/adm-256-uncond.toml"),
    preset!("adm-lsun-256", "configs/adm-lsun-256.toml"),
    preset!("adm-64-256", "configs/adm-64-256.toml"),
    preset!("edm-cifar10", "configs/edm-cifar10.toml"),
    preset!("edm-64", "configs/edm-64.toml"),
];

/// Presets of classifiers.
pub const CLASSIFIER_PRESETS: [Preset; 3] = [
    preset!("classifier-64", "configs/classifier-64.toml"),
    preset!("classifier-128", "configs/classifier-128.toml"),
    preset!("classifier-256", "configs/classifier-256.toml"),
];

impl Preset {
    /// What it is: the comment in the first line of the file.
    pub fn summary(&self) -> &'static str {
        self.text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches(['#', ' '])
    }
}
