//! Checkpoints come back as they were written, or are refused.

use std::fs;

use super::*;
use crate::problem::Problem;

const KEEP_ALL: Retention = Retention {
    keep_last: 99,
    keep_every: 0,
};

fn position(images_seen: u64) -> Position {
    Position {
        images_seen,
        step: images_seen / 4,
    }
}

fn files(seed: f32) -> Vec<TensorFile<'static>> {
    let tensor = |name: &str, shape: &[usize], start: f32| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| start + i as f32 * 0.1).collect();
        NamedTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            values: values.into(),
        }
    };
    let model = TensorFile {
        name: "model.safetensors".to_owned(),
        metadata: Some("{\"a\":1}".to_owned()),
        tensors: vec![
            tensor("b.weight", &[2, 3], seed),
            tensor("a", &[], -seed),
            tensor("empty", &[0, 4], 0.0),
        ],
    };
    let optimizer = TensorFile {
        name: "optimizer.safetensors".to_owned(),
        metadata: None,
        tensors: vec![tensor("m", &[1000], seed)],
    };
    vec![model, optimizer]
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn tensors_come_back_bit_by_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(1.0);
    files[1].tensors[0].values.to_mut()[..4].copy_from_slice(&[
        f32::NAN,
        -0.0,
        f32::INFINITY,
        1e-45,
    ]);
    save(folder.path(), position(64), &files, KEEP_ALL).unwrap();
    let found = newest(folder.path()).unwrap().unwrap();
    assert_eq!(found.state.position, position(64));
    assert_eq!(found.path, folder.path().join("images-0000000064"));
    assert!(found.skipped.is_empty());
    assert_eq!(
        found.state.files().collect::<Vec<_>>(),
        ["model.safetensors", "optimizer.safetensors"]
    );
    for file in &files {
        let stored = StoredTensors::open(&found.path.join(&file.name)).unwrap();
        assert_eq!(stored.metadata(), file.metadata.as_deref());
        assert_eq!(stored.names().count(), file.tensors.len());
        for tensor in &file.tensors {
            assert_eq!(stored.shape(&tensor.name), Some(tensor.shape.as_slice()));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(&stored.values(&tensor.name).unwrap()),
                bits(&tensor.values)
            );
        }
        assert!(
            stored
                .values("none")
                .unwrap_err()
                .to_string()
                .contains("no tensor `none`")
        );
    }
}

#[test]
fn equal_content_gives_equal_bytes_in_any_order() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut files = files(1.0);
    let saved = folders.each_ref().map(|folder| {
        files.reverse();
        files[0].tensors.reverse();
        save(folder.path(), position(64), &files, KEEP_ALL).unwrap()
    });
    for name in names(&saved[0]) {
        let bytes = saved
            .each_ref()
            .map(|path| fs::read(path.join(&name)).unwrap());
        assert_eq!(bytes[0], bytes[1], "{name}");
    }
}

#[test]
fn the_state_is_readable_and_holds_no_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), position(64), &files(1.0)[1..], KEEP_ALL).unwrap();
    expect_test::expect![[r#"
        {
          "format": 1,
          "images_seen": 64,
          "step": 16,
          "files": {
            "optimizer.safetensors": {
              "n_bytes": 4072,
              "sha256": "47dceb9663e82454fadd0290e98ce9aaddcf1e2740516957963e7979705e4d2b"
            }
          }
        }
    "#]]
    .assert_eq(&fs::read_to_string(path.join(STATE_FILE)).unwrap());
}

#[test]
fn the_last_and_every_so_many_are_kept() {
    let check = |keep_last, keep_every, expected: &[u64]| {
        let folder = tempfile::tempdir().unwrap();
        for images_seen in (1..=10).map(|i| i * 64) {
            let retention = Retention {
                keep_last,
                keep_every,
            };
            save(
                folder.path(),
                position(images_seen),
                &files(1.0)[1..],
                retention,
            )
            .unwrap();
            assert!(
                folder.path().join(folder_name(images_seen)).exists(),
                "the newest was removed"
            );
        }
        let expected: Vec<_> = expected.iter().map(|&n| folder_name(n)).collect();
        assert_eq!(names(folder.path()), expected, "{keep_last} {keep_every}");
    };
    check(2, 0, &[576, 640]);
    check(1, 0, &[640]);
    check(99, 0, &[64, 128, 192, 256, 320, 384, 448, 512, 576, 640]);
    check(1, 256, &[256, 512, 640]);
    // 200 is no multiple of the interval: the first at or after 200, 400 and 600.
    check(1, 200, &[256, 448, 640]);
    check(2, 64, &[64, 128, 192, 256, 320, 384, 448, 512, 576, 640]);
}

#[test]
fn a_later_damaged_checkpoint_does_not_push_out_good_ones() {
    let folder = tempfile::tempdir().unwrap();
    let retention = Retention {
        keep_last: 1,
        keep_every: 0,
    };
    let later = save(folder.path(), position(300), &files(1.0), retention).unwrap();
    fs::write(later.join("model.safetensors"), "x").unwrap();
    save(folder.path(), position(250), &files(2.0), retention).unwrap();
    let found = newest(folder.path()).unwrap().unwrap();
    assert_eq!(found.state.position, position(250));
    assert_eq!(found.skipped[0].path, later);
}

#[test]
fn a_checkpoint_of_the_same_images_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    for seed in [1.0, 1.0, 2.0] {
        let path = save(folder.path(), position(64), &files(seed), KEEP_ALL).unwrap();
        let stored = StoredTensors::open(&path.join("model.safetensors")).unwrap();
        assert_eq!(stored.values("a").unwrap(), [-seed]);
        assert_eq!(names(folder.path()), [folder_name(64)]);
    }
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 8] = [
        ("state.json says 129 images", |path| {
            let json = fs::read_to_string(path.join(STATE_FILE)).unwrap();
            fs::write(path.join(STATE_FILE), json.replace("128", "129")).unwrap();
        }),
        ("checksum of model", |path| {
            let mut bytes = fs::read(path.join("model.safetensors")).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path.join("model.safetensors"), bytes).unwrap();
        }),
        ("optimizer.safetensors has 10 bytes instead of", |path| {
            fs::write(path.join("optimizer.safetensors"), [0; 10]).unwrap();
        }),
        ("optimizer.safetensors: No such file", |path| {
            fs::remove_file(path.join("optimizer.safetensors")).unwrap();
        }),
        ("state.json: No such file", |path| {
            fs::remove_file(path.join(STATE_FILE)).unwrap();
        }),
        ("state.json: EOF", |path| {
            fs::write(path.join(STATE_FILE), "{").unwrap();
        }),
        ("format 2", |path| {
            let json = fs::read_to_string(path.join(STATE_FILE)).unwrap();
            fs::write(
                path.join(STATE_FILE),
                json.replace("\"format\": 1", "\"format\": 2"),
            )
            .unwrap();
        }),
        ("outside the checkpoint: \"../model.safetensors\"", |path| {
            let json = fs::read_to_string(path.join(STATE_FILE)).unwrap();
            fs::write(path.join(STATE_FILE), json.replace("\"model", "\"../model")).unwrap();
        }),
    ];
    for (reason, damage) in damages {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), position(64), &files(1.0), KEEP_ALL).unwrap();
        let bad = save(folder.path(), position(128), &files(1.0), KEEP_ALL).unwrap();
        damage(&bad);
        let found = newest(folder.path()).unwrap().unwrap();
        assert_eq!(found.state.position, position(64), "{reason}");
        assert_eq!(found.skipped[0].path, bad);
        assert!(
            found.skipped[0].reason.contains(reason),
            "{}",
            found.skipped[0].reason
        );
        assert!(bad.exists());
    }
}

