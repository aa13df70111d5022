//! Folders with images that cannot be used.

use std::fs;
use std::path::Path;

use image::{DynamicImage, ImageBuffer, Rgb};

use super::project::{Project, stderr};

/// Images of many kinds, all usable.
const USABLE: [&str; 9] = [
    "animated.gif",
    "cmyk-adobe.jpg",
    "exif-3.jpg",
    "exif-6.jpg",
    "exif-6.png",
    "grey-key.png",
    "palette-transparent.png",
    "progressive.jpg",
    "ycck-adobe.jpg",
];

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images");
    fs::read(folder.join(name)).unwrap()
}

#[test]
fn a_folder_with_damage_trains_and_tells_exactly_what_is_skipped() {
    let project = Project::without_images();
    let folder = project.path().join("images");
    for name in USABLE {
        fs::write(folder.join(name), fixture(name)).unwrap();
    }
    let deep = ImageBuffer::from_fn(20, 30, |x, y| {
        Rgb([x as u16 * 3000, y as u16 * 2000, 65535])
    });
    DynamicImage::ImageRgb16(deep)
        .save(folder.join("16-bit.png"))
        .unwrap();
    let jpeg = fixture("exif-1.jpg");
    fs::write(folder.join("truncated.jpg"), &jpeg[..jpeg.len() * 2 / 3]).unwrap();
    fs::write(folder.join("empty.png"), "").unwrap();
    fs::write(folder.join("words.jpeg"), "these are no pixels").unwrap();
    fs::write(folder.join("notes.txt"), "not looked at").unwrap();

    let more = [
        "--set",
        "model.n_classes=0",
        "--set",
        "model.label_dropout=0",
        "--max-steps",
        "6",
    ];
    let output = project.train("run", &more).output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.starts_with("images: 11 images to train on, 0 held out\n"),
        "{said}"
    );
    // Damage that shows only when pixels are decoded is found at some moment of the run.
    let warnings = said.lines().filter(|line| line.starts_with("warning: "));
    let (counts, mut named): (Vec<_>, Vec<_>) =
        warnings.partition(|line| line.ends_with("files skipped so far"));
    named.sort_unstable();
    let truncated = "warning: skipped truncated.jpg: ";
    assert_eq!(
        (named[0], named[2]),
        (
            "warning: skipped empty.png: the file is empty",
            "warning: skipped words.jpeg: not a jpeg, png, gif, bmp or webp image",
        )
    );
    assert!(
        named.len() == 3 && named[1].starts_with(truncated),
        "{named:?}"
    );
    assert_eq!(counts.last(), Some(&"warning: 3 files skipped so far"));
    for record in project.metrics("run") {
        assert!(record["loss/weighted"].is_number(), "{record:?}");
    }
}
