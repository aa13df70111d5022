//! Runs every check but the tests, one after another, and says at the end how each one went.
//!
//! The tests are a command of their own (`cargo test --workspace --release`), in another profile.
//! Clippy and rustdoc only need metadata and share it, so nothing is compiled to machine code twice.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Outcome, tidy};

/// One check: a name, the cargo command line and one variable of its environment.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    variable: Option<(&'static str, &'static str)>,
}

/// The target whose kernels are checked without being run.
const ARM: &str = "aarch64-unknown-linux-gnu";

/// Quick ones first. `tidy` is not a command of cargo: it runs inside this process.
const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        arguments: &["fmt", "--all", "--check"],
        variable: None,
    },
    Step {
        name: "tidy",
        arguments: &["xtask", "tidy"],
        variable: None,
    },
    // Advisories are left out: they need a network beyond the registries.
    Step {
        name: "deny",
        arguments: &["deny", "--locked", "check", "bans", "licenses", "sources"],
        variable: None,
    },
    Step {
        name: "clippy",
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
        variable: None,
    },
    // The kernels for Arm, where the compiler has its standard library.
    Step {
        name: "neon",
        arguments: &["check", "-p", "p2-kernels", "--locked", "--target", ARM],
        variable: Some(("RUSTFLAGS", "-D warnings")),
    },
    Step {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps", "--locked"],
        variable: Some(("RUSTDOCFLAGS", "-D warnings")),
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepOutcome {
    Passed,
    Failed,
    Skipped,
}

impl Step {
    /// What a person types to repeat this step alone.
    fn command_line(&self) -> String {
        let variable = self
            .variable
            .map_or(String::new(), |(key, value)| format!("{key}=\"{value}\" "));
        format!("{variable}cargo {}", self.arguments.join(" "))
    }

    fn run(&self, root: &Path) -> StepOutcome {
        match self.name {
            "tidy" => return passed_if(tidy::run() == Outcome::Passed),
            "deny" if !has_cargo_deny() => return without_cargo_deny(),
            "neon" if !has_arm() => {
                println!("the NEON kernels are not checked: `rustup target add {ARM}` was not run");
                return StepOutcome::Skipped;
            }
            _ => {}
        }
        let mut command = cargo();
        command
            .args(self.arguments)
            .envs(self.variable)
            .current_dir(root);
        match command.status() {
            Ok(status) => passed_if(status.success()),
            Err(error) => {
                eprintln!("error: cannot start cargo: {error}");
                StepOutcome::Failed
            }
        }
    }
}

/// Runs all steps, also after one has failed: one run shows everything that is wrong.
pub(crate) fn run() -> Outcome {
    let root = match tidy::repository_root() {
        Ok(root) => root,
        Err(error) => {
            eprintln!("error: {error}");
            return Outcome::CouldNotRun;
        }
    };
    let results: Vec<(&Step, StepOutcome, Duration)> = STEPS
        .iter()
        .map(|step| {
            println!("== {}: {}", step.name, step.command_line());
            let start = Instant::now();
            let outcome = step.run(&root);
            let elapsed = start.elapsed();
            println!(
                "== {}: {} in {:.1} s\n",
                step.name,
                outcome.word(),
                elapsed.as_secs_f64()
            );
            (step, outcome, elapsed)
        })
        .collect();
    report(&results)
}

fn report(results: &[(&Step, StepOutcome, Duration)]) -> Outcome {
    for (step, outcome, elapsed) in results {
        let repeat = match outcome {
            StepOutcome::Failed => format!("   repeat: {}", step.command_line()),
            StepOutcome::Passed | StepOutcome::Skipped => String::new(),
        };
        let secs = elapsed.as_secs_f64();
        println!(
            "{:<8} {:<8} {secs:>6.1} s{repeat}",
            step.name,
            outcome.word()
        );
    }
    let n_failed = results
        .iter()
        .filter(|(_, outcome, _)| *outcome == StepOutcome::Failed)
        .count();
    if n_failed == 0 {
        println!("ci: no step failed; the tests are: cargo test --workspace --release");
        Outcome::Passed
    } else {
        println!("ci: {n_failed} of {} steps failed", results.len());
        Outcome::Failed
    }
}

impl StepOutcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// Cargo tells its children which cargo it is, so that one toolchain runs everything.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn has_cargo_deny() -> bool {
    cargo()
        .args(["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Whether the compiler can build for Arm.
fn has_arm() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", ARM])
        .output();
    output.is_ok_and(|output| {
        let path = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(path.trim()).is_dir()
    })
}

/// On a person's machine a missing cargo-deny is no obstacle; in CI a skipped check is a failed one.
fn without_cargo_deny() -> StepOutcome {
    println!("cargo-deny is not installed; the two ways to install it are in .ci/run");
    if std::env::var_os("CI").is_some() {
        StepOutcome::Failed
    } else {
        StepOutcome::Skipped
    }
}

const fn passed_if(success: bool) -> StepOutcome {
    if success {
        StepOutcome::Passed
    } else {
        StepOutcome::Failed
    }
}
