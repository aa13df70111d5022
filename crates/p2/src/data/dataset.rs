//! The images of a run: training and held-out lists, and the pixels behind them.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use image::RgbImage;

use super::cache::{Cache, Known};
use super::check::{check, skipped};
use super::classes::{Classes, classes};
use super::source::{EXTENSIONS, Entry, Source};
use super::{crop, decode, split};
use crate::config::section::{Crop, Data, SkinTones};
use crate::problem::Problem;
use crate::rng::Draws;

/// One of the two lists of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Images to learn from.
    Training,
    /// Images that are only looked at to measure.
    HeldOut,
}

/// The pixels of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `[H, W, 3]`, H = W = the image size of the dataset.
    pub pixels: Vec<u8>,
    /// Index into [`Dataset::class_names`]; 0 if there are no classes.
    pub label: u32,
    /// Name of the file.
    pub file: Arc<str>,
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedFile {
    /// Path below the root of the data.
    pub file: Arc<str>,
    /// Why.
    pub reason: String,
}

/// The images of a run.
///
/// A file whose damage shows only when it is decoded is named in [`Dataset::skipped`], and the next
/// usable image of its list stands in for it, always the same one. So the k-th image of a run is a
/// function of the files, the settings and the seed, not of threads, batch size or resuming.
#[derive(Debug)]
pub struct Dataset {
    source: Source,
    settings: Data,
    entries: Vec<Entry>,
    classes: Classes,
    training: Vec<usize>,
    held_out: Vec<usize>,
    fingerprint: String,
    skipped: Mutex<Vec<SkippedFile>>,
    cache: Cache,
}

impl Dataset {
    /// Lists, checks and splits the files of `settings.path`.
    ///
    /// The start of every file is read; files that cannot be images are left out and named in
    /// [`Dataset::skipped`].
    ///
    /// # Errors
    /// If the path does not exist or is of another kind, no image is left to train on, or a file
    /// cannot be read for a reason that lies not in it.
    pub fn open(settings: &Data) -> Result<Self> {
        let Data {
            path,
            image_size,
            held_out,
            ..
        } = settings;
        ensure!(*image_size > 0, "image size 0 in data.image_size");
        ensure!(
            (0.0..1.0).contains(held_out),
            "share {held_out} in data.held_out is not in [0, 1)"
        );
        let source = Source::open(path)?;
        let mut listing = source
            .list()
            .with_context(|| format!("cannot read data: {path}"))?;
        if settings.skin_tones == SkinTones::One {
            listing
                .entries
                .retain(|entry| !split::has_skin_tone(&entry.name));
        }
        let mut checked =
            check(&source, listing.entries).with_context(|| format!("cannot read data: {path}"))?;
        listing.skipped.append(&mut checked.skipped);
        if checked.entries.is_empty() {
            return Err(no_usable_image(path, &listing.skipped).into());
        }
        Ok(Self::new(
            source,
            settings.clone(),
            checked.entries,
            listing.skipped,
            checked.fingerprint,
        ))
    }

    fn new(
        source: Source,
        settings: Data,
        entries: Vec<Entry>,
        skipped: Vec<SkippedFile>,
        fingerprint: String,
    ) -> Self {
        let names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
        let groups: Vec<&str> = names
            .iter()
            .map(|name| split::group_of(name, settings.group_by))
            .collect();
        let is_held_out = split::held_out(&groups, settings.held_out);
        let (held_out, training) = (0..entries.len()).partition(|file_idx| is_held_out[*file_idx]);
        Self {
            classes: classes(&names),
            cache: Cache::new(entries.len()),
            skipped: Mutex::new(skipped),
            source,
            settings,
            training,
            held_out,
            fingerprint,
            entries,
        }
    }

    /// Refuses a batch that is larger than the number of training images.
    ///
    /// # Errors
    /// With both numbers.
    pub fn check_batch_size(&self, batch_size: usize) -> Result<()> {
        let n_images = self.training.len();
        if batch_size <= n_images {
            return Ok(());
        }
        let path = &self.settings.path;
        let message =
            format!("batch of {batch_size} images from only {n_images} training images in {path}");
        let hint = format!("set train.batch_size to at most {n_images}, or give more images");
        Err(Problem::new(message).hint(hint).into())
    }

    /// Number of images in a list.
    pub fn n_images(&self, split: Split) -> usize {
        self.list(split).len()
    }

    /// Names of the files of a list, in its order.
    pub fn file_names(&self, split: Split) -> impl Iterator<Item = &str> {
        self.list(split)
            .iter()
            .map(|file_idx| &*self.entries[*file_idx].name)
    }

    /// Height and width of every image, in pixels.
    pub fn image_size(&self) -> usize {
        self.settings.image_size
    }

    /// Names of the classes, sorted: the first folders below the root. Empty if there are none.
    pub fn class_names(&self) -> &[String] {
        &self.classes.names
    }

