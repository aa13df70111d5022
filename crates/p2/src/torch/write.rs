//! A PyTorch file: the pickle of an ordered dictionary of tensors, and their numbers.

use std::io::{Cursor, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::checkpoint::NamedTensor;
use crate::durable;

/// Writes tensors in their order, which `torch.load` reads with `weights_only=True`.
///
/// # Errors
/// If a tensor is too large for the format, or the disk refuses.
pub fn save(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(false);
    let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
        zip.start_file(format!("archive/{name}"), options)?;
        Ok(zip.write_all(bytes)?)
    };
    put("data.pkl", &pickle(tensors)?)?;
    put("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        put(&format!("data/{key}"), &bytes)?;
    }
    put("version", b"3\n")?;
    durable::write(path, &zip.finish()?.into_inner())
}

/// `OrderedDict(name: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()))`, protocol 2.
fn pickle(tensors: &[NamedTensor<'_>]) -> Result<Vec<u8>> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        text(&mut out, &tensor.name)?;
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage")?;
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, &key.to_string())?;
        text(&mut out, "cpu")?;
        int(&mut out, tensor.values.len())?;
        out.extend(b"tQK\x00(");
        for &size in &tensor.shape {
            int(&mut out, size)?;
        }
        out.extend(b"t(");
        for axis in 0..tensor.shape.len() {
            int(&mut out, tensor.shape[axis + 1..].iter().product())?;
        }
        out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    Ok(out)
}

fn text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    out.push(b'X');
    out.extend(u32::try_from(text.len())?.to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

fn int(out: &mut Vec<u8>, value: usize) -> Result<()> {
    let value = i32::try_from(value).context("a tensor of more than 2^31 numbers")?;
    out.push(b'J');
    out.extend(value.to_le_bytes());
    Ok(())
}
