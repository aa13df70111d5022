//! Datasets and loaders as a program sees them.

#![allow(clippy::disallowed_methods, reason = "tests write scratch files")]
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share may panic like tests"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Cursor, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use p2::config::section::{Crop, Data, GroupBy, SkinTones};
use p2::data::{Batch, Dataset, Loader, LoaderOptions, Split, pack};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn settings(path: impl AsRef<Path>) -> Data {
    Data {
        path: path.as_ref().to_str().unwrap().to_owned(),
        image_size: 4,
        crop: Crop::Center,
        horizontal_flip: false,
        held_out: 0.0,
        group_by: GroupBy::File,
        skin_tones: SkinTones::All,
    }
}

/// A 4 by 4 image that tells its number and its direction.
fn drawing(number: u8) -> RgbImage {
    RgbImage::from_fn(4, 4, |x, y| Rgb([number, 60 * x as u8, 60 * y as u8]))
}

fn encoded(image: RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

fn png(number: u8) -> Vec<u8> {
    encoded(drawing(number), ImageFormat::Png)
}

/// A folder with files.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let files_in = Self {
            dir: TempDir::new().unwrap(),
        };
        for (name, bytes) in files {
            files_in.write(name, bytes);
        }
        files_in
    }

    /// `0000.png`, `0001.png` and so on.
    fn numbered(n_images: u8) -> Self {
        let files = Self::new(&[]);
        for number in 0..n_images {
            files.write(&format!("{number:04}.png"), &png(number));
        }
        files
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn settings(&self) -> Data {
        settings(self.dir.path())
    }

    fn open(&self) -> Dataset {
        Dataset::open(&self.settings()).unwrap()
    }
}

/// A zip file with these files, deflated.
fn zipped(dir: &TempDir, files: &[(&str, &[u8])]) -> PathBuf {
    let path = dir.path().join("images.ZIP");
    let mut zip = ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    path
}

fn names(dataset: &Dataset, split: Split) -> Vec<String> {
    dataset.file_names(split).map(str::to_owned).collect()
}

fn skipped(dataset: &Dataset) -> Vec<(String, String)> {
    dataset
        .skipped()
        .into_iter()
        .map(|s| (s.file.to_string(), s.reason))
        .collect()
}

/// The numbers of all training drawings, in order.
fn numbers(dataset: &Dataset) -> Vec<u8> {
    let n_images = dataset.n_images(Split::Training);
    (0..n_images)
        .map(|i| dataset.image(Split::Training, i).unwrap().pixels[0])
        .collect()
}

fn error_of(settings: &Data) -> String {
    format!("{:#}", Dataset::open(settings).unwrap_err())
}

#[test]
fn a_folder_is_searched_recursively_in_sorted_order() {
    let files = Files::new(&[
        ("b.png", &png(2)),
        ("a/z/c.PNG", &png(1)),
        ("a/b.bmp", &encoded(drawing(0), ImageFormat::Bmp)),
        ("c.webp", &encoded(drawing(3), ImageFormat::WebP)),
        ("notes.txt", b"no image"),
        (".hidden/d.png", b"no image either"),
        ("._b.png", b"a resource fork"),
    ]);
    let dataset = files.open();
    assert_eq!(
        names(&dataset, Split::Training),
        ["a/b.bmp", "a/z/c.PNG", "b.png", "c.webp"]
    );
    assert_eq!(numbers(&dataset), [0, 1, 2, 3]);
    assert_eq!(skipped(&dataset), []);
    let image = dataset.image(Split::Training, 2).unwrap();
    assert_eq!(
        (&image.pixels, &*image.file),
        (&drawing(2).into_raw(), "b.png")
    );
}

#[test]
fn an_archive_is_read_like_a_folder() {
    let files: [(&str, &[u8]); 4] = [
        ("dogs/b.png", &png(1)),
        ("cats/a.png", &png(0)),
        ("cats/bad.png", b""),
        ("readme.txt", b"text"),
    ];
    let in_folder = Files::new(&files);
    let folder = in_folder.open();
    let dir = TempDir::new().unwrap();
    let archive = Dataset::open(&settings(zipped(&dir, &files))).unwrap();
    for dataset in [&folder, &archive] {
        assert_eq!(
            names(dataset, Split::Training),
            ["cats/a.png", "dogs/b.png"]
        );
        assert_eq!(numbers(dataset), [0, 1]);
        assert_eq!(dataset.class_names(), ["cats", "dogs"]);
        assert_eq!(
            skipped(dataset),
            [("cats/bad.png".into(), "the file is empty".into())]
        );
    }
    assert_eq!(folder.fingerprint(), archive.fingerprint());
}

