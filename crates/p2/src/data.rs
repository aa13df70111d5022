//! Images from files: found, checked, split, decoded, and served as the pixels of a run.
//!
//! Reading order is the order of the data: `source` lists files (`folder`, `archive`, `bundled`) and
//! reads them with patience (`access`), `check` drops those that cannot be images, `classes` and `split` sort the rest, `decode` (`jpeg`)
//! and `crop` (`resample`) make pixels of them, `cache` keeps the pixels, `dataset` joins all that,
//! `order` says which image comes when, `loader` serves batches, `tensor` single images, `pack` makes archives.

mod access;
mod archive;
mod bundled;
mod cache;
mod check;
mod classes;
mod crop;
mod dataset;
mod decode;
mod folder;
mod jpeg;
mod loader;
mod order;
mod pack;
mod resample;
mod source;
mod split;
mod tensor;

pub use bundled::BUNDLED;
pub use dataset::{Dataset, Image, SkippedFile, Split};
pub use loader::{Batch, Loader, LoaderOptions};
pub use pack::{Packed, pack};

/// A color value in `[-1, 1]`, as networks see it.
pub fn pixel_from_byte(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}
