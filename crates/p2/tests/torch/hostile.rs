//! Files that want to do harm: each is an error, soon, and takes little memory.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use p2::torch::TorchFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A zip with a pickle and eight numbers.
fn file(folder: &Path, name: &str, pickle: &[u8]) -> PathBuf {
    let path = folder.join(name);
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("data.pkl", pickle), ("data/0", &[0; 32][..])] {
        zip.start_file(format!("archive/{name}"), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    path
}

/// The instruction for a text.
pub(super) fn text(text: &str) -> Vec<u8> {
    [
        &b"X"[..],
        &(text.len() as u32).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat()
}

/// The instruction for a number.
pub(super) fn int(value: i32) -> Vec<u8> {
    [&b"J"[..], &value.to_le_bytes()].concat()
}

/// A dictionary with the tensor `w`, of such a storage, place, shape and strides.
fn tensor(
    class: &str,
    key: &str,
    n_stored: i32,
    offset: i32,
    shape: &[i32],
    strides: &[i32],
) -> Vec<u8> {
    let list = |values: &[i32]| -> Vec<u8> {
        let values: Vec<Vec<u8>> = values.iter().map(|&value| int(value)).collect();
        [&b"("[..], &values.concat(), b"t"].concat()
    };
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        format!("c{class}\n").as_bytes(),
        &text(key),
        &text("cpu"),
        &int(n_stored),
        b"tQ",
        &int(offset),
        &list(shape),
        &list(strides),
        b"\x89NtRs.",
    ]
    .concat()
}

/// How a pickle names a storage of f32.
pub(super) const FLOAT: &str = "torch\nFloatStorage";

/// The error of opening it, or of reading `w`.
fn error(path: &Path) -> String {
    let values = TorchFile::open(path).and_then(|mut file| file.values("w"));
    format!("{:#}", values.unwrap_err())
}

#[test]
fn a_sound_file_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let sound = file(
        folder.path(),
        "a.pt",
        &tensor(FLOAT, "0", 8, 2, &[2, 3], &[3, 1]),
    );
    assert_eq!(
        TorchFile::open(&sound).unwrap().values("w").unwrap(),
        [0.0; 6]
    );
}

#[test]
fn code_is_named_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("touch {}", witness.display());
    let call = |module: &str, name: &str| -> Vec<u8> {
        [
            &b"\x80\x02c"[..],
            format!("{module}\n{name}\n(").as_bytes(),
            &text(&command),
            b"tR.",
        ]
        .concat()
    };
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("subprocess", "Popen"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("collections", "OrderedDict.update"),
    ] {
        let said = error(&file(folder.path(), "a.pt", &call(module, name)));
        assert!(said.contains(&format!("`{module}.{name}`")), "{said}");
    }
    // The same by a name from the stack, and by instructions that weights do not need.
    let stacked = [&b"\x80\x04"[..], &text("os"), &text("system"), b"\x93."].concat();
    assert!(error(&file(folder.path(), "a.pt", &stacked)).contains("`os.system`"));
    for op in [
        &b"ios\nsystem\n."[..],
        b"o.",
        b"\x81.",
        b"\x92.",
        b"Pid\n.",
        b"\x82\x01.",
        b"I1\n.",
        b"S'a'\n.",
    ] {
        let said = error(&file(folder.path(), "a.pt", &[b"\x80\x02", op].concat()));
        assert!(said.contains("is not one that weights need"), "{said}");
    }
    assert!(!witness.exists());
}

