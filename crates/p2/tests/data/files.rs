//! Small images in folders and archives.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use p2::config::section::{Crop, Data, GroupBy, SkinTones};
use p2::data::{Dataset, Split};
use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

pub(crate) fn settings(path: impl AsRef<Path>) -> Data {
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
pub(crate) fn drawing(number: u8) -> RgbImage {
    RgbImage::from_fn(4, 4, |x, y| Rgb([number, 60 * x as u8, 60 * y as u8]))
}

pub(crate) fn encoded(image: RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::from(image)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

pub(crate) fn png(number: u8) -> Vec<u8> {
    encoded(drawing(number), ImageFormat::Png)
}

/// A folder with files.
pub(crate) struct Files {
    pub(crate) dir: TempDir,
}

impl Files {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let files_in = Self {
            dir: TempDir::new().unwrap(),
        };
        for (name, bytes) in files {
            files_in.write(name, bytes);
        }
        files_in
    }

    /// `0000.png`, `0001.png` and so on.
    pub(crate) fn numbered(n_images: u8) -> Self {
        let files = Self::new(&[]);
        for number in 0..n_images {
            files.write(&format!("{number:04}.png"), &png(number));
        }
        files
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn settings(&self) -> Data {
        settings(self.dir.path())
    }

    pub(crate) fn open(&self) -> Dataset {
        Dataset::open(&self.settings()).unwrap()
    }
}

/// A zip file with these files, deflated.
pub(crate) fn zipped(dir: &TempDir, files: &[(&str, &[u8])]) -> PathBuf {
    let path = dir.path().join("images.ZIP");
    let mut zip = ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    path
}

pub(crate) fn names(dataset: &Dataset, split: Split) -> Vec<String> {
    dataset.file_names(split).map(str::to_owned).collect()
}

pub(crate) fn skipped(dataset: &Dataset) -> Vec<(String, String)> {
    dataset
        .skipped()
        .into_iter()
        .map(|s| (s.file.to_string(), s.reason))
        .collect()
}

/// The numbers of all training drawings, in order.
pub(crate) fn numbers(dataset: &Dataset) -> Vec<u8> {
    let n_images = dataset.n_images(Split::Training);
    (0..n_images)
        .map(|i| dataset.image(Split::Training, i).unwrap().pixels[0])
        .collect()
}

/// `n_images` drawings, of which some have a good header and damaged pixels.
pub(crate) fn damaged(n_images: u8, damaged: &[u8]) -> Files {
    let files = Files::numbered(n_images);
    for number in damaged {
        let bytes = png(*number);
        files.write(&format!("{number:04}.png"), &bytes[..bytes.len() - 30]);
    }
    files
}
