//! The presets: complete configuration files that travel inside the binary.

/// A named configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What `--preset` is given.
    pub name: &'static str,
    /// The TOML text, with its comments.
    pub text: &'static str,
}

/// All presets, from quick to slow.
pub const PRESETS: [Preset; 5] = [
    Preset {
        name: "smoke",
        text: include_str!("../../../../configs/smoke.toml"),
    },
    Preset {
        name: "emoji-32",
        text: include_str!("../../../../configs/emoji-32.toml"),
    },
    Preset {
        name: "bench-small",
        text: include_str!("../../../../configs/bench-small.toml"),
    },
    Preset {
        name: "bench-medium",
        text: include_str!("../../../../configs/bench-medium.toml"),
    },
    Preset {
        name: "paper-256",
        text: include_str!("../../../../configs/paper-256.toml"),
    },
];

/// Presets of classifiers.
pub const CLASSIFIER_PRESETS: [Preset; 1] = [Preset {
    name: "classifier-64",
    text: include_str!("../../../../configs/classifier-64.toml"),
}];

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
