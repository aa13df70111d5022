//! `p2 sample`: draws images from a model into a folder.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use crate::cli::{ExitStatus, SampleArgs};
use crate::config::RunConfig;
use crate::config::section::Spacing;
use crate::durable;
use crate::engine;
use crate::model::Model;
use crate::model::file::{Loaded, load};
use crate::monitor::grid::{Images, Size};
use crate::print::Printer;
use crate::problem::Problem;
use crate::sample::{Guidance, SampleOptions, draw, label, npz_file, raw_file};

/// Images computed at once, if the user does not say.
const BATCH_SIZE: u64 = 16;

/// Images in the grid beside the single files, at most.
const GRID_IMAGES: u64 = 64;

/// Draws images and saves them as `000000.png` and so on, and the first of them as `grid.png`.
pub(super) fn sample(arguments: &SampleArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    engine::with_threads(arguments.threads, |cpu| {
        let loaded = load(&arguments.model, cpu)?;
        for skipped in &loaded.skipped {
            printer.warn(skipped);
        }
        let guide = arguments.guide.as_deref();
        let guide = guide.map(|path| load(path, cpu)).transpose()?;
        let guide = guide.as_ref().map(|loaded| &loaded.model);
        let options = SampleOptions {
            guidance: guidance(arguments, &loaded, guide)?,
            ..options(arguments, &loaded.run)?
        };
        printer.note(format_args!("sampling from {}", loaded.path.display()));
        durable::make_folder(&arguments.out)?;
        // Now rather than after hours of drawing.
        for path in [&arguments.raw, &arguments.npz].into_iter().flatten() {
            let folder = path.parent();
            if let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) {
                durable::make_folder(folder)?;
            }
        }
        let started = Instant::now();
        let n_images = arguments.n_images.get() as u64;
        let (pixels, n_evaluations) =
            draw_all(arguments, &loaded.model, &options, n_images, printer)?;
        let size = loaded.model.image_size();
        let n_pixels = size * size * 3;
        let grid = &pixels[..n_pixels * n_images.min(GRID_IMAGES) as usize];
        images(grid, size)?.save_grid(&arguments.out.join("grid.png"))?;
        if let Some(raw) = &arguments.raw {
            raw_file(raw, size, &pixels)?;
        }
        if let Some(npz) = &arguments.npz {
            let labels: Vec<u32> = (0..n_images)
                .map(|image| label(&loaded.model, &options, image))
                .collect();
            let labels = (loaded.model.n_classes() > 0).then_some(labels.as_slice());
            npz_file(npz, size, &pixels, labels)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        if arguments.json {
            printer.json(&json!({
                "out": arguments.out,
                "n_images": n_images,
                "seconds": seconds,
                "nfe": n_evaluations,
            }))?;
        }
        let folder = arguments.out.display();
        printer.note(format_args!(
            "{n_images} images in {folder}, {n_evaluations} network evaluations each, {seconds:.1} s"
        ));
        Ok(ExitStatus::Done)
    })
}

/// Draws batch by batch, saves each image at once, and returns the unrounded pixels (those of the grid, and all if
/// they are to be saved) and the network evaluations per image.
fn draw_all(
    arguments: &SampleArgs,
    model: &Model,
    options: &SampleOptions<'_>,
    n_images: u64,
    printer: &Printer,
) -> anyhow::Result<(Vec<f32>, f64)> {
    let batch_size = arguments.batch_size.map_or(BATCH_SIZE, |n| n.get() as u64);
    let (mut all, mut n_evaluations) = (Vec::new(), 0);
    for first in (0..n_images).step_by(batch_size as usize) {
        let batch: Range<u64> = first..(first + batch_size).min(n_images);
        let drawn = draw(model, batch.clone(), options, || Ok(()))?;
        n_evaluations += drawn.n_evaluations;
        let pixels = drawn
            .pixels
            .flatten_all()?
            .to_vec1::<f32>()
            .context("cannot read samples")?;
        save_each(&arguments.out, first, &images(&pixels, model.image_size())?)?;
        if arguments.raw.is_some() || arguments.npz.is_some() || first < GRID_IMAGES {
            all.extend(pixels);
        }
        printer.detail(format_args!("{} of {n_images} images", batch.end));
    }
    Ok((all, n_evaluations as f64 / n_images as f64))
}

fn save_each(folder: &Path, first: u64, images: &Images<'_>) -> anyhow::Result<()> {
    for i in 0..images.n_images() {
        images.save_one(i, &folder.join(format!("{:06}.png", first + i as u64)))?;
    }
    Ok(())
}

fn images(pixels: &[f32], size: usize) -> anyhow::Result<Images<'_>> {
    Images::new(
        Size {
            height: size,
            width: size,
        },
        pixels,
    )
}

