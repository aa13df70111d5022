//! Many images as one small archive: resized, without duplicates, the same bytes every time.

use std::collections::HashMap;
use std::io::{Cursor, Write};

use anyhow::{Context, Result};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use rayon::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::check::skipped;
use super::dataset::SkippedFile;
use super::source::{Entry, Source};
use super::{crop, decode, split};

/// An archive of images.
#[derive(Debug)]
pub struct Packed {
    /// The zip file.
    pub zip: Vec<u8>,
    /// Number of images in it.
    pub n_images: usize,
    /// Files left out since their pixels are those of another: name, and name of the other.
    pub duplicates: Vec<(String, String)>,
    /// Files that cannot be used.
    pub skipped: Vec<SkippedFile>,
}

/// Packs the middle squares of all images of a folder or archive, as PNG, on white.
///
/// # Errors
/// If the source cannot be read or an image cannot be written.
pub fn pack(path: &str, image_size: usize) -> Result<Packed> {
    let source = Source::open(path)?;
    let mut listing = source.list()?;
    // Of equal drawings the one with the simplest name stays: no skin tone before any, `1f46e`
    // before `1f46e-200d-2642`.
    listing.entries.sort_by_cached_key(|entry| {
        (
            split::has_skin_tone(&entry.name),
            split::stem_of(&entry.name).to_owned(),
        )
    });
    let squares = listing
        .entries
        .par_iter()
        .map(|entry| square(&source, entry, image_size))
        .collect::<Result<Vec<_>>>()?;
    let mut first_of: HashMap<&[u8], &str> = HashMap::new();
    let mut duplicates = Vec::new();
    let mut kept = Vec::new();
    for (entry, square) in listing.entries.iter().zip(&squares) {
        match square {
            Ok(square) => match first_of.get(square.as_raw().as_slice()) {
                Some(first) => duplicates.push((entry.name.to_string(), (*first).to_owned())),
                None => {
                    first_of.insert(square.as_raw(), &entry.name);
                    kept.push((png_name(&entry.name), square));
                }
            },
            Err(error) => listing.skipped.push(skipped(&entry.name, error)),
        }
    }
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    let zip = zip_of(&kept)?;
    Ok(Packed {
        zip,
        n_images: kept.len(),
        duplicates,
        skipped: listing.skipped,
    })
}

/// The square of a file, or what is wrong with the file; an error if that cannot be told.
fn square(source: &Source, entry: &Entry, image_size: usize) -> Result<Result<RgbImage>> {
    let image = match source.read(entry) {
        Ok(bytes) => decode::decode(&bytes),
        Err(failure) => Err(failure.damage(entry)?),
    };
    Ok(image.map(|image| crop::center_crop(&image, image_size)))
}

/// The name of a file with the extension `png`.
fn png_name(name: &str) -> String {
    let without = name.rsplit_once('.').map_or(name, |(without, _)| without);
    format!("{without}.png")
}

/// A zip without anything that changes from one day or machine to the next.
fn zip_of(images: &[(String, &RgbImage)]) -> Result<Vec<u8>> {
    let pngs: Vec<Result<Vec<u8>>> = images
        .par_iter()
        .map(|(_, image)| smallest_png(image))
        .collect();
    // Stored: a PNG does not shrink any further.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::DEFAULT)
        .unix_permissions(0o644);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for ((name, _), png) in images.iter().zip(pngs) {
        zip.start_file(name.as_str(), options)
            .with_context(|| format!("cannot pack: {name}"))?;
        zip.write_all(&png.with_context(|| format!("cannot pack: {name}"))?)?;
    }
    Ok(zip
        .finish()
        .context("cannot finish the archive")?
        .into_inner())
}

/// The shortest of what the filters of the format make of an image.
fn smallest_png(image: &RgbImage) -> Result<Vec<u8>> {
    let filters = [
        FilterType::Adaptive,
        FilterType::NoFilter,
        FilterType::Sub,
        FilterType::Up,
        FilterType::Avg,
        FilterType::Paeth,
    ];
    let mut smallest: Option<Vec<u8>> = None;
    for filter in filters {
        let mut png = Vec::new();
        PngEncoder::new_with_quality(&mut png, CompressionType::Best, filter).write_image(
            image.as_raw(),
            image.width(),
            image.height(),
            ExtendedColorType::Rgb8,
        )?;
        if smallest
            .as_ref()
            .is_none_or(|smallest| png.len() < smallest.len())
        {
            smallest = Some(png);
        }
    }
    smallest.context("no filter")
}
