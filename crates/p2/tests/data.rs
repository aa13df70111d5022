//! Datasets and loaders as a program sees them.

#![allow(clippy::disallowed_methods, reason = "tests write scratch files")]
#![expect(
    clippy::unwrap_used,
    reason = "functions that tests share may panic like tests"
)]

mod data {
    /// The images inside the binary, and how they were packed.
    mod bundled;
    /// Images of a list, damaged ones, the fingerprint, and the held-out split.
    mod dataset;
    /// Small images in folders and archives.
    pub(crate) mod files;
    /// Batches.
    pub(crate) mod loader;
    /// Folders and archives.
    mod source;
}
