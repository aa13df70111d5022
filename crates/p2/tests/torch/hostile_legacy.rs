//! Hostile files in the container before PyTorch 1.6: pickles one behind the other, and numbers behind them.

use std::io::Cursor;

use p2::torch::TorchFile;

use super::hostile::{FLOAT, int, text};

/// The parts of a sound file with the tensor `w` of eight numbers in storage 0, each to be replaced.
struct Parts {
    magic: Vec<u8>,
    version: Vec<u8>,
    system: Vec<u8>,
    object: Vec<u8>,
    keys: Vec<u8>,
    numbers: Vec<u8>,
}

impl Parts {
    fn sound() -> Self {
        Self {
            magic: b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(),
            version: b"\x80\x02M\xe9\x03.".to_vec(),
            system: system(b"\x88"),
            object: tensor("0", 8, b"N"),
            keys: keys(&["0"]),
            numbers: storage(8, 8),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        [
            &self.magic,
            &self.version,
            &self.system,
            &self.object,
            &self.keys,
            &self.numbers,
        ]
        .into_iter()
        .flatten()
        .copied()
        .collect()
    }
}

fn system(is_little: &[u8]) -> Vec<u8> {
    [b"\x80\x02}", &text("little_endian")[..], is_little, b"s."].concat()
}

/// A dictionary with the tensor `w` of two numbers.
fn tensor(key: &str, n_stored: i32, view: &[u8]) -> Vec<u8> {
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        format!("c{FLOAT}\n").as_bytes(),
        &text(key),
        &text("cpu"),
        &int(n_stored),
        view,
        b"tQK\x00K\x02\x85K\x01\x85\x89NtRs.",
    ]
    .concat()
}

fn keys(keys: &[&str]) -> Vec<u8> {
    let keys: Vec<Vec<u8>> = keys.iter().map(|key| text(key)).collect();
    [&b"\x80\x02]("[..], &keys.concat(), b"e."].concat()
}

fn storage(n_counted: u64, n_stored: usize) -> Vec<u8> {
    [&n_counted.to_le_bytes()[..], &vec![0; 4 * n_stored]].concat()
}

/// The error of reading a file, or its tensor `w`.
fn error(bytes: &[u8]) -> String {
    let values = TorchFile::read(Cursor::new(bytes), "x.pt").and_then(|mut file| file.values("w"));
    format!("{:#}", values.unwrap_err())
}

fn check(change: impl FnOnce(&mut Parts), message: &str) {
    let mut parts = Parts::sound();
    change(&mut parts);
    let said = error(&parts.bytes());
    assert!(said.contains(message), "{message}: {said}");
}

#[test]
fn a_sound_file_is_read() {
    let bytes = Parts::sound().bytes();
    let mut file = TorchFile::read(Cursor::new(bytes), "x.pt").unwrap();
    assert_eq!(file.values("w").unwrap(), [0.0; 2]);
}

#[test]
fn what_does_not_begin_as_pytorchs_files_is_refused() {
    let begin = "does not begin as PyTorch";
    check(|parts| parts.magic[5] ^= 1, begin);
    check(|parts| parts.magic = b"\x80\x02K\x01.".to_vec(), begin);
    check(|parts| parts.magic = b"\x80\x02N.".to_vec(), begin);
    check(|parts| parts.magic[0] = 0x7f, "neither a zip nor a pickle");
    check(|parts| parts.magic[3] = 17, "a whole number of 17 bytes");
    check(|parts| parts.version[3] = 0xe8, "version 1000 is not 1001");
    check(
        |parts| parts.version = b"\x80\x02N.".to_vec(),
        "its version is no number",
    );
    let endian = "not little-endian";
    check(|parts| parts.system = system(b"\x89"), endian);
    check(|parts| parts.system = system(b"K\x01"), endian);
    check(|parts| parts.system = b"\x80\x02}.".to_vec(), endian);
    check(|parts| parts.system = b"\x80\x02N.".to_vec(), endian);
}

