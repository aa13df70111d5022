//! The program `p2`: reads the command line and leaves with an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use p2::cli::{Cli, ExitStatus};
use p2::print::{Printer, is_broken_pipe};
use p2::{command, fault};
use p2_kernels::allocator::Lines;

/// Tensors start at cache lines: see there.
#[global_allocator]
static ALLOCATOR: Lines = Lines;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let printer = Printer::new(cli.verbosity(), cli.color);
    let status = fault::arm_from_env()
        .map_err(anyhow::Error::new)
        .and_then(|()| command::run(cli.command, &printer));
    match status {
        Ok(status) => status.into(),
        Err(error) if is_broken_pipe(&error) => ExitStatus::Done.into(),
        Err(error) => {
            printer.error(&error);
            ExitStatus::Failed.into()
        }
    }
}