#[test]
fn sizes_and_places_are_checked_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    for (pickle, message) in [
        (
            tensor(FLOAT, "0", 8, 0, &[i32::MAX, i32::MAX], &[1, 1]),
            "is more than the 8 stored",
        ),
        (
            tensor(FLOAT, "0", i32::MAX, 0, &[i32::MAX], &[1]),
            "bytes of numbers",
        ),
        (
            tensor(FLOAT, "0", 8, 0, &[i32::MAX], &[0]),
            "is more than the 8 stored",
        ),
        (
            tensor(FLOAT, "0", 8, 7, &[2], &[1]),
            "outside of its numbers",
        ),
        (
            tensor(FLOAT, "0", 8, 0, &[2], &[i32::MAX]),
            "outside of its numbers",
        ),
        (tensor(FLOAT, "0", 8, -1, &[2], &[1]), "tensor `w`"),
        (tensor(FLOAT, "0", 8, 0, &[-2], &[1]), "tensor `w`"),
        (tensor(FLOAT, "0", 8, 0, &[2], &[-1]), "tensor `w`"),
        (tensor(FLOAT, "0", 8, 0, &[2], &[1, 1]), "as many strides"),
        (tensor(FLOAT, "0", 9, 0, &[2], &[1]), "bytes of numbers"),
        (tensor(FLOAT, "1", 8, 0, &[2], &[1]), "no `archive/data/1`"),
        (
            tensor(FLOAT, "../../etc/passwd", 8, 0, &[2], &[1]),
            "its numbers lie in",
        ),
        (
            tensor("torch\nComplexFloatStorage", "0", 8, 0, &[2], &[1]),
            "torch.ComplexFloatStorage",
        ),
        (
            tensor("torch._utils\n_rebuild_tensor_v2", "0", 8, 0, &[2], &[1]),
            "not described as PyTorch does",
        ),
    ] {
        let said = error(&file(folder.path(), "a.pt", &pickle));
        assert!(said.contains(message), "{message}: {said}");
    }
}

#[test]
fn nesting_and_recursion_end() {
    let folder = tempfile::tempdir().unwrap();
    let deep_tuples = [&b"\x80\x02)"[..], &b"\x85".repeat(100_000), b"."].concat();
    let deep_lists = [
        &b"\x80\x02"[..],
        &b"]".repeat(100_000),
        &b"a".repeat(99_999),
        b".",
    ]
    .concat();
    let deep_dicts = [
        &b"\x80\x02"[..],
        &b"}K\x01".repeat(50_000),
        b"N",
        &b"s".repeat(50_000),
        b".",
    ]
    .concat();
    // A list that is put into itself, and a dictionary changed inside another.
    let own = b"\x80\x02]q\x00h\x00a.".to_vec();
    let late = b"\x80\x02}q\x00]h\x00a0h\x00K\x01K\x02s.".to_vec();
    // Each tuple holds the last one twice: 2^60 values in 200 bytes.
    let mut doubling = b"\x80\x02}X\x01\x00\x00\x00wN\x85".to_vec();
    for _ in 0..60 {
        doubling.extend(b"q\x00h\x00\x86");
    }
    doubling.extend(b"s.");
    for (pickle, message) in [
        (deep_tuples, "deep"),
        (deep_lists, "deep"),
        (deep_dicts, "deep"),
        (own, "changes inside another"),
        (late, "changes inside another"),
        (doubling, "more than 262144 values"),
    ] {
        let said = error(&file(folder.path(), "a.pt", &pickle));
        assert!(said.contains(message), "{message}: {said}");
    }
}

/// A few bytes that recall one value many times: what is made of each time must be little.
#[test]
fn what_is_recalled_often_takes_little_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let sound = tensor(FLOAT, "0", 8, 0, &[2], &[1]);
    // From the name of the tensor's function to its call.
    let call = &sound[9..sound.len() - 2];
    // A long name before thousands of tensors.
    let long_name = [
        &b"\x80\x02}"[..],
        &text(&"n".repeat(100_000)),
        b"]",
        call,
        b"q\x00a",
        &b"h\x00a".repeat(50_000),
        b"s.",
    ]
    .concat();
    // Thousands of axes, in thousands of tensors.
    let many_axes = tensor(FLOAT, "0", 8, 0, &[1; 20_000], &[1; 20_000]);
    // Thousands of tensors.
    let many_tensors = [
        &b"\x80\x02]"[..],
        call,
        b"q\x00a",
        &b"h\x00a".repeat(50_000),
        b".",
    ]
    .concat();
    let long_key = tensor(FLOAT, &"0".repeat(100_000), 8, 0, &[2], &[1]);
    for (pickle, message) in [
        (long_name, "a name of more than 256 bytes"),
        (many_axes, "it has 20000 axes"),
        (many_tensors, "more than 16384 tensors"),
        (long_key, "its numbers lie in"),
    ] {
        let said = error(&file(folder.path(), "a.pt", &pickle));
        assert!(said.contains(message), "{message}: {said}");
        assert!(said.len() < 2000, "{} bytes of error", said.len());
    }
}

