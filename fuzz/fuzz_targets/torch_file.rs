//! Bytes as a file of PyTorch: a zip, or the container before.

#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use p2_fuzz::{read_all, within_memory};

fuzz_target!(|bytes: &[u8]| {
    within_memory(bytes.len(), || read_all(Cursor::new(bytes)));
});
