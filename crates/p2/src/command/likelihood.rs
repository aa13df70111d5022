//! `p2 likelihood`: bits per dimension of images under a model.

use std::fmt::Write as _;

use p2_diffusion::{Levels, Stage};
use serde_json::json;

use crate::cli::{ExitStatus, LikelihoodArgs};
use crate::data::{Dataset, Split};
use crate::durable;
use crate::engine;
use crate::likelihood::{Bound, BoundOptions, Exact, ExactOptions, bound, exact};
use crate::model::Model;
use crate::model::file::load;
use crate::print::Printer;
use crate::problem::Problem;

/// Images computed at once, if the user does not say.
const BATCH_SIZE: usize = 16;

/// Error that each step of the flow may make, if the user does not say; by Song et al. 2021.
const TOLERANCE: f64 = 1e-5;

/// Prints the bound, its stages and, if wanted, all its terms; or an estimate without a bound.
pub(super) fn likelihood(
    arguments: &LikelihoodArgs,
    printer: &Printer,
) -> anyhow::Result<ExitStatus> {
    engine::with_threads(arguments.threads, |cpu| {
        let loaded = load(&arguments.model, cpu)?;
        for skipped in &loaded.skipped {
            printer.warn(skipped);
        }
        let mut data = loaded.run.data.clone();
        data.path.clone_from(&arguments.data);
        let split = if arguments.training {
            Split::Training
        } else {
            Split::HeldOut
        };
        let (model, dataset) = (&loaded.model, &Dataset::open(&data)?);
        let n_images = n_images(arguments, dataset.n_images(split))?;
        let report = |done: usize| {
            printer.detail(format_args!("{done} of {n_images} images"));
            Ok(())
        };
        if arguments.exact {
            let options = exact_options(arguments, split);
            let exact = exact(model, dataset, 0..n_images, options, report)?;
            print_exact(&exact, options, arguments, printer)?;
        } else {
            let options = options(arguments, split, model)?;
            let bound = bound(model, dataset, 0..n_images, &options, report)?;
            if let Some(path) = &arguments.csv {
                durable::write(path, csv(&bound)?.as_bytes())?;
            }
            print(&bound, arguments, printer)?;
        }
        for skipped in dataset.skipped() {
            printer.warn(format_args!("skipped {}: {}", skipped.file, skipped.reason));
        }
        Ok(ExitStatus::Done)
    })
}

fn exact_options(arguments: &LikelihoodArgs, split: Split) -> ExactOptions {
    ExactOptions {
        split,
        n_probes: arguments.probes.map_or(1, std::num::NonZero::get),
        tolerance: arguments.tolerance.unwrap_or(TOLERANCE),
        seed: arguments.seed,
    }
}

fn options(
    arguments: &LikelihoodArgs,
    split: Split,
    model: &Model,
) -> anyhow::Result<BoundOptions> {
    let training = model.schedule();
    let n_timesteps = training.n_timesteps();
    let levels = match arguments.steps.map(std::num::NonZero::get) {
        Some(steps) if steps > n_timesteps => {
            let message = format!("{steps} steps, but the model knows {n_timesteps} noise levels");
            let hint = format!("use --steps from 1 to {n_timesteps}");
            return Err(Problem::new(message).hint(hint).into());
        }
        Some(steps) => Levels::from_spec(training, &steps.to_string())?,
        None => Levels::all(training),
    };
    let batch_size = arguments
        .batch_size
        .map_or(BATCH_SIZE, std::num::NonZero::get);
    Ok(BoundOptions {
        split,
        levels,
        batch_size,
        seed: arguments.seed,
    })
}

/// How many of the images that there are.
fn n_images(arguments: &LikelihoodArgs, n_all: usize) -> Result<usize, Problem> {
    if n_all == 0 {
        let message = format!("{} has no held-out images for this model", arguments.data);
        return Err(Problem::new(message)
            .because("it was trained with data.held_out = 0, or there are too few images")
            .hint("bound the training images with --training"));
    }
    match arguments.n_images.map(std::num::NonZero::get) {
        Some(n) if n > n_all => Err(Problem::new(format!("{n} images, but there are {n_all}"))
            .hint(format!(
                "use --n-images from 1 to {n_all}, or leave it away"
            ))),
        n => Ok(n.unwrap_or(n_all)),
    }
}