#[test]
fn code_is_named_in_any_of_the_pickles() {
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("witness");
    let command = format!("touch {}", witness.display());
    let call = [&b"\x80\x02cos\nsystem\n("[..], &text(&command), b"tR."].concat();
    let message = "names `os.system`";
    check(|parts| parts.magic = call.clone(), message);
    check(|parts| parts.version = call.clone(), message);
    check(|parts| parts.system = call.clone(), message);
    check(|parts| parts.object = call.clone(), message);
    check(|parts| parts.keys = call.clone(), message);
    check(
        |parts| parts.object = b"\x80\x02c__torch__\nNetwork\n.".to_vec(),
        "names `__torch__.Network`",
    );
    assert!(!witness.exists());
}

#[test]
fn keys_and_numbers_must_be_those_of_the_tensors() {
    let no_storage = "is of no storage, or twice";
    check(|parts| parts.keys = keys(&["1"]), no_storage);
    check(|parts| parts.keys = keys(&["0", "0"]), no_storage);
    check(|parts| parts.keys = keys(&["0", "1"]), no_storage);
    check(|parts| parts.keys = keys(&[]), "1 storages have no key");
    check(|parts| parts.keys = b"\x80\x02N.".to_vec(), "are no list");
    check(
        |parts| parts.keys = b"\x80\x02](K\x00e.".to_vec(),
        "the key of a storage is no text",
    );
    let count = "numbers instead of 8";
    for n_counted in [0, 7, 9, 1 << 62, u64::MAX] {
        check(|parts| parts.numbers = storage(n_counted, 8), count);
    }
    // Counts that agree, and are far beyond the file.
    for n in [i32::MAX, 9] {
        let lie = |parts: &mut Parts| {
            parts.object = tensor("0", n, b"N");
            parts.numbers = storage(n as u64, 8);
        };
        check(lie, "the file ends within storage 0");
    }
    let short = |parts: &mut Parts| {
        parts.object = tensor("0", 1, b"N");
        parts.numbers = storage(1, 1);
    };
    check(short, "more than the 1 stored");
    check(|parts| parts.object = tensor("0", -1, b"N"), "out of range");
    check(
        |parts| parts.object = tensor("-0", 8, b"N"),
        "its numbers lie in",
    );
    check(
        |parts| parts.object = tensor(&"0".repeat(99_999), 8, b"N"),
        "its numbers lie in",
    );
    check(
        |parts| parts.object = tensor("0", 8, b")"),
        "a view of others",
    );
    // The same storage in two types.
    let twice = |parts: &mut Parts| {
        let double = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nDoubleStorage\n\
            X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ0";
        parts.object = [double, &parts.object[2..]].concat();
    };
    check(twice, "storage 0 is of two kinds");
}

#[test]
fn cut_and_changed_files_are_errors_or_harmless() {
    let sound = Parts::sound().bytes();
    for n in 0..sound.len() {
        assert!(!error(&sound[..n]).is_empty());
        for change in [0x00, 0x28, 0x2e, 0x71, 0xff] {
            let mut changed = sound.clone();
            changed[n] = change;
            let file = TorchFile::read(Cursor::new(changed), "x.pt");
            let values = file.and_then(|mut file| file.values("w"));
            assert!(values.is_err() || values.unwrap().len() <= 8);
        }
    }
}

#[test]
fn pickles_are_read_to_a_limit_together() {
    let long = |parts: &mut Parts| {
        parts.system = [&b"\x80\x02"[..], &b"N0".repeat(250_000), b"}."].concat();
        parts.object = [&b"\x80\x02"[..], &b"N0".repeat(250_000), b"}."].concat();
    };
    let mut parts = Parts::sound();
    parts.system = [
        &b"\x80\x02"[..],
        &b"N0".repeat(200_000),
        &system(b"\x88")[2..],
    ]
    .concat();
    assert!(TorchFile::read(Cursor::new(parts.bytes()), "x.pt").is_ok());
    check(
        |parts| {
            long(parts);
            parts.system = [&parts.system[..500_002], &system(b"\x88")[2..]].concat();
        },
        "its first 524288 bytes are read as pickles",
    );
}
