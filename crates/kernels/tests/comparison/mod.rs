//! What all tests against a reference share.

use p2_kernels::{Cpu, Isa, Threads};

/// Every instruction set with 1 thread, the best one also with 2, 3 and 8.
pub(crate) fn cpus() -> Vec<Cpu> {
    let isas = Isa::available().into_iter().map(|isa| Cpu {
        isa,
        ..Cpu::best(Threads::new(1))
    });
    isas.chain([2, 3, 8].map(|n| Cpu::best(Threads::new(n))))
        .collect()
}

/// Numbers in about [-1, 1] without a pattern that a wrong index could hit.
pub(crate) fn fill(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(12345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn assert_close(what: &str, fast: &[f32], slow: &[f64], tolerance: f64) {
    assert_eq!(fast.len(), slow.len(), "{what}: length");
    let scale = slow.iter().fold(1.0f64, |max, x| max.max(x.abs()));
    for (idx, (&fast, &slow)) in fast.iter().zip(slow).enumerate() {
        let error = (f64::from(fast) - slow).abs() / scale;
        assert!(error < tolerance, "{what}[{idx}]: {fast} instead of {slow}");
    }
}

/// The best instruction set gives the same bits with any number of threads.
pub(crate) fn assert_same_bits(what: &str, results: &[(Cpu, Vec<f32>)]) {
    let best: Vec<_> = results
        .iter()
        .filter(|(cpu, _)| cpu.isa.name() == Isa::best().name())
        .collect();
    for (cpu, result) in best.iter().skip(1) {
        assert!(
            result
                .iter()
                .zip(&best[0].1)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{what}: other bits with {cpu:?}"
        );
    }
}
