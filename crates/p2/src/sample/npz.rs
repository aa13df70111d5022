//! Samples as the evaluator of guided-diffusion reads them: `arr_0` and, with classes, `arr_1` of an `.npz`.

use std::io::{Cursor, Write as _};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::durable;

/// Saves images, `[N, H, W, 3]` in `[-1, 1]`, as u8 `[N, H, W, 3]`, and their classes, `[N]`, as i64.
///
/// A pixel is `(x + 1) 127.5`, cut off below its whole number as in the reference code; pictures are rounded instead,
/// so that the two differ by up to one level.
///
/// # Errors
/// If the file cannot be written.
pub fn npz_file(
    path: &Path,
    size: usize,
    pixels: &[f32],
    labels: Option<&[u32]>,
) -> anyhow::Result<()> {
    let bytes: Vec<u8> = pixels
        .iter()
        .map(|x| ((x + 1.0) * 127.5).clamp(0.0, 255.0) as u8)
        .collect();
    let n_images = pixels.len() / (size * size * 3);
    let mut arrays = vec![npy("|u1", &[n_images, size, size, 3], &bytes)];
    if let Some(labels) = labels {
        let labels: Vec<u8> = labels
            .iter()
            .flat_map(|&label| i64::from(label).to_le_bytes())
            .collect();
        arrays.push(npy("<i8", &[n_images], &labels));
    }
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(true);
    for (i, array) in arrays.iter().enumerate() {
        zip.start_file(format!("arr_{i}.npy"), stored)?;
        zip.write_all(array)?;
    }
    durable::write(path, &zip.finish()?.into_inner())
}

/// An array in NumPy's format 1.0: a line of text as long as keeps the numbers at a multiple of 64, and the numbers.
fn npy(dtype: &str, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let shape: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    let header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    let n_before = 10 + header.len() + 1;
    let padding = " ".repeat(n_before.next_multiple_of(64) - n_before);
    let header = format!("{header}{padding}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(bytes);
    out
}
