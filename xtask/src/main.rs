//! The checks of this repository as one program: `cargo xtask ci` and `cargo xtask tidy`.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a small program of the terminal; the printer of crates/p2 is not for it"
)]

mod ci;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask COMMAND

commands:
  ci      all checks but the tests: fmt, tidy, clippy, rustdoc, cargo-deny
  tidy    the house rules that a program can check (also a test of this crate)

The tests are: cargo test --workspace --release";

/// How a run ended; the exit codes are those of `p2` itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All checks passed: exit 0.
    Passed,
    /// The checks ran and some failed: exit 1.
    Failed,
    /// The checks could not run: exit 2.
    CouldNotRun,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ci"] => ci::run(),
        ["tidy"] => tidy::run(),
        ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            Outcome::Passed
        }
        _ => {
            eprintln!("{USAGE}");
            Outcome::CouldNotRun
        }
    };
    match outcome {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::CouldNotRun => ExitCode::from(2),
    }
}
