//! Batches: the same whatever the workers, the batch size, and where a run goes on.

use std::num::NonZeroUsize;
use std::sync::Arc;

use image::{ImageFormat, Rgb, RgbImage};
use p2::config::section::{Crop, Data};
use p2::data::{Batch, Dataset, Loader, LoaderOptions, Split};

use super::files::{Files, damaged, drawing, encoded, png};

pub(crate) fn options(batch_size: usize, total_images: u64) -> LoaderOptions {
    LoaderOptions {
        seed: 3,
        first_image_idx: 0,
        batch_size: NonZeroUsize::new(batch_size).unwrap(),
        total_images,
        n_workers: NonZeroUsize::new(2).unwrap(),
    }
}

/// All batches as one, and their sizes.
fn load(dataset: &Arc<Dataset>, options: &LoaderOptions) -> (Batch, Vec<usize>) {
    let mut loader = Loader::new(dataset, options).unwrap();
    let mut all: Option<Batch> = None;
    let mut sizes = Vec::new();
    while let Some(mut batch) = loader.next_batch().unwrap() {
        sizes.push(batch.n_images());
        match &mut all {
            None => all = Some(batch),
            Some(all) => {
                assert_eq!(
                    batch.first_image_idx,
                    all.first_image_idx + all.n_images() as u64
                );
                all.pixels.append(&mut batch.pixels);
                all.labels.append(&mut batch.labels);
                all.files.append(&mut batch.files);
            }
        }
    }
    assert!(loader.next_batch().unwrap().is_none());
    (all.unwrap(), sizes)
}

/// A dataset in which everything random happens, and damage too.
fn random_dataset() -> (Files, Arc<Dataset>) {
    let files = damaged(23, &[4, 5, 17]);
    for number in 0..5 {
        let large = image::imageops::resize(&drawing(number), 33, 21, image::imageops::Nearest);
        files.write(
            &format!("large/{number}.png"),
            &encoded(large, ImageFormat::Png),
        );
    }
    let settings = Data {
        crop: Crop::Random,
        horizontal_flip: true,
        ..files.settings()
    };
    let dataset = Arc::new(Dataset::open(&settings).unwrap());
    (files, dataset)
}

#[test]
fn batches_depend_on_neither_workers_nor_batch_size_nor_resuming() {
    let (_files, dataset) = random_dataset();
    let total_images = 28 * 3 + 5;
    let (expected, sizes) = load(&dataset, &options(7, total_images));
    assert_eq!(sizes, [[7; 12].as_slice(), &[5]].concat());
    for batch_size in [1, 4, 28, 50, 1000] {
        for n_workers in [1, 2, 5, 16] {
            let n_workers = NonZeroUsize::new(n_workers).unwrap();
            // A new dataset, so that damage is found anew, by other threads.
            let (_files, dataset) = random_dataset();
            let options = LoaderOptions {
                n_workers,
                ..options(batch_size, total_images)
            };
            let (batches, sizes) = load(&dataset, &options);
            assert_eq!(batches, expected, "{options:?}");
            assert!(
                sizes[..sizes.len() - 1]
                    .iter()
                    .all(|size| *size == batch_size)
            );
        }
    }
    for first_image_idx in [1, 30, 88] {
        let (rest, _) = load(
            &dataset,
            &LoaderOptions {
                first_image_idx,
                ..options(7, total_images)
            },
        );
        let start = first_image_idx as usize;
        assert_eq!(rest.first_image_idx, first_image_idx);
        assert_eq!(rest.labels, expected.labels[start..]);
        assert_eq!(rest.files, expected.files[start..]);
        assert_eq!(rest.pixels, expected.pixels[start * 48..]);
    }
}

#[test]
fn another_seed_gives_other_images() {
    let (_files, dataset) = random_dataset();
    let (one, _) = load(&dataset, &options(7, 50));
    let (other, _) = load(
        &dataset,
        &LoaderOptions {
            seed: 4,
            ..options(7, 50)
        },
    );
    assert_ne!(one.files, other.files);
}

#[test]
fn an_epoch_shows_every_image_once_across_batches() {
    let files = Files::numbered(10);
    let dataset = Arc::new(files.open());
    let (batch, sizes) = load(&dataset, &options(4, 20));
    assert_eq!(sizes, [4; 5]);
    for epoch in batch.files.chunks(10) {
        let mut epoch: Vec<_> = epoch.to_vec();
        epoch.sort();
        assert!(
            epoch
                .iter()
                .map(|file| &**file)
                .eq(dataset.file_names(Split::Training))
        );
    }
    assert_ne!(batch.files[..10], batch.files[10..]);
}

#[test]
fn pixels_are_scaled_to_one() {
    let files = Files::new(&[(
        "a.png",
        &encoded(
            RgbImage::from_pixel(4, 4, Rgb([0, 255, 51])),
            ImageFormat::Png,
        ),
    )]);
    let (batch, _) = load(&Arc::new(files.open()), &options(1, 1));
    assert_eq!(batch.pixels.len(), 48);
    assert_eq!(batch.pixels[..3], [-1.0, 1.0, -0.6]);
}

#[test]
fn labels_follow_the_files() {
    let files = Files::new(&[
        ("cat/a.png", &png(1)),
        ("dog/b.png", &png(2)),
        ("dog/c.png", &png(3)),
    ]);
    let dataset = Arc::new(files.open());
    let (batch, _) = load(&dataset, &options(3, 9));
    for (label, file) in batch.labels.iter().zip(&batch.files) {
        assert_eq!(
            file.split('/').next(),
            Some(dataset.class_names()[*label as usize].as_str())
        );
    }
}

#[test]
fn half_of_the_images_are_mirrored_if_asked_for() {
    let files = Files::numbered(1);
    let n_images = 400;
    let mirrored = |horizontal_flip| {
        let settings = Data {
            horizontal_flip,
            ..files.settings()
        };
        let dataset = Arc::new(Dataset::open(&settings).unwrap());
        let (batch, _) = load(&dataset, &options(1, n_images));
        // Green is 0 at the left and 180 at the right.
        let green = |image: &[f32], x: usize| (image[3 * x + 1] + 1.0) * 127.5;
        batch
            .pixels
            .chunks(48)
            .map(|image| {
                let ends = [
                    green(image, 0).round() as i32,
                    green(image, 3).round() as i32,
                ];
                assert!(ends == [0, 180] || ends == [180, 0], "{ends:?}");
                // Red and blue stay with their pixels: no channels or rows were swapped.
                assert!(
                    image[0].to_bits() == (-1.0f32).to_bits()
                        && image[2].to_bits() == image[0].to_bits()
                );
                ends == [180, 0]
            })
            .filter(|mirrored| *mirrored)
            .count()
    };
    assert_eq!(mirrored(false), 0);
    assert!((160..240).contains(&mirrored(true)), "{}", mirrored(true));
}

#[test]
fn dropping_a_loader_ends_its_threads() {
    let files = Files::numbered(20);
    let dataset = Arc::new(files.open());
    let mut loader = Loader::new(&dataset, &options(2, u64::MAX)).unwrap();
    loader.next_batch().unwrap();
    assert!(Arc::strong_count(&dataset) > 1);
    drop(loader);
    assert_eq!(Arc::strong_count(&dataset), 1);
}
