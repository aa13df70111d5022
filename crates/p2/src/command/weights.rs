//! `p2 weights`: which weightings there are, and what each of them minimizes.

use std::fmt::Write as _;

use anyhow::Context as _;
use serde_json::json;

use crate::cli::{ExitStatus, WeightsCommand, WeightsListArgs, WeightsShowArgs};
use crate::config::{Base, Run, resolve};
use crate::durable;
use crate::print::Printer;
use crate::problem::Problem;
use crate::weights::catalog::{EXAMPLES, describe};
use crate::weights::report::{Report, report};
use crate::weights::{figure, spec};

/// Rows of a printed table.
const N_ROWS: usize = 11;

/// Lists weightings, or shows some.
pub(super) fn weights(command: &WeightsCommand, printer: &Printer) -> anyhow::Result<ExitStatus> {
    match command {
        WeightsCommand::List(arguments) => list(arguments, printer)?,
        WeightsCommand::Show(arguments) => show(arguments, printer)?,
    }
    Ok(ExitStatus::Done)
}

fn list(arguments: &WeightsListArgs, printer: &Printer) -> anyhow::Result<()> {
    if arguments.json {
        let kinds = EXAMPLES.map(|example| {
            let description = describe(example);
            json!({
                "kind": spec::kind(example),
                "example": spec::text(example),
                "formula": description.formula,
                "source": description.source,
                "raw": example.is_raw(),
                "learns": example.is_stateful(),
            })
        });
        return printer.json(&kinds);
    }
    for example in EXAMPLES {
        let (kind, description) = (spec::kind(example), describe(example));
        printer.data(format_args!(
            "{kind:20}  {:42}  {:24}  {}",
            description.formula,
            description.source,
            spec::text(example)
        ))?;
    }
    printer.note(
        "\nS is the SNR, l its logarithm; weights are on the error of the noise, `raw` ones on what is predicted\n\
         look at some with `p2 weights show simple p2:gamma=1,k=1`",
    );
    Ok(())
}

fn show(arguments: &WeightsShowArgs, printer: &Printer) -> anyhow::Result<()> {
    let run =
        resolve(&Base::Preset("paper-256".into()), &arguments.overrides()).map_err(|problem| {
            // Files and `--set` are not what the user wrote.
            problem
                .at(None)
                .hint("change it with --schedule, --prediction, --density or --timesteps")
        })?;
    if let Some(path) = &arguments.png {
        let is_png = path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
        if !is_png {
            let message = format!("{} is no name of a PNG", path.display());
            return Err(Problem::new(message).hint("end it with .png").into());
        }
    }
    let reports = arguments
        .weightings
        .iter()
        .map(|text| report(spec::parse(text)?, &run))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(path) = &arguments.csv {
        durable::write(path, csv(&reports)?.as_bytes())?;
    }
    if let Some(path) = &arguments.png {
        figure::save(&reports, path)?;
    }
    if arguments.json {
        return printer.json(&json!({
            "schedule": run.diffusion.schedule,
            "n_timesteps": run.diffusion.n_timesteps,
            "prediction": run.diffusion.prediction,
            "density": run.loss.density,
            "weightings": reports,
        }));
    }
    printer.data(conditions(&run)?)?;
    for report in &reports {
        printer.data(text(report)?)?;
    }
    Ok(())
}

fn conditions(run: &Run) -> anyhow::Result<String> {
    let target = serde_json::to_string(&run.diffusion.prediction)?;
    Ok(format!(
        "schedule {}, {} levels, prediction {target}, density {}\n\
         the network is trained with the column `on {target}`",
        serde_json::to_string(&run.diffusion.schedule)?,
        run.diffusion.n_timesteps,
        serde_json::to_string(&run.loss.density)?,
    )
    .replace('"', ""))
}

/// A weighting for people: some rows, and what they add up to.
fn text(report: &Report) -> anyhow::Result<String> {
    let mut text = format!("\n{}", report.spec);
    if report.raw {
        text.push_str("  (raw: repeats another program's number)");
    }
    if report.learns {
        text.push_str("  (learns from the errors it sees: these weights are those it starts with)");
    }
    text.push_str(&table(report)?);
    let (shares, at) = (report.stage_shares, report.log_snr_at);
    write!(
        text,
        "  stages      clean-up {:.1} %, content {:.1} %, coarse {:.1} %\n  \
           log-SNR     peak {:.2}{}; 10, 50 and 90 % lie below {:.2}, {:.2} and {:.2}\n  \
           mean weight {}: the factor on the learning rate beside simple, where the optimizer keeps it",
        100.0 * shares.clean_up,
        100.0 * shares.content,
        100.0 * shares.coarse,
        report.peak_log_snr,
        if is_at_an_end(report) {
            ", at an end of the schedule"
        } else {
            ""
        },
        at.p10,
        at.p50,
        at.p90,
        if report.mean_weight < 1e4 {
            format!("{:.5}", report.mean_weight)
        } else {
            short(report.mean_weight)
        },
    )?;
    Ok(text)
}

/// Some rows of a weighting's table.
fn table(report: &Report) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "\n{:>6} {:>9} {:>8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "t",
        "SNR",
        "log-SNR",
        "on eps",
        "/ mean",
        "on x0",
        "on v",
        "on x-prev",
        "on VLB",
        "objective"
    )?;
    let last = report.table.len().saturating_sub(1);
    let mut shown: Vec<usize> = (0..N_ROWS).map(|i| i * last / (N_ROWS - 1)).collect();
    shown.dedup();
    for t in shown {
        let row = report.table.get(t).context("a schedule has levels")?;
        writeln!(
            text,
            "{:>6} {:>9} {:>8.2} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
            row.t,
            short(row.snr),
            row.log_snr,
            short(row.weight_eps),
            short(row.normalized),
            short(row.weight_x0),
            short(row.weight_v),
            short(row.weight_x_prev),
            short(row.weight_vlb),
            short(row.objective),
        )?;
    }
    Ok(text)
}

/// Whether what counts most is the first or the last level that counts: there is no peak in between.
fn is_at_an_end(report: &Report) -> bool {
    let mut counts = report.table.iter().filter(|row| row.objective > 0.0);
    let ends = [counts.next(), counts.next_back()];
    ends.iter()
        .flatten()
        .any(|row| row.log_snr == report.peak_log_snr)
}

/// Four digits, with an exponent where there would be many zeros.
fn short(x: f64) -> String {
    if x == 0.0 || (1e-3..1e4).contains(&x.abs()) {
        format!("{x:.4}")
    } else {
        format!("{x:.2e}")
    }
}

/// One row per weighting and timestep.
fn csv(reports: &[Report]) -> anyhow::Result<String> {
    let mut text = String::from(
        "weighting,t,snr,log_snr,weight_eps,normalized,weight_x0,weight_v,weight_x_prev,weight_vlb,objective\n",
    );
    for report in reports {
        for row in &report.table {
            // A weighting with two constants has a comma in its name.
            writeln!(
                text,
                "\"{}\",{},{},{},{},{},{},{},{},{},{}",
                report.spec,
                row.t,
                row.snr,
                row.log_snr,
                row.weight_eps,
                row.normalized,
                row.weight_x0,
                row.weight_v,
                row.weight_x_prev,
                row.weight_vlb,
                row.objective
            )?;
        }
    }
    Ok(text)
}
