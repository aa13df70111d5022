//! 3×3 convolutions of networks, three passes each: operations of the direct algorithm per second.
//!
//! `cargo bench -p p2-kernels --bench conv2d -- 32x128x128x16` runs those of one size;
//! `P2_ISA` chooses the instruction set.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use p2_kernels::allocator::Lines;
use p2_kernels::conv2d::{Conv2d, Groups, Inputs};
use p2_kernels::{Cpu, Isa, Precision, Threads};

/// Memory as the program has it.
#[global_allocator]
static ALLOCATOR: Lines = Lines;

/// Images, input and output channels, rows and columns.
const SIZES: [[usize; 4]; 18] = [
    [32, 64, 64, 32],
    [32, 128, 128, 16],
    [32, 128, 128, 8],
    [32, 192, 128, 16],
    [32, 128, 64, 32],
    [2, 128, 128, 256],
    [2, 256, 256, 64],
    // Few tiles and many channels.
    [2, 256, 256, 32],
    [2, 512, 512, 16],
    [2, 512, 512, 8],
    // Those of `bench-medium`.
    [8, 96, 96, 64],
    [8, 192, 192, 32],
    [8, 288, 288, 16],
    [8, 384, 384, 8],
    [8, 192, 96, 64],
    [8, 384, 192, 32],
    [8, 576, 288, 16],
    [8, 768, 384, 8],
];

fn fill(len: usize) -> Vec<f32> {
    let number = |i: usize| (i * 7919 % 2003) as f32 / 1000.0 - 1.0;
    (0..len).map(number).collect()
}

fn convolutions(criterion: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cpu = Cpu::best(Threads::new(threads));
    let wanted = std::env::var("P2_ISA").ok();
    if let Some(isa) = wanted.as_deref().and_then(Isa::from_name) {
        cpu.isa = isa;
    }
    for size in SIZES {
        for precision in [Precision::F32, Precision::Bf16] {
            convolution(criterion, size, Cpu { precision, ..cpu });
        }
    }
}

fn convolution(criterion: &mut Criterion, [n, c_in, c_out, side]: [usize; 4], cpu: Cpu) {
    let conv = Conv2d {
        n,
        h: side,
        w: side,
        c_in,
        c_out,
        kernel: [3, 3],
        stride: 1,
        padding: [1, 1],
        groups: Groups::One,
    };
    let (x, weight, bias) = (fill(conv.x_len()), fill(conv.weight_len()), fill(c_out));
    let d_y = fill(conv.y_len());
    let (mut y, mut d_x) = (d_y.clone(), x.clone());
    let (mut d_weight, mut d_bias) = (weight.clone(), bias.clone());
    let name = format!("{n}x{c_in}x{c_out}x{side} {:?}", cpu.precision);
    let mut group = criterion.benchmark_group(name);
    let multiply_adds = conv.y_len() * 9 * c_in;
    group.throughput(Throughput::Elements(2 * multiply_adds as u64));
    group.sample_size(20);
    group.bench_function("forward", |bencher| {
        bencher.iter(|| {
            let inputs = Inputs {
                x: black_box(&x),
                weight: &weight,
                bias: &bias,
                residual: None,
            };
            conv.forward(inputs, &mut y, cpu);
        });
    });
    group.bench_function("backward_input", |bencher| {
        bencher.iter(|| conv.backward_input(black_box(&d_y), &weight, &mut d_x, cpu));
    });
    group.bench_function("backward_weight", |bencher| {
        bencher.iter(|| {
            conv.backward_weight(&x, black_box(&d_y), &mut d_weight, &mut d_bias, cpu);
        });
    });
    group.finish();
}

fn main() {
    // The pages that the program has.
    p2_kernels::process::keep_freed_pages();
    let mut criterion = Criterion::default().configure_from_args();
    convolutions(&mut criterion);
    criterion.final_summary();
}