/// What the user asks for, and for the rest what the model was trained to show.
fn options<'a>(arguments: &SampleArgs, config: &RunConfig) -> Result<SampleOptions<'a>, Problem> {
    let sampler = arguments.sampler.unwrap_or(config.sample.sampler);
    let spacing = match (arguments.spacing, config.sample.spacing) {
        (Some(spacing), _) => spacing,
        // The model's own sampler goes between timesteps, the one asked for cannot.
        (None, Spacing::Karras) if sampler.is_discrete() => Spacing::Even,
        (None, spacing) => spacing,
    };
    let options = SampleOptions {
        sampler,
        n_steps: arguments
            .steps
            .map_or(config.sample.n_steps, std::num::NonZero::get),
        spacing,
        eta: arguments.eta.unwrap_or(config.sample.eta),
        seed: arguments.seed,
        class: arguments.class,
        guidance: Guidance::of_scale(1.0),
    };
    let n_timesteps = config.diffusion.n_timesteps;
    if options.n_steps > n_timesteps {
        let message = format!(
            "{} steps, but the model knows {n_timesteps} noise levels",
            options.n_steps
        );
        return Err(Problem::new(message).hint(format!("use --steps from 1 to {n_timesteps}")));
    }
    if !options.sampler.has_eta() && arguments.eta.is_some() {
        return Err(
            Problem::new(format!("{} has no eta", options.sampler.name()))
                .hint("leave --eta away, or use --sampler ddim"),
        );
    }
    if options.sampler.is_discrete() && options.spacing == Spacing::Karras {
        let message = format!("{} goes from timestep to timestep", options.sampler.name());
        return Err(Problem::new(message)
            .because("karras spacing has levels between them")
            .hint("use --sampler euler, which is ddim between timesteps too"));
    }
    let n_classes = config.model.n_classes;
    match options.class {
        Some(_) if n_classes == 0 => {
            Err(Problem::new("the model knows no classes").hint("leave --class away"))
        }
        Some(class) if class as usize >= n_classes => Err(Problem::new(format!(
            "class {class} of a model with {n_classes} classes"
        ))
        .hint(format!("use --class from 0 to {}", n_classes - 1))),
        _ => Ok(options),
    }
}

/// How far to go away from which worse guess.
fn guidance<'a>(
    arguments: &SampleArgs,
    loaded: &Loaded,
    guide: Option<&'a Model>,
) -> Result<Guidance<'a>, Problem> {
    let scale = arguments
        .guidance_scale
        .unwrap_or(loaded.run.sample.guidance);
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(
            Problem::new(format!("--guidance-scale is {scale}")).hint("use 0 or more; 1 is none")
        );
    }
    let sigmas = match arguments.guidance_sigmas.as_deref() {
        None => [0.0, f64::INFINITY],
        Some(&[least, most]) if (0.0..most).contains(&least) => [least, most],
        Some(sigmas) => {
            return Err(Problem::new(format!("--guidance-sigmas are {sigmas:?}"))
                .hint("give the least noise first, 0 or more"));
        }
    };
    check_guide(guide, &loaded.model, scale)?;
    Ok(Guidance {
        scale,
        sigmas,
        by: guide,
    })
}

/// Refuses a guide whose guesses do not compare with the model's.
fn check_guide(guide: Option<&Model>, model: &Model, scale: f64) -> Result<(), Problem> {
    let Some(guide) = guide else {
        if scale == 1.0 || model.no_class().is_some() {
            return Ok(());
        }
        return Err(Problem::new("the model cannot guide itself")
            .because("it was not trained without classes as well")
            .hint("train with model.label_dropout = 0.1, or give another model with --guide"));
    };
    let (size, other_size) = (model.image_size(), guide.image_size());
    let (n_classes, n_others) = (model.n_classes(), guide.n_classes());
    let (message, hint) = if scale == 1.0 {
        let message = "--guide without a scale other than 1 guides nothing".to_owned();
        (message, "add --guidance-scale 2")
    } else if size != other_size {
        let message = format!("the model draws images of {size} pixels, its guide of {other_size}");
        (message, "give a guide of the same size")
    } else if guide.schedule() != model.schedule() {
        let message = "the model and its guide have different noise schedules".to_owned();
        (
            message,
            "give a guide of the same diffusion.schedule and n_timesteps",
        )
    } else if n_others > 0 && n_others != n_classes {
        let message = format!("the model knows {n_classes} classes, its guide {n_others}");
        (message, "give a guide of the same classes, or of none")
    } else {
        return Ok(());
    };
    Err(Problem::new(message).hint(hint))
}
