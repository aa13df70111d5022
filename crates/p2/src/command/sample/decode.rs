//! `p2 sample --codes`: draws images again from the noise that they were encoded to, and those between them.

use std::path::Path;
use std::time::Instant;

use p2_nn::Cpu;

use super::cascade::check_class;
use super::options::check_steps;
use super::{BATCH_SIZE, GRID_IMAGES, images, make_folders, report, save_each, save_whole};
use crate::cli::{ExitStatus, SampleArgs};
use crate::codes::{Codes, decode};
use crate::config::RunConfig;
use crate::model::file::load;
use crate::print::Printer;
use crate::problem::Problem;

/// Draws the images of a file of codes, and saves them as all samples are; between codes row by row.
pub(super) fn decode_images(
    arguments: &SampleArgs,
    path: &Path,
    cpu: Cpu,
    printer: &Printer,
) -> anyhow::Result<ExitStatus> {
    let model = arguments.models().next();
    let loaded = load(model.map_or(Path::new(""), |path| path.as_path()), cpu)?;
    for skipped in &loaded.skipped {
        printer.warn(skipped);
    }
    let (model, config) = (&loaded.model, &loaded.run);
    let codes = Codes::load(path)?;
    codes.check(config)?;
    check_class(arguments.class, config.model.n_classes)?;
    let made = codes.origin.n_steps;
    let n_steps = arguments.steps.map_or(made, std::num::NonZero::get);
    check_steps(n_steps, config)?;
    if n_steps != made {
        printer.warn(format_args!(
            "the codes were made in {made} steps: in {n_steps} they come back less exactly"
        ));
    }
    let n_between = arguments.interpolate.map_or(0, std::num::NonZero::get);
    let codes = first(codes, arguments)?.interpolated(n_between);
    let codes = with_class(codes, arguments, config)?;
    printer.note(format_args!("sampling from {}", loaded.path.display()));
    make_folders(arguments)?;
    let started = Instant::now();
    let n_images = codes.n_images();
    let batch_size = arguments
        .batch_size
        .map_or(BATCH_SIZE as usize, std::num::NonZero::get);
    let mut pixels: Vec<f32> = Vec::new();
    for first in (0..n_images).step_by(batch_size) {
        let batch = first..(first + batch_size).min(n_images);
        let labels = &codes.labels[batch.clone()];
        let drawn = decode(model, codes.tensor(batch.clone())?, labels, n_steps)?;
        let drawn = drawn.flatten_all()?.to_vec1::<f32>()?;
        save_each(
            &arguments.out,
            first as u64,
            &images(&drawn, model.image_size())?,
        )?;
        pixels.extend(drawn);
        printer.detail(format_args!("{} of {n_images} images", batch.end));
    }
    save_grid(arguments, model.image_size(), &pixels, n_between)?;
    let labels = (model.n_classes() > 0).then_some(codes.labels.as_slice());
    save_whole(arguments, model.image_size(), &pixels, labels)?;
    report(
        arguments,
        (n_images as u64, n_steps as f64),
        started,
        printer,
    )
}

/// As many codes as are wanted.
fn first(mut codes: Codes, arguments: &SampleArgs) -> Result<Codes, Problem> {
    let n_all = codes.n_images();
    match arguments.n_images.map(std::num::NonZero::get) {
        Some(n) if n > n_all => {
            let message = format!("{n} images, but there are {n_all} codes");
            let hint = format!("use --n-images from 1 to {n_all}, or leave it away");
            return Err(Problem::new(message).hint(hint));
        }
        Some(n) => {
            codes.values.truncate(n * codes.values.len() / n_all);
            codes.labels.truncate(n);
        }
        None => {}
    }
    if codes.n_images() == 1 && arguments.interpolate.is_some() {
        return Err(
            Problem::new("nothing lies between one code and the next: there is one")
                .hint("encode two images or more"),
        );
    }
    Ok(codes)
}

/// The codes as images of the class that is asked for, or of their own if the model knows it.
fn with_class(
    mut codes: Codes,
    arguments: &SampleArgs,
    config: &RunConfig,
) -> Result<Codes, Problem> {
    let n_classes = config.model.n_classes;
    if let Some(class) = arguments.class {
        codes.labels.fill(class);
    }
    match codes.labels.iter().max() {
        Some(&class) if n_classes > 0 && class as usize >= n_classes => {
            let message = format!("codes of class {class}, of a model with {n_classes} classes");
            let hint = format!("choose another with --class, from 0 to {}", n_classes - 1);
            Err(Problem::new(message).hint(hint))
        }
        _ => Ok(codes),
    }
}

/// A grid of the first images; between codes each row begins with one of them and leads to the next.
fn save_grid(
    arguments: &SampleArgs,
    size: usize,
    pixels: &[f32],
    n_between: usize,
) -> anyhow::Result<()> {
    let path = arguments.out.join("grid.png");
    let n_pixels = size * size * 3;
    if n_between == 0 {
        let n_shown = (pixels.len() / n_pixels).min(GRID_IMAGES as usize);
        return images(&pixels[..n_shown * n_pixels], size)?.save_grid(&path);
    }
    let n_columns = n_between + 1;
    let n_rows = (GRID_IMAGES as usize).div_ceil(n_columns);
    let n_shown = (pixels.len() / n_pixels).min(n_rows * n_columns + 1);
    images(&pixels[..n_shown * n_pixels], size)?.save_rows(n_columns, &path)
}
