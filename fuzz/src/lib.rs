//! What the fuzz targets share: a reader's promises about memory, and a PyTorch file read to its end.

use std::io::{Read, Seek};

use p2::torch::TorchFile;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What reading may take whatever the file, such as names of tensors and tables of a zip.
const FLOOR_BYTES: usize = 12 << 20;
/// What it may take for each byte of a file, up to [`MOST_BYTES`].
const PER_BYTE: usize = 128;
/// What it may take beside numbers.
const MOST_BYTES: usize = 64 << 20;
/// A number of two bytes is read into four, and both are there for a while.
const PER_BYTE_OF_NUMBERS: usize = 4;

/// Runs a reader on a file of `n_bytes` and panics if it takes more memory than is promised.
///
/// # Panics
/// If it does.
pub fn within_memory(n_bytes: usize, read: impl FnOnce()) {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    read();
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let most = MOST_BYTES.min(FLOOR_BYTES + PER_BYTE * n_bytes) + PER_BYTE_OF_NUMBERS * n_bytes;
    assert!(
        taken <= most,
        "{taken} bytes of memory for a file of {n_bytes}, at most {most}"
    );
}

/// Reads all that a PyTorch file holds; errors are fine.
pub fn read_all(source: impl Read + Seek) {
    let Ok(mut file) = TorchFile::read(source, "x.pt") else {
        return;
    };
    let _ = file.adam("");
    let names: Vec<String> = file.tensors().keys().cloned().collect();
    for name in names {
        let n_elements = file.tensors()[&name].n_elements();
        if let Ok(values) = file.values(&name) {
            assert_eq!(values.len(), n_elements, "{name}");
        }
    }
}
