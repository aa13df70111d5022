//! `p2 bench`: how fast this machine trains and draws.

use crate::bench::{N_WARM_UP, OpTime, Report, Sampling, Task, Training, measure, median};
use crate::cli::{BenchArgs, ExitStatus};
use crate::config::{Base, Override, Run, resolve};
use crate::engine;
use crate::print::Printer;

/// Measures, then prints the numbers.
pub(super) fn bench(arguments: &BenchArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let run = configuration(arguments)?;
    let task = if arguments.sampling {
        Task::Sampling
    } else {
        Task::Training
    };
    let n_steps = arguments.steps;
    printer.note(format_args!(
        "{}: batches of {}, random pixels, {N_WARM_UP} steps to warm up, {n_steps} timed",
        arguments.preset, run.train.batch_size
    ));
    let report = engine::with_threads(arguments.threads, |cpu| measure(run, task, n_steps, cpu))?;
    if arguments.json {
        let mut json = serde_json::to_value(&report)?;
        json["preset"] = arguments.preset.clone().into();
        printer.json(&json)?;
    } else {
        printer.data(text(&report).trim_end())?;
    }
    Ok(ExitStatus::Done)
}

/// The preset with steps of one micro-batch, or of as many images as the user says.
fn configuration(arguments: &BenchArgs) -> anyhow::Result<Run> {
    let base = Base::Preset(arguments.preset.clone());
    let mut overrides: Vec<Override> = arguments
        .set
        .iter()
        .map(|assignment| Override::set(assignment))
        .collect();
    let n_images = match arguments.batch_size {
        Some(n_images) => n_images.get(),
        None => resolve(&base, &overrides)?.train.micro_batch_size,
    };
    let n_images = toml_edit::Value::from(i64::try_from(n_images)?);
    for key in ["train.batch_size", "train.micro_batch_size"] {
        overrides.push(Override::flag("--batch-size", key, &n_images));
    }
    Ok(resolve(&base, &overrides)?)
}

fn text(report: &Report) -> String {
    let Report {
        isa,
        n_threads,
        n_parameters,
        gemm_peak_gflops,
        ..
    } = report;
    let memory = match report.peak_memory_bytes {
        Some(bytes) => format!("{:.2} GB", bytes as f64 / 1e9),
        None => "not told by this system".to_owned(),
    };
    let results = match (&report.training, &report.sampling) {
        (Some(training), _) => training_text(training),
        (None, Some(sampling)) => sampling_text(sampling),
        (None, None) => String::new(),
    };
    format!(
        "parameters     {n_parameters}\n\
         computed with  {n_threads} threads, {isa}\n\
         GEMM peak      {gemm_peak_gflops:.0} Gflop/s\n\
         peak memory    {memory}\n\
         {results}"
    )
}

fn training_text(training: &Training) -> String {
    format!(
        "training       {:.2} images/s ({:.3} s per step)\n\
         forward        {:.2} images/s\n\
         share of peak  {:.0} % (flops of the direct algorithm, backward as two forward passes)\n\
         \n{}",
        training.train_images_per_second,
        median(&training.step_seconds),
        training.forward_images_per_second,
        100.0 * training.train_share_of_gemm_peak,
        ops_text(&training.ops)
    )
}

fn sampling_text(sampling: &Sampling) -> String {
    format!(
        "drawing        {:.2} images/s ({} images, {} steps: {:.1} s)\n",
        sampling.sampling_images_per_second,
        sampling.n_images,
        sampling.n_sampling_steps,
        median(&sampling.draw_seconds)
    )
}

/// One line per op and pass of a step.
fn ops_text(ops: &[OpTime]) -> String {
    let total: f64 = ops.iter().map(|op| op.seconds).sum();
    let lines = ops.iter().map(|op| {
        format!(
            "{:14}  {:8}  {:9.1}  {:5.1} %\n",
            op.op,
            op.pass.unwrap_or_default(),
            1e3 * op.seconds,
            100.0 * op.seconds / total
        )
    });
    let head = "op              pass             ms    share\n";
    std::iter::once(head.to_owned()).chain(lines).collect()
}