#[test]
fn nothing_in_a_file_steers_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let name = b"\x80\x02cos\x1b[2J\nsystem\n.".to_vec();
    let mut key = tensor(FLOAT, "0", 8, 0, &[2], &[1]);
    key[8] = 0x1b;
    let storage = tensor(FLOAT, "\x1b[2J", 8, 0, &[2], &[1]);
    for pickle in [&name, &key, &storage] {
        let said = error(&file(folder.path(), "a.pt", pickle));
        assert!(said.contains("\\u{1b}"), "{said}");
        assert!(!said.contains('\u{1b}'), "{said}");
    }
}

#[test]
fn long_pickles_are_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let long = [&b"\x80\x02"[..], &b"]".repeat(600_000), b"."].concat();
    assert!(error(&file(folder.path(), "a.pt", &long)).contains("has 600003 bytes"));
}

#[test]
fn broken_pickles_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let sound = tensor(FLOAT, "0", 8, 0, &[2], &[1]);
    // Cut anywhere, and with any one byte changed: an error or a tensor, never a crash.
    for n in 0..sound.len() {
        let said = error(&file(folder.path(), "a.pt", &sound[..n]));
        assert!(!said.is_empty());
        for change in [0x00, 0x28, 0x2e, 0x71, 0xff] {
            let mut changed = sound.clone();
            changed[n] = change;
            let path = file(folder.path(), "a.pt", &changed);
            let _ = TorchFile::open(&path).and_then(|mut file| file.values("w"));
        }
    }
    for pickle in [
        &b"\x80\x02t."[..],
        b"\x80\x02h\x00.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02\x8a\xff.",
        b"\x80\x01.",
        b"\x80\x02NQ.",
        b"\x80\x02NNR.",
        b"\x80\x02NNNs.",
        b"\x80\x02(0.",
    ] {
        error(&file(folder.path(), "a.pt", pickle));
    }
}

#[test]
fn zips_that_are_none_or_bombs_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    let sound = std::fs::read(file(
        folder.path(),
        "b.pt",
        &tensor(FLOAT, "0", 8, 0, &[2], &[1]),
    ))
    .unwrap();
    for bytes in [&b""[..], b"PK", b"\x80\x02}.", &sound[..sound.len() / 2]] {
        std::fs::write(&path, bytes).unwrap();
        assert!(error(&path).contains("cannot read"));
    }
    let mut zip = ZipWriter::new(File::create(&path).unwrap());
    let packed = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("archive/data.pkl", packed).unwrap();
    for _ in 0..200 {
        zip.write_all(&[b'N'; 1 << 20]).unwrap();
    }
    zip.finish().unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 1 << 20);
    assert!(error(&path).contains("` is compressed"));
    let two = File::create(&path).unwrap();
    let mut zip = ZipWriter::new(two);
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for name in ["a/data.pkl", "b/data.pkl"] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(b"\x80\x02}.").unwrap();
    }
    zip.finish().unwrap();
    assert!(error(&path).contains("two pickles"));
}

/// The list of files at the end of a zip says how long they are: it must not promise what is not there.
#[test]
fn numbers_beyond_the_end_of_a_zip_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pickle = tensor(FLOAT, "0", 1 << 20, 0, &[2], &[1]);
    let path = file(folder.path(), "a.pt", &pickle);
    let mut bytes = std::fs::read(&path).unwrap();
    // The last entry of the list is that of the numbers; both its lengths are raised.
    let entry = bytes.windows(4).rposition(|part| part == b"PK\x01\x02");
    let lengths = entry.unwrap() + 20;
    for at in [lengths, lengths + 4] {
        bytes[at..at + 4].copy_from_slice(&(4_u32 << 20).to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    let said = error(&path);
    let message = "data/0` ends behind the end of the zip";
    assert!(said.contains(message), "{said}");
}