#[test]
fn only_damaged_checkpoints_are_an_error_and_none_is_not() {
    let folder = tempfile::tempdir().unwrap();
    assert!(newest(&folder.path().join("nowhere")).unwrap().is_none());
    assert!(newest(folder.path()).unwrap().is_none());
    fs::create_dir(folder.path().join(folder_name(64))).unwrap();
    let error = newest(folder.path()).unwrap_err();
    assert!(error.to_string().contains("no checkpoint"), "{error}");
    assert!(Problem::inside(&error).unwrap().way_out().is_some());
}

#[test]
fn cleaning_removes_halves_and_puts_back_what_was_being_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), position(64), &files(1.0), KEEP_ALL).unwrap();
    fs::rename(&path, folder.path().join(".old-images-0000000064")).unwrap();
    fs::create_dir(folder.path().join(".tmp-images-0000000064")).unwrap();
    fs::write(
        folder
            .path()
            .join(".tmp-images-0000000064/model.safetensors"),
        "half",
    )
    .unwrap();
    fs::create_dir(folder.path().join("notes")).unwrap();
    clean(folder.path()).unwrap();
    assert_eq!(names(folder.path()), [folder_name(64), "notes".to_owned()]);
    verify(&path).unwrap();
    fs::create_dir(folder.path().join(".old-images-0000000064")).unwrap();
    clean(folder.path()).unwrap();
    assert_eq!(names(folder.path()), [folder_name(64), "notes".to_owned()]);
    clean(&folder.path().join("nowhere")).unwrap();
}

#[test]
fn a_tensor_whose_shape_is_wrong_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = files(1.0);
    files[1].tensors[0].shape = vec![usize::MAX, 2];
    let error = save(folder.path(), position(64), &files, KEEP_ALL).unwrap_err();
    assert!(
        format!("{error:#}").contains("tensor `m` has 1000 values"),
        "{error:#}"
    );
    assert_eq!(names(folder.path()), [] as [String; 0]);
}

#[test]
fn a_damaged_header_is_refused_or_harmless_but_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let saved = save(folder.path(), position(64), &files(1.0)[..1], KEEP_ALL).unwrap();
    let bytes = fs::read(saved.join("model.safetensors")).unwrap();
    let path = folder.path().join("damaged.safetensors");
    let read_all = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let stored = StoredTensors::open(&path)?;
        let values = stored
            .names()
            .map(|name| stored.values(name))
            .collect::<anyhow::Result<Vec<_>>>()?;
        assert!(values.iter().map(Vec::len).sum::<usize>() * 4 <= bytes.len());
        anyhow::Ok(())
    };
    read_all(&bytes).unwrap();
    let mut n_refused = 0;
    for index in 0..bytes.len() {
        assert!(read_all(&bytes[..index]).is_err(), "{index} bytes");
        for flip in [1, 0x20, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[index] ^= flip;
            n_refused += usize::from(read_all(&damaged).is_err());
        }
    }
    assert!(n_refused > bytes.len(), "{n_refused}");
    for n_header in [u64::MAX, 1 << 40, bytes.len() as u64] {
        let mut damaged = bytes.clone();
        damaged[..8].copy_from_slice(&n_header.to_le_bytes());
        assert!(read_all(&damaged).is_err());
    }
}

#[test]
fn half_precision_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F16, vec![1], &[0, 0]).unwrap();
    fs::write(&path, safetensors::serialize([("w", view)], None).unwrap()).unwrap();
    let error = StoredTensors::open(&path).unwrap().values("w").unwrap_err();
    assert!(
        error.to_string().contains("`w`") && error.to_string().contains("F16"),
        "{error}"
    );
}