fn print(bound: &Bound, arguments: &LikelihoodArgs, printer: &Printer) -> anyhow::Result<()> {
    let bits = &bound.bits_per_dim;
    let (mean, error, n_images) = (bits.mean(), bits.standard_error(), bits.0.len());
    let stages = Stage::ALL.map(|stage| stage_bits(bound, stage));
    if arguments.json {
        let [clean_up, content, coarse] = stages;
        return printer.json(&json!({
            "bits_per_dim": mean,
            // One image has no error; JSON has no NaN.
            "standard_error": error.is_finite().then_some(error),
            "n_images": n_images,
            "nfe": bound.terms.len(),
            "prior_bpd": bound.prior_bpd,
            "stage_bpd": { "clean_up": clean_up, "content": content, "coarse": coarse },
            "terms": bound.terms,
        }));
    }
    let [clean_up, content, coarse] = stages;
    Ok(printer.data(format_args!(
        "{} bits per dimension, at most: {}, {} levels\n\
         clean-up {clean_up:.4}, of which pixels at the first level {:.4}\n\
         content {content:.4}\n\
         coarse {coarse:.5}, and {:.6} for what is not quite noise at the end",
        with_error(mean, error),
        of_images(n_images),
        bound.terms.len(),
        bound
            .terms
            .first()
            .map_or(f64::NAN, |term| term.bits_per_dim),
        bound.prior_bpd,
    ))?)
}

fn print_exact(
    exact: &Exact,
    options: ExactOptions,
    arguments: &LikelihoodArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let bits = &exact.bits_per_dim;
    let (mean, error, n_images) = (bits.mean(), bits.standard_error(), bits.0.len());
    let (nfe, n_probes) = (exact.nfe, options.n_probes);
    if arguments.json {
        return printer.json(&json!({
            "bits_per_dim": mean,
            "standard_error": error.is_finite().then_some(error),
            "n_images": n_images,
            "nfe": nfe,
            "n_probes": n_probes,
            "tolerance": options.tolerance,
            "images": bits,
        }));
    }
    printer.data(format_args!(
        "{} bits per dimension under the probability flow: {}\n\
         {nfe:.0} network evaluations per image, each with a derivative; probes: {n_probes}",
        with_error(mean, error),
        of_images(n_images)
    ))?;
    printer.note(
        "an unbiased estimate for pixels with uniform noise added: whole pixels need at most as many bits;\n\
         the bound without --exact is of the model's random steps, and may lie on either side",
    );
    Ok(())
}

/// A mean and its standard error; one image has none.
fn with_error(mean: f64, error: f64) -> String {
    match error.is_finite() {
        true => format!("{mean:.4} +- {error:.4}"),
        false => format!("{mean:.4}"),
    }
}

fn of_images(n_images: usize) -> String {
    match n_images {
        1 => "one image".to_owned(),
        n => format!("mean and standard error of {n} images"),
    }
}

/// The terms of a stage, added up.
fn stage_bits(bound: &Bound, stage: Stage) -> f64 {
    let levels = bound
        .terms
        .iter()
        .filter(|term| stage == Stage::of(p2_diffusion::NoiseLevel::from_log_snr(term.log_snr)));
    levels.map(|term| term.bits_per_dim).sum()
}

fn csv(bound: &Bound) -> anyhow::Result<String> {
    let mut text = String::from("t,log_snr,bits_per_dim,mse_eps\n");
    for term in &bound.terms {
        let (t, log_snr, bits, mse) = (term.t, term.log_snr, term.bits_per_dim, term.mse_eps);
        writeln!(text, "{t},{log_snr},{bits},{mse}")?;
    }
    Ok(text)
}
