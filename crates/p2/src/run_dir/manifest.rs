//! `manifest.json`: what a run was made of, and when it was started and changed.

use std::time::{SystemTime, UNIX_EPOCH};

use p2_nn::Cpu;
use serde::{Deserialize, Serialize};

use crate::config::Change;
use crate::engine::Device;

/// What a run was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Seed of every random draw.
    pub seed: u64,
    /// Which images, in which order: a run is only continued with the same.
    pub data_fingerprint: String,
    /// The file of the weights that the run began with, in full; `None` for random ones.
    #[serde(default)]
    pub init_from: Option<String>,
    /// Every start of the program on this run, in order.
    pub starts: Vec<StartRecord>,
}

/// One start of the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// When, in UTC.
    pub at: String,
    /// The images that the run had seen.
    pub images_seen: u64,
    /// The version of p2.
    pub version: String,
    /// The commit it was built from, if that was known.
    pub commit: Option<String>,
    /// What it ran on.
    pub machine: Machine,
    /// What it computed with; `None` from versions that did not say.
    #[serde(default)]
    pub engine: Option<Engine>,
    /// Where the images were, in full: `data.path` may be relative to a folder that nobody remembers.
    #[serde(default)]
    pub data_path: Option<String>,
    /// Keys that were changed for the rest of the run.
    pub changes: Vec<Change>,
}

/// What a run runs on; nothing that names a person or a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The operating system.
    pub os: String,
    /// The processor's family.
    pub arch: String,
    /// The processor's model, if the system tells it.
    pub cpu: Option<String>,
    /// Threads that can run at once.
    pub n_cores: usize,
}

/// What a start computes with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Where, such as `cpu`.
    pub device: String,
    /// The instruction set, such as `avx2`: the bits of a run depend on it.
    pub instruction_set: String,
    /// Threads that compute; they change no bit.
    pub n_threads: usize,
}

impl Engine {
    /// A device, and what `cpu` with the precision of the run stands for.
    pub fn of(device: Device, cpu: Cpu) -> Self {
        Self {
            device: device.to_string(),
            instruction_set: cpu.numerics().to_owned(),
            n_threads: cpu.threads.count(),
        }
    }
}

impl Manifest {
    /// The manifest of a new run; add its first start.
    pub fn new(seed: u64, data_fingerprint: String) -> Self {
        Self {
            format: 1,
            seed,
            data_fingerprint,
            init_from: None,
            starts: Vec::new(),
        }
    }

    /// The engine that brought the run where it stands, if that is known.
    pub fn last_engine(&self, images_seen: u64) -> Option<&Engine> {
        let ends = self.starts.iter().skip(1).map(|next| next.images_seen);
        let ends = ends.chain([images_seen]);
        // A start from which nothing was saved left no bits behind.
        let (last, _) = self
            .starts
            .iter()
            .zip(ends)
            .filter(|(start, end)| *end > start.images_seen)
            .last()?;
        last.engine.as_ref()
    }
}

impl StartRecord {
    /// A start of this program, on this machine, now; with no word on where the images are.
    #[expect(clippy::disallowed_methods, reason = "the manifest says when")]
    pub fn now(images_seen: u64, engine: Engine, changes: Vec<Change>) -> Self {
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            at: utc(since_1970.as_secs()),
            images_seen,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("P2_COMMIT").map(str::to_owned),
            machine: Machine::this(),
            engine: Some(engine),
            data_path: None,
            changes,
        }
    }
}

impl Machine {
    /// The machine that this program runs on.
    pub fn this() -> Self {
        Self {
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            cpu: std::fs::read_to_string("/proc/cpuinfo")
                .ok()
                .as_deref()
                .and_then(cpu_model),
            n_cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// The model in Linux's `/proc/cpuinfo`.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    line.split_once(':')
        .map(|(_, model)| model.trim().to_owned())
}

/// `2026-08-14T09:30:00Z`, from seconds since 1970 (Howard Hinnant, `civil_from_days`).
fn utc(unix_secs: u64) -> String {
    let (days, secs) = (unix_secs / 86_400, unix_secs % 86_400);
    let days = days + 719_468; // since 0000-03-01, so that leap days end a year
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153; // 0 is March
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        // `date -u -d @SECONDS +%FT%TZ`
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (68_169_599, "1972-02-28T23:59:59Z"),
            (68_169_600, "1972-02-29T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(secs), text);
        }
    }

    #[test]
    fn the_engine_is_that_of_the_last_start_that_left_something() {
        let start = |images_seen, instruction_set: &str| {
            let engine = Engine {
                device: "cpu".to_owned(),
                instruction_set: instruction_set.to_owned(),
                n_threads: 1,
            };
            StartRecord::now(images_seen, engine, Vec::new())
        };
        let mut manifest = Manifest::new(0, String::new());
        let last = |manifest: &Manifest, images_seen| {
            let engine = manifest.last_engine(images_seen);
            engine.map(|engine| engine.instruction_set.clone())
        };
        assert_eq!(last(&manifest, 0), None);
        manifest.starts = vec![start(0, "a"), start(0, "b"), start(64, "c"), start(64, "d")];
        assert_eq!(last(&manifest, 64).as_deref(), Some("b"));
        assert_eq!(last(&manifest, 65).as_deref(), Some("d"));
    }

    #[test]
    fn a_manifest_of_an_older_version_is_read() {
        let mut manifest = Manifest::new(0, String::new());
        let engine = Engine {
            device: "cpu".to_owned(),
            instruction_set: "a".to_owned(),
            n_threads: 1,
        };
        manifest.starts = vec![StartRecord::now(0, engine, Vec::new())];
        let mut json = serde_json::to_value(&manifest).unwrap();
        json["starts"][0].as_object_mut().unwrap().remove("engine");
        let read: Manifest = serde_json::from_value(json).unwrap();
        assert_eq!(read.starts[0].engine, None);
    }

    #[test]
    fn the_processor_is_read_from_linux() {
        let model = cpu_model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: b\n");
        assert_eq!(model.as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
    }
}
