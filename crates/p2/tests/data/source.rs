//! Folders and archives: what is found in them, and what is said about the rest.

use std::fs;

use image::ImageFormat;
use p2::config::section::Data;
use p2::data::{Dataset, Split};
use tempfile::TempDir;

use super::files::{Files, drawing, encoded, names, numbers, png, settings, skipped, zipped};

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

#[test]
fn a_link_to_a_parent_folder_is_no_endless_loop() {
    let files = Files::numbered(2);
    #[cfg(unix)]
    std::os::unix::fs::symlink(files.dir.path(), files.dir.path().join("self")).unwrap();
    assert_eq!(numbers(&files.open()), [0, 1]);
}
