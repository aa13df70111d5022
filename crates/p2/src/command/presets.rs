//! `p2 presets`: the configurations that need no file.

use serde_json::json;

use crate::cli::{ExitStatus, PresetsArgs};
use crate::config::PRESETS;
use crate::print::Printer;

/// Prints name and summary of each preset.
pub(super) fn presets(arguments: &PresetsArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if arguments.json {
        let presets =
            PRESETS.map(|preset| json!({ "name": preset.name, "summary": preset.summary() }));
        printer.json(&presets)?;
        return Ok(ExitStatus::Done);
    }
    let width = PRESETS
        .iter()
        .map(|preset| preset.name.len())
        .max()
        .unwrap_or(0);
    for preset in PRESETS {
        printer.data(format_args!("{:width$}  {}", preset.name, preset.summary()))?;
    }
    printer.note("\nuse one with `p2 train --preset NAME`; add --dry-run to see its values");
    Ok(ExitStatus::Done)
}
