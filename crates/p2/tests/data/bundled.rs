//! The images inside the binary, and how they were packed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use image::ImageFormat;
use p2::config::section::{Data, GroupBy, SkinTones};
use p2::data::{Dataset, Split, pack};
use tempfile::TempDir;

use super::files::{Files, drawing, encoded, names, png, settings};

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