#[test]
fn paths_that_leave_an_archive_are_named_and_skipped() {
    let dir = TempDir::new().unwrap();
    let path = zipped(
        &dir,
        &[
            ("../evil.png", &png(0)),
            ("/etc/b.png", &png(1)),
            ("x/../a.png", &png(2)),
        ],
    );
    let dataset = Dataset::open(&settings(path)).unwrap();
    assert_eq!(names(&dataset, Split::Training), ["a.png", "etc/b.png"]);
    let reason = "the path leaves the archive".to_owned();
    assert_eq!(skipped(&dataset), [("../evil.png".to_owned(), reason)]);
}

#[test]
fn a_damaged_file_in_an_archive_is_named() {
    let dir = TempDir::new().unwrap();
    let path = zipped(&dir, &[("a.png", &png(0)), ("b.png", &png(1))]);
    let mut bytes = fs::read(&path).unwrap();
    let first_data = 30 + "a.png".len();
    bytes[first_data + 20] ^= 0xff;
    fs::write(&path, bytes).unwrap();
    let dataset = Dataset::open(&settings(path)).unwrap();
    assert_eq!(numbers(&dataset), [1]);
    assert_eq!(dataset.skipped()[0].file.as_ref(), "a.png");
}

#[test]
fn what_cannot_be_opened_is_explained() {
    let empty = Files::new(&[("notes.txt", b"")]);
    let broken = Files::new(&[("a.png", b""), ("b.jpg", b"not a jpeg")]);
    let dir = TempDir::new().unwrap();
    let no_zip = dir.path().join("x.zip");
    fs::write(&no_zip, b"PK, but no archive").unwrap();
    let text = dir.path().join("x.txt");
    fs::write(&text, b"").unwrap();
    for (path, expected) in [
        (
            dir.path().join("nowhere"),
            "cannot read data: DIR/nowhere: No such file or directory",
        ),
        (
            text,
            "cannot read data: DIR/x.txt is neither a folder nor a .zip",
        ),
        (no_zip, "cannot read archive: DIR/x.zip: "),
        ("bundled:cats".into(), "no bundled data called `cats`"),
        (empty.dir.path().into(), "no usable image in EMPTY"),
        (
            broken.dir.path().into(),
            "no usable image in BROKEN: 2 skipped, the first is a.png: the file is empty",
        ),
    ] {
        let error = error_of(&settings(path))
            .replace(dir.path().to_str().unwrap(), "DIR")
            .replace(empty.dir.path().to_str().unwrap(), "EMPTY")
            .replace(broken.dir.path().to_str().unwrap(), "BROKEN");
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let files = Files::numbered(2);
    let share = |held_out| {
        error_of(&Data {
            held_out,
            ..files.settings()
        })
    };
    assert_eq!(share(1.0), "share 1 in data.held_out is not in [0, 1)");
    assert_eq!(
        share(f64::NAN),
        "share NaN in data.held_out is not in [0, 1)"
    );
    let no_size = error_of(&Data {
        image_size: 0,
        ..files.settings()
    });
    assert_eq!(no_size, "image size 0 in data.image_size");
}

#[test]
fn a_batch_needs_as_many_training_images() {
    let files = Files::numbered(3);
    let dataset = files.open();
    dataset.check_batch_size(3).unwrap();
    let error = dataset.check_batch_size(4).unwrap_err().to_string();
    assert!(
        error.starts_with("batch of 4 images from only 3 training images in "),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_images_are_dropped_at_once() {
    let files = Files::numbered(3);
    files.write("0001.jpg", b"");
    files.write("0002.gif", b"GIF89a");
    files.write("0003.png", b"hello");
    let dataset = files.open();
    assert_eq!(numbers(&dataset), [0, 1, 2]);
    let files: Vec<String> = skipped(&dataset)
        .into_iter()
        .map(|(file, _)| file)
        .collect();
    assert_eq!(files, ["0001.jpg", "0002.gif", "0003.png"]);
    assert_eq!(
        skipped(&dataset)[2].1,
        "not a jpeg, png, gif, bmp or webp image"
    );
}

/// `n_images` drawings, of which some have a good header and damaged pixels.
fn damaged(n_images: u8, damaged: &[u8]) -> Files {
    let files = Files::numbered(n_images);
    for number in damaged {
        let bytes = png(*number);
        files.write(&format!("{number:04}.png"), &bytes[..bytes.len() - 30]);
    }
    files
}

#[test]
fn damaged_pixels_are_named_once_and_the_next_image_stands_in() {
    let files = damaged(6, &[1, 2, 5]);
    let dataset = files.open();
    assert_eq!(skipped(&dataset), []);
    for _ in 0..2 {
        assert_eq!(numbers(&dataset), [0, 3, 3, 3, 4, 0]);
        let named: Vec<String> = skipped(&dataset)
            .into_iter()
            .map(|(file, _)| file)
            .collect();
        assert_eq!(named, ["0001.png", "0002.png", "0005.png"]);
    }
    assert_eq!(
        &*dataset.image(Split::Training, 1).unwrap().file,
        "0003.png"
    );
}

#[test]
fn a_file_that_is_removed_later_has_no_stand_in() {
    let files = Files::numbered(3);
    let dataset = files.open();
    fs::remove_file(files.dir.path().join("0001.png")).unwrap();
    assert_eq!(dataset.image(Split::Training, 0).unwrap().pixels[0], 0);
    let error = dataset.image(Split::Training, 1).unwrap_err().to_string();
    assert_eq!(error, "cannot read the image 0001.png");
    // When it is back, all is well.
    files.write("0001.png", &png(1));
    assert_eq!(numbers(&dataset), [0, 1, 2]);
    assert_eq!(skipped(&dataset), []);
}

#[test]
fn a_list_without_any_usable_image_is_an_error() {
    let files = damaged(2, &[0, 1]);
    let error = files
        .open()
        .image(Split::Training, 1)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(": 2 skipped, the first is 0001.png: "),
        "{error}"
    );
    let mut loader = Loader::new(&Arc::new(files.open()), &options(2, 10)).unwrap();
    let error = loader.next_batch().unwrap_err().to_string();
    assert!(error.starts_with("no usable image in "), "{error}");
    let error = loader.next_batch().unwrap_err().to_string();
    assert_eq!(error, "loading ended before image 0 of the run");
}

#[test]
fn the_fingerprint_tells_names_lengths_and_content() {
    let base = || Files::new(&[("a.png", &png(0)), ("b.png", &png(1))]);
    let fingerprint = base().open().fingerprint().to_owned();
    assert_eq!(fingerprint.len(), 64);
    assert_eq!(base().open().fingerprint(), fingerprint);
    let check = |name: &str, bytes: &[u8]| {
        let files = base();
        files.write(name, bytes);
        assert_ne!(files.open().fingerprint(), fingerprint, "{name}");
    };
    check("a.png", &png(7));
    check("a.png", &[png(0), vec![0]].concat());
    check("c.png", &png(2));
    check("c.png", b"");
    let renamed = Files::new(&[("a.png", &png(0)), ("c.png", &png(1))]);
    assert_ne!(renamed.open().fingerprint(), fingerprint);
}

#[test]
fn held_out_images_are_no_training_images() {
    let files = Files::numbered(200);
    let dataset = Dataset::open(&Data {
        held_out: 0.3,
        ..files.settings()
    })
    .unwrap();
    let training: BTreeSet<_> = names(&dataset, Split::Training).into_iter().collect();
    let held_out: BTreeSet<_> = names(&dataset, Split::HeldOut).into_iter().collect();
    assert!(training.is_disjoint(&held_out));
    assert_eq!(training.len() + held_out.len(), 200);
    assert!((40..80).contains(&held_out.len()), "{}", held_out.len());
    let image = dataset.image(Split::HeldOut, 0).unwrap();
    assert_eq!(Some(&*image.file), held_out.first().map(String::as_str));
    assert!(dataset.image(Split::HeldOut, held_out.len()).is_err());
}

fn options(batch_size: usize, total_images: u64) -> LoaderOptions {
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

#[test]
fn a_link_to_a_parent_folder_is_no_endless_loop() {
    let files = Files::numbered(2);
    #[cfg(unix)]
    std::os::unix::fs::symlink(files.dir.path(), files.dir.path().join("self")).unwrap();
    assert_eq!(numbers(&files.open()), [0, 1]);
}

fn emoji(skin_tones: SkinTones) -> Data {
    Data {
        image_size: 32,
        held_out: 0.1,
        group_by: GroupBy::FirstCodePoint,
        skin_tones,
        ..settings("bundled:emoji-32")
    }
}

#[test]
fn bundled_emoji_are_complete_and_well_split() {
    for (skin_tones, n_images) in [(SkinTones::One, 1892), (SkinTones::All, 3767)] {
        let dataset = Dataset::open(&emoji(skin_tones)).unwrap();
        let (training, held_out) = (
            names(&dataset, Split::Training),
            names(&dataset, Split::HeldOut),
        );
        assert_eq!(training.len() + held_out.len(), n_images);
        let share = held_out.len() as f64 / n_images as f64;
        assert!((0.08..0.12).contains(&share), "{share}");
        let base = |name: &String| name.split(['-', '.']).next().unwrap().to_owned();
        let training: BTreeSet<String> = training.iter().map(base).collect();
        let held_out: BTreeSet<String> = held_out.iter().map(base).collect();
        assert!(training.is_disjoint(&held_out));
        assert_eq!(dataset.skipped(), []);
        assert_eq!(dataset.class_names(), [] as [String; 0]);
    }
}

#[test]
fn bundled_emoji_decode_to_distinct_drawings_on_white() {
    let dataset = Dataset::open(&emoji(SkinTones::All)).unwrap();
    let mut drawings = BTreeSet::new();
    let mut n_white_corners = 0;
    for split in [Split::Training, Split::HeldOut] {
        for i in 0..dataset.n_images(split) {
            let image = dataset.image(split, i).unwrap();
            n_white_corners += usize::from(image.pixels[..3] == [255; 3]);
            drawings.insert(image.pixels);
        }
    }
    assert_eq!(drawings.len(), 3767);
    assert!(n_white_corners > 3000, "{n_white_corners}");
    assert_eq!(dataset.skipped(), []);
}

#[test]
fn the_bundled_archive_is_small() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/emoji-32/emoji-32.zip");
    let n_bytes = fs::metadata(path).unwrap().len();
    assert!((1..=6_000_000).contains(&n_bytes), "{n_bytes}");
}

#[test]
fn packing_is_deterministic_and_drops_duplicates() {
    let files = Files::new(&[
        ("1f469.png", &png(1)),
        ("1f469-1f3fb.bmp", &encoded(drawing(1), ImageFormat::Bmp)),
        ("1f46a-200d.webp", &encoded(drawing(2), ImageFormat::WebP)),
        ("bad.png", b""),
    ]);
    let path = files.dir.path().to_str().unwrap();
    let (first, second) = (pack(path, 4).unwrap(), pack(path, 4).unwrap());
    assert_eq!(first.zip, second.zip);
    assert_eq!(first.n_images, 2);
    assert_eq!(
        first.duplicates,
        [("1f469-1f3fb.bmp".to_owned(), "1f469.png".to_owned())]
    );
    assert_eq!(&*first.skipped[0].file, "bad.png");
    let dir = TempDir::new().unwrap();
    let zip = dir.path().join("packed.zip");
    fs::write(&zip, &first.zip).unwrap();
    let dataset = Dataset::open(&settings(&zip)).unwrap();
    assert_eq!(
        names(&dataset, Split::Training),
        ["1f469.png", "1f46a-200d.png"]
    );
    assert_eq!(
        dataset.image(Split::Training, 1).unwrap().pixels,
        drawing(2).into_raw()
    );
    // Packed again from the archive, it is still the same.
    assert_eq!(pack(zip.to_str().unwrap(), 4).unwrap().zip, first.zip);
}
