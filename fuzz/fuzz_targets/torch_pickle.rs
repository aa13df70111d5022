//! Bytes as the pickle in a sound zip, which has checksums that a changed pickle would not keep.

#![no_main]

use std::io::{Cursor, Write as _};

use libfuzzer_sys::fuzz_target;
use p2_fuzz::{read_all, within_memory};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fuzz_target!(|pickle: &[u8]| {
    let file = zip_of(pickle).expect("bytes in memory can be packed");
    within_memory(file.len(), || read_all(Cursor::new(file.as_slice())));
});

/// Lengths of the storages: those of `adam.pt`, a seed, which is thus read to its end.
const STORAGE_BYTES: [usize; 6] = [4, 24, 24, 4, 12, 12];

/// A zip as PyTorch writes it, with this pickle.
fn zip_of(pickle: &[u8]) -> zip::result::ZipResult<Vec<u8>> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored)?;
    zip.write_all(pickle)?;
    for (key, n_bytes) in STORAGE_BYTES.into_iter().enumerate() {
        zip.start_file(format!("archive/data/{key}"), stored)?;
        // 1.0, which counts steps too.
        zip.write_all(&1.0_f32.to_le_bytes().repeat(n_bytes / 4))?;
    }
    Ok(zip.finish()?.into_inner())
}
