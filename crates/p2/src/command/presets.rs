//! `p2 presets`: the configurations that need no file.

use serde_json::{Value, json};

use crate::cli::{ExitStatus, PresetsArgs};
use crate::config::{CLASSIFIER_PRESETS, PRESETS, Preset};
use crate::print::Printer;

/// Prints name and summary of each preset.
pub(super) fn presets(arguments: &PresetsArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let kinds: [(&str, &[Preset]); 2] = [
        ("train", &PRESETS),
        ("train-classifier", &CLASSIFIER_PRESETS),
    ];
    let all = || {
        kinds
            .into_iter()
            .flat_map(|(command, presets)| presets.iter().map(move |preset| (command, preset)))
    };
    if arguments.json {
        let describe = |(command, preset): (&str, &Preset)| json!({ "name": preset.name, "command": command, "summary": preset.summary() });
        let presets: Vec<Value> = all().map(describe).collect();
        printer.json(&presets)?;
        return Ok(ExitStatus::Done);
    }
    let width = all()
        .map(|(_, preset)| preset.name.len())
        .max()
        .unwrap_or(0);
    for (_, preset) in all() {
        printer.data(format_args!("{:width$}  {}", preset.name, preset.summary()))?;
    }
    printer.note(
        "\nuse one with `p2 train --preset NAME`, those of classifiers with `p2 train-classifier --preset NAME`; \
         add --dry-run to see its values",
    );
    Ok(ExitStatus::Done)
}
