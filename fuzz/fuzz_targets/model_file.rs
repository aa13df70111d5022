//! Bytes as a model file of p2: safetensors with a configuration.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use p2::checkpoint::StoredTensors;
use p2::model::file;
use p2_fuzz::within_memory;
use p2_nn::{Cpu, Threads};

fuzz_target!(|bytes: &[u8]| {
    within_memory(bytes.len(), || {
        let Ok(stored) = StoredTensors::of_bytes(bytes.to_vec(), Path::new("x.safetensors")) else {
            return;
        };
        let n_values: usize = stored
            .names()
            .filter_map(|name| stored.values(name).ok())
            .map(|values| values.len())
            .sum();
        assert!(4 * n_values <= bytes.len(), "{n_values} numbers");
        let _ = file::read(&stored, Cpu::best(Threads::new(1)));
    });
});
