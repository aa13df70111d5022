//! Images of a list, damaged ones, the fingerprint, and the held-out split.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use p2::config::section::Data;
use p2::data::{Dataset, Loader, Split};

use super::files::{Files, damaged, names, numbers, png, skipped};
use super::loader::options;

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
