//! The commands: one file each, named like the command.

mod bench;
mod convert;
mod encode;
mod info;
mod likelihood;
mod presets;
mod sample;
mod train;
mod train_classifier;
mod weights;

use crate::cli::{Command, ExitStatus};
use crate::print::Printer;

/// Does what the command line says.
///
/// # Errors
/// If the command could not run.
pub fn run(command: Command, printer: &Printer) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Train(arguments) => train::train(&arguments, printer),
        Command::TrainClassifier(arguments) => {
            train_classifier::train_classifier(&arguments, printer)
        }
        Command::Presets(arguments) => presets::presets(&arguments, printer),
        Command::Sample(arguments) => sample::sample(&arguments, printer),
        Command::Convert(arguments) => convert::convert(&arguments, printer),
        Command::Encode(arguments) => encode::encode_images(&arguments, printer),
        Command::Likelihood(arguments) => likelihood::likelihood(&arguments, printer),
        Command::Info(arguments) => info::info(&arguments, printer),
        Command::Bench(arguments) => bench::bench(&arguments, printer),
        Command::Weights(command) => weights::weights(&command, printer),
    }
}
