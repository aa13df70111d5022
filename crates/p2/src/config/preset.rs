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

impl Preset {
    /// The preset with this name.
    pub fn find(name: &str) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }

    /// What it is: the comment in the first line of the file.
    pub fn summary(&self) -> &'static str {
        self.text
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches(['#', ' '])
    }
}