    /// SHA-256, in hexadecimal, of what was found: names, lengths and the first 64 KiB of all image
    /// files. The same files give the same fingerprint in a folder and in an archive.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// All files that cannot be used, as far as known: at first what opening found, later also
    /// what showed when pixels were decoded, in the order of discovery.
    pub fn skipped(&self) -> Vec<SkippedFile> {
        self.skipped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// An image of a list: its middle square, not mirrored.
    ///
    /// # Errors
    /// If `index` is not below [`Dataset::n_images`], the list has no usable image at all, or a file
    /// cannot be read for a reason that lies not in it: no other image stands in for that one.
    pub fn image(&self, split: Split, index: usize) -> Result<Image> {
        let (file_idx, pixels) = self.pixels(split, index)?;
        let square = match self.settings.crop {
            Crop::Center => pixels.as_raw().clone(),
            Crop::Random => crop::center_crop(&pixels, self.settings.image_size).into_raw(),
        };
        Ok(self.named(file_idx, square))
    }

    /// A training image, cropped and mirrored at random as the settings say.
    ///
    /// # Errors
    /// Like [`Dataset::image`].
    pub fn augmented_image(&self, index: usize, draws: &mut Draws) -> Result<Image> {
        let (file_idx, pixels) = self.pixels(Split::Training, index)?;
        let mirrored = draws.uniform() < 0.5 && self.settings.horizontal_flip;
        let mut square = match self.settings.crop {
            Crop::Center => pixels.as_raw().clone(),
            Crop::Random => crop::random_crop(&pixels, self.settings.image_size, draws).into_raw(),
        };
        if mirrored {
            mirror(&mut square, self.settings.image_size);
        }
        Ok(self.named(file_idx, square))
    }

    fn list(&self, split: Split) -> &[usize] {
        match split {
            Split::Training => &self.training,
            Split::HeldOut => &self.held_out,
        }
    }

    fn named(&self, file_idx: usize, pixels: Vec<u8>) -> Image {
        let file = Arc::clone(&self.entries[file_idx].name);
        Image {
            pixels,
            label: self.classes.labels[file_idx],
            file,
        }
    }

    /// The pixels at `index` of a list, or those of the next usable file after it.
    fn pixels(&self, split: Split, index: usize) -> Result<(usize, Arc<RgbImage>)> {
        let list = self.list(split);
        let n_images = list.len();
        ensure!(index < n_images, "no image {index} in a list of {n_images}");
        for &file_idx in list[index..].iter().chain(&list[..index]) {
            if let Some(pixels) = self.pixels_of_file(file_idx)? {
                return Ok((file_idx, pixels));
            }
        }
        Err(no_usable_image(&self.settings.path, &self.skipped()).into())
    }

    /// The pixels of a file, from memory if they are there; `None` if it is damaged.
    fn pixels_of_file(&self, file_idx: usize) -> Result<Option<Arc<RgbImage>>> {
        match self.cache.get(file_idx) {
            Some(Known::Pixels(pixels)) => return Ok(Some(Arc::clone(pixels))),
            Some(Known::Damaged) => return Ok(None),
            None => {}
        }
        let entry = &self.entries[file_idx];
        let decoded = match self.source.read(entry) {
            Ok(bytes) => self.decode(&bytes),
            Err(failure) => Err(failure.damage(entry)?),
        };
        Ok(match decoded {
            Ok(pixels) => {
                let pixels = Arc::new(pixels);
                self.cache.keep(file_idx, &pixels);
                Some(pixels)
            }
            Err(error) => {
                if self.cache.note_damage(file_idx) {
                    let record = skipped(&entry.name, &error);
                    self.skipped
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(record);
                }
                None
            }
        })
    }

    /// As much of an image as all later crops have in common.
    fn decode(&self, bytes: &[u8]) -> Result<RgbImage> {
        let image = decode::decode(bytes)?;
        let image_size = self.settings.image_size;
        Ok(match self.settings.crop {
            Crop::Center => crop::center_crop(&image, image_size),
            Crop::Random => crop::shrink_for_random_crops(&image, image_size).unwrap_or(image),
        })
    }
}

/// Mirrors `[H, W, 3]` pixels left to right.
fn mirror(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(3 * width) {
        let (pixels, _) = row.as_chunks_mut::<3>();
        pixels.reverse();
    }
}

/// Tells how many files were skipped, and why the first was.
fn no_usable_image(path: &str, skipped: &[SkippedFile]) -> Problem {
    let first = match skipped.first() {
        Some(SkippedFile { file, reason }) => {
            format!(": {} skipped, the first is {file}: {reason}", skipped.len())
        }
        None => String::new(),
    };
    let extensions = EXTENSIONS.join(", ");
    Problem::new(format!("no usable image in {path}{first}")).hint(format!(
        "images are files that end in {extensions}, in it or in folders below"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::section::GroupBy;
    use crate::rng::Stream;

    fn bundled(crop: Crop) -> Dataset {
        let settings = Data {
            path: "bundled:emoji-32".to_owned(),
            image_size: 12,
            crop,
            horizontal_flip: true,
            held_out: 0.1,
            group_by: GroupBy::FirstCodePoint,
            skin_tones: SkinTones::One,
        };
        Dataset::open(&settings).unwrap()
    }

    #[test]
    fn memory_changes_no_pixel() {
        for crop in [Crop::Center, Crop::Random] {
            let with_memory = bundled(crop);
            let mut without = bundled(crop);
            without.cache.max_bytes = 0;
            let image = |dataset: &Dataset, index| {
                let mut draws = Draws::at(1, Stream::Augment, index as u64);
                let augmented = dataset.augmented_image(index, &mut draws).unwrap();
                (augmented, dataset.image(Split::Training, index).unwrap())
            };
            for index in [0, 1, 500, 0, 1, 500] {
                assert_eq!(image(&with_memory, index), image(&without, index));
            }
            assert!(matches!(
                with_memory.cache.get(with_memory.training[0]),
                Some(Known::Pixels(_))
            ));
            assert!(without.cache.get(without.training[0]).is_none());
        }
    }

    #[test]
    fn mirroring_swaps_left_and_right() {
        let mut pixels: Vec<u8> = (0..12).collect(); // [2, 2, 3]
        mirror(&mut pixels, 2);
        assert_eq!(pixels, [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
    }
}
