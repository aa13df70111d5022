//! `p2 encode`: images as the noise that a model would draw them from.

use std::ops::Range;

use serde_json::json;

use super::sample::{check_class, check_steps};
use crate::cli::{EncodeArgs, ExitStatus};
use crate::codes::{Codes, Origin, check_model, decode, encode};
use crate::config::RunConfig;
use crate::config::section::SkinTones;
use crate::data::{Dataset, Split};
use crate::durable;
use crate::engine;
use crate::model::Model;
use crate::model::file::load;
use crate::print::Printer;
use crate::problem::Problem;

/// Images computed at once, if the user does not say.
const BATCH_SIZE: usize = 16;
/// Steps, if the user does not say and the model has as many.
const N_STEPS: usize = 100;

/// Encodes images into a file and, if wanted, measures how exactly they come back.
pub(super) fn encode_images(
    arguments: &EncodeArgs,
    printer: &Printer,
) -> anyhow::Result<ExitStatus> {
    engine::with_threads(arguments.threads, |cpu| {
        let loaded = load(&arguments.model, cpu)?;
        for skipped in &loaded.skipped {
            printer.warn(skipped);
        }
        check_model(&loaded.run)?;
        let n_steps = n_steps(arguments, &loaded.run)?;
        let dataset = open(arguments, &loaded.run)?;
        let n_images = n_images(arguments, dataset.n_images(Split::Training))?;
        durable::make_parent(&arguments.out)?;
        let mut job = Job {
            model: &loaded.model,
            dataset,
            class: arguments.class,
            check: arguments.check,
            codes: Codes {
                values: Vec::new(),
                labels: Vec::new(),
                origin: Origin::of(&loaded.run, n_steps),
            },
            square_error: 0.0,
        };
        let batch_size = arguments
            .batch_size
            .map_or(BATCH_SIZE, std::num::NonZero::get);
        for first in (0..n_images).step_by(batch_size) {
            let batch = first..(first + batch_size).min(n_images);
            job.encode(batch.clone())?;
            printer.detail(format_args!("{} of {n_images} images", batch.end));
        }
        for skipped in job.dataset.skipped() {
            printer.warn(format_args!("skipped {}: {}", skipped.file, skipped.reason));
        }
        job.codes.save(&arguments.out)?;
        job.report(arguments, printer)
    })
}

/// Encoding in progress.
struct Job<'a> {
    model: &'a Model,
    dataset: Dataset,
    class: Option<u32>,
    check: bool,
    codes: Codes,
    /// Summed over all numbers of all images, if they are checked.
    square_error: f64,
}

impl Job<'_> {
    fn encode(&mut self, images: Range<usize>) -> anyhow::Result<()> {
        let (x0, mut labels) = self.dataset.images(Split::Training, images)?; // [N, H, W, 3]
        if let Some(class) = self.class {
            labels.fill(class);
        }
        let n_steps = self.codes.origin.n_steps;
        let codes = encode(self.model, &x0, &labels, n_steps)?;
        if self.check {
            let again = decode(self.model, codes.clone(), &labels, n_steps)?;
            let again = again.flatten_all()?.to_vec1::<f32>()?;
            let pixels = x0.flatten_all()?.to_vec1::<f32>()?;
            for (again, pixel) in again.iter().zip(&pixels) {
                self.square_error += (f64::from(*again) - f64::from(*pixel)).powi(2);
            }
        }
        let values = codes.flatten_all()?.to_vec1::<f32>()?;
        self.codes.values.extend(values);
        self.codes.labels.extend(labels);
        Ok(())
    }

    fn report(self, arguments: &EncodeArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
        let (n_images, n_steps) = (self.codes.n_images(), self.codes.origin.n_steps);
        let n_numbers = self.codes.values.len() as f64;
        let rms = self
            .check
            .then(|| 127.5 * (self.square_error / n_numbers).sqrt());
        if arguments.json {
            printer.json(&json!({
                "out": arguments.out,
                "n_images": n_images,
                "n_steps": n_steps,
                "nfe": n_steps * if self.check { 2 } else { 1 },
                "round_trip_rms": rms,
            }))?;
        } else if let Some(rms) = rms {
            printer.data(format_args!(
                "the round trip is off by {rms:.3} of 255 levels: root mean square over all numbers of {n_images} \
                 images, {n_steps} steps each way"
            ))?;
        }
        let out = arguments.out.display();
        printer.note(format_args!("{n_images} images as noise in {out}"));
        Ok(ExitStatus::Done)
    }
}

fn n_steps(arguments: &EncodeArgs, config: &RunConfig) -> Result<usize, Problem> {
    let usual = N_STEPS.min(config.diffusion.n_timesteps);
    let n_steps = arguments.steps.map_or(usual, std::num::NonZero::get);
    check_steps(n_steps, config)?;
    Ok(n_steps)
}

/// All images of a path, whatever the model held out or left out.
fn open(arguments: &EncodeArgs, config: &RunConfig) -> anyhow::Result<Dataset> {
    let mut data = config.data.clone();
    data.path.clone_from(&arguments.data);
    data.held_out = 0.0;
    data.skin_tones = SkinTones::All;
    check_class(arguments.class, config.model.n_classes)?;
    let dataset = Dataset::open(&data)?;
    let (n_known, n_found) = (config.model.n_classes, dataset.class_names().len());
    if arguments.class.is_none() && n_known > 0 && n_found != n_known {
        let path = &arguments.data;
        let message = format!("the model knows {n_known} classes, {path} has {n_found}");
        let problem =
            Problem::new(message).because("folders are classes, in the order of their names");
        return Err(problem
            .hint("say the class of all images with --class")
            .into());
    }
    Ok(dataset)
}

fn n_images(arguments: &EncodeArgs, n_all: usize) -> Result<usize, Problem> {
    match arguments.n_images.map(std::num::NonZero::get) {
        Some(n) if n > n_all => Err(Problem::new(format!("{n} images, but there are {n_all}"))
            .hint(format!(
                "use --n-images from 1 to {n_all}, or leave it away"
            ))),
        n => Ok(n.unwrap_or(n_all)),
    }
}
