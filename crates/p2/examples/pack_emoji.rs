//! Packs the bundled emoji: `pack_emoji SOURCE_DIR OUT.zip`. See `assets/emoji-32/rebuild.sh`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Height and width of the packed drawings, in pixels.
const IMAGE_SIZE: usize = 32;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, out] = args.as_slice() else {
        bail!("usage: pack_emoji SOURCE_DIR OUT.zip");
    };
    let packed = p2::data::pack(source, IMAGE_SIZE)?;
    let mut report = std::io::stderr().lock();
    for skipped in &packed.skipped {
        writeln!(report, "skipped {}: {}", skipped.file, skipped.reason)?;
    }
    for (duplicate, first) in &packed.duplicates {
        writeln!(report, "{duplicate} is the same drawing as {first}")?;
    }
    write_new(Path::new(out), &packed.zip).with_context(|| format!("cannot write: {out}"))?;
    let n_bytes = packed.zip.len();
    writeln!(
        report,
        "{} images, {n_bytes} bytes in {out}",
        packed.n_images
    )?;
    Ok(())
}

/// Writes beside the file and renames, so that there is never half an archive.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("zip.tmp");
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    Ok(())
}
