//! `p2 sample`: draws images from a model into a folder.

mod cascade;
mod decode;
mod options;

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use crate::cli::{ExitStatus, SampleArgs};
use crate::durable;
use crate::engine;
use crate::monitor::grid::{Images, Size};
use crate::print::Printer;
use crate::sample::{npz_file, raw_file};
pub(super) use cascade::check_class;
use cascade::{Cascade, Networks};
pub(super) use options::check_steps;

/// Images computed at once, if the user does not say.
const BATCH_SIZE: u64 = 16;

/// Images in the grid beside the single files, at most.
const GRID_IMAGES: u64 = 64;

/// Draws images and saves them as `000000.png` and so on, and the first of them as `grid.png`.
pub(super) fn sample(arguments: &SampleArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    engine::with_threads(arguments.threads, |cpu| {
        if let Some(codes) = &arguments.codes {
            return decode::decode_images(arguments, codes, cpu, printer);
        }
        let networks = Networks::load(arguments, cpu, printer)?;
        let cascade = networks.cascade(arguments, printer)?;
        for path in networks.paths() {
            printer.note(format_args!("sampling from {}", path.display()));
        }
        make_folders(arguments)?;
        let started = Instant::now();
        // Without codes there must be a number.
        let n_images = arguments.n_images.map_or(1, |n| n.get() as u64);
        let all = draw_all(arguments, &cascade, n_images, printer)?;
        let (pixels, size) = (&all.pixels, cascade.image_size());
        let n_pixels = size * size * 3;
        let grid = &pixels[..n_pixels * n_images.min(GRID_IMAGES) as usize];
        images(grid, size)?.save_grid(&arguments.out.join("grid.png"))?;
        let labels = cascade.has_classes().then_some(all.labels.as_slice());
        save_whole(arguments, size, pixels, labels)?;
        report(arguments, (n_images, all.nfe), started, printer)
    })
}

/// Makes the folders of all files, now rather than after hours of drawing.
fn make_folders(arguments: &SampleArgs) -> anyhow::Result<()> {
    durable::make_folder(&arguments.out)?;
    for path in [&arguments.raw, &arguments.npz].into_iter().flatten() {
        durable::make_parent(path)?;
    }
    Ok(())
}

/// Saves the files that hold all images, if they are wanted.
fn save_whole(
    arguments: &SampleArgs,
    size: usize,
    pixels: &[f32],
    labels: Option<&[u32]>,
) -> anyhow::Result<()> {
    if let Some(raw) = &arguments.raw {
        raw_file(raw, size, pixels)?;
    }
    if let Some(npz) = &arguments.npz {
        npz_file(npz, size, pixels, labels)?;
    }
    Ok(())
}

/// Says what was drawn, at what cost.
fn report(
    arguments: &SampleArgs,
    (n_images, nfe): (u64, f64),
    started: Instant,
    printer: &Printer,
) -> anyhow::Result<ExitStatus> {
    let seconds = started.elapsed().as_secs_f64();
    if arguments.json {
        printer.json(&json!({
            "out": arguments.out,
            "n_images": n_images,
            "seconds": seconds,
            "nfe": nfe,
        }))?;
    }
    let folder = arguments.out.display();
    printer.note(format_args!(
        "{n_images} images in {folder}, {nfe} network evaluations each, {seconds:.1} s"
    ));
    Ok(ExitStatus::Done)
}

/// What was drawn in all batches.
struct All {
    /// Unrounded pixels: those of the grid, and all if they are to be saved.
    pixels: Vec<f32>,
    /// Classes of all images.
    labels: Vec<u32>,
    /// Network evaluations per image.
    nfe: f64,
}

/// Draws batch by batch, and saves each image at once.
fn draw_all(
    arguments: &SampleArgs,
    cascade: &Cascade<'_>,
    n_images: u64,
    printer: &Printer,
) -> anyhow::Result<All> {
    let batch_size = arguments.batch_size.map_or(BATCH_SIZE, |n| n.get() as u64);
    let (mut all, mut labels, mut n_evaluations) = (Vec::new(), Vec::new(), 0);
    for first in (0..n_images).step_by(batch_size as usize) {
        let batch: Range<u64> = first..(first + batch_size).min(n_images);
        let drawn = cascade.draw(batch.clone())?;
        n_evaluations += drawn.n_evaluations;
        labels.extend(drawn.labels);
        let pixels = drawn
            .pixels
            .flatten_all()?
            .to_vec1::<f32>()
            .context("cannot read samples")?;
        let size = cascade.image_size();
        save_each(&arguments.out, first, &images(&pixels, size)?)?;
        if arguments.raw.is_some() || arguments.npz.is_some() || first < GRID_IMAGES {
            all.extend(pixels);
        }
        printer.detail(format_args!("{} of {n_images} images", batch.end));
    }
    Ok(All {
        pixels: all,
        labels,
        nfe: n_evaluations as f64 / n_images as f64,
    })
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
