//! How fast this machine multiplies matrices with p2's own kernels: the limit beside each number.

use std::time::Instant;

use p2_kernels::Cpu;
use p2_kernels::conv2d::{Conv2d, Inputs};

/// Rows, inner size and columns of the products: the packed matrix fits a core's cache.
const SIZES: [[usize; 3]; 3] = [[6144, 256, 256], [3072, 512, 256], [12_288, 128, 256]];

/// Repetitions of each; the fastest counts.
const N_REPEATS: usize = 8;

/// 10^9 flops per second of the fastest product, a multiply-add being two.
pub(super) fn gflops(cpu: Cpu) -> f64 {
    SIZES.iter().fold(0.0, |best, &[n, c_in, c_out]| {
        let product = Conv2d::linear(n, c_in, c_out);
        let (x, weight) = (vec![0.5; n * c_in], vec![0.25; c_in * c_out]);
        let (bias, mut y) = (vec![0.0; c_out], vec![0.0; n * c_out]);
        let gflop = 2.0 * (n * c_in * c_out) as f64 / 1e9;
        (0..N_REPEATS).fold(best, |best: f64, _| {
            let started = Instant::now();
            let inputs = Inputs {
                x: &x,
                weight: &weight,
                bias: &bias,
                residual: None,
            };
            product.forward(inputs, &mut y, cpu);
            best.max(gflop / started.elapsed().as_secs_f64())
        })
    })
}
