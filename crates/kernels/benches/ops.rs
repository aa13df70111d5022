//! The kernels at the sizes of a 32×32 U-Net of 64 channels with batches of 32, on all cores.
//!
//! `cargo bench -p p2-kernels --bench ops -- linear`

#![expect(missing_docs, reason = "the macro of criterion writes an item without")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use p2_kernels::allocator::Lines;
use p2_kernels::attention::{Attention, Order};
use p2_kernels::conv2d::{Conv2d, Groups, Inputs, JoinedInputs};
use p2_kernels::group_norm::{self, Activation, Gradients, GroupNorm};
use p2_kernels::resample::Resample;
use p2_kernels::{Cpu, Precision, Threads, adamw, process};

const BATCH: usize = 32;

fn cpu() -> Cpu {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    Cpu::best(Threads::new(n_cores))
}

/// Numbers in about [-1, 1].
fn fill(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Memory as the program has it.
#[global_allocator]
static ALLOCATOR: Lines = Lines;

/// Pages as the program has them.
fn pages(_: &mut Criterion) {
    process::keep_freed_pages();
}

/// Times all three passes of a convolution.
fn passes(c: &mut Criterion, name: &str, conv: Conv2d, cpu: Cpu) {
    let (x, weight) = (fill(conv.x_len()), fill(conv.weight_len()));
    let (bias, mut y) = (fill(conv.c_out), fill(conv.y_len()));
    let inputs = Inputs {
        x: &x,
        weight: &weight,
        bias: &bias,
        residual: None,
    };
    let mut group = c.benchmark_group(name);
    let multiply_adds = conv.n * conv.out_h() * conv.out_w() * conv.weight_len();
    group.throughput(Throughput::Elements(2 * multiply_adds as u64));
    group.bench_function("forward", |b| b.iter(|| conv.forward(inputs, &mut y, cpu)));
    let mut d_x = x.clone();
    group.bench_function("input gradient", |b| {
        b.iter(|| conv.backward_input(&y, &weight, &mut d_x, cpu));
    });
    let (mut d_weight, mut d_bias) = (weight.clone(), bias.clone());
    group.bench_function("weight gradient", |b| {
        b.iter(|| conv.backward_weight(&x, &y, &mut d_weight, &mut d_bias, cpu));
    });
    group.finish();
}

/// Times all three passes of the 1×1 convolution of joined channels.
fn joined(c: &mut Criterion) {
    for (rows, c_in, c_out) in [
        (BATCH * 32 * 32, [64, 64], 64),
        (BATCH * 32 * 32, [128, 64], 64),
        (BATCH * 16 * 16, [128, 128], 128),
        (BATCH * 8 * 8, [128, 128], 128),
        // Of larger networks.
        (131_072, [128, 128], 128),
        (8192, [256, 256], 256),
        (2048, [384, 384], 384),
    ] {
        let whole = Conv2d::linear(rows, c_in[0] + c_in[1], c_out);
        let Some(conv) = whole.joined(c_in[0]) else {
            continue;
        };
        let x = c_in.map(|c_in| fill(rows * c_in));
        let weight = fill(whole.weight_len());
        let (bias, mut y) = (fill(c_out), fill(whole.y_len()));
        let inputs = JoinedInputs {
            x: x.each_ref().map(Vec::as_slice),
            weight: &weight,
            bias: &bias,
            residual: None,
        };
        let name = format!("joined {rows} x {}+{} to {c_out}", c_in[0], c_in[1]);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(2 * (rows * whole.weight_len()) as u64));
        group.bench_function("forward", |b| {
            b.iter(|| conv.forward(inputs, &mut y, cpu()));
        });
        let mut d_x = x.clone();
        group.bench_function("input gradient", |b| {
            b.iter(|| {
                let d_x = d_x.each_mut().map(Vec::as_mut_slice);
                conv.backward_input(&y, &weight, d_x, cpu());
            });
        });
        let (mut d_weight, mut d_bias) = (weight.clone(), bias.clone());
        group.bench_function("weight gradient", |b| {
            b.iter(|| conv.backward_weight(inputs.x, &y, &mut d_weight, &mut d_bias, cpu()));
        });
        group.finish();
    }
}

fn linear(c: &mut Criterion) {
    for (rows, c_in, c_out) in [
        (BATCH * 32 * 32, 64, 192),
        (BATCH * 32 * 32, 128, 64),
        (BATCH * 32 * 32, 192, 64),
        (BATCH * 16 * 16, 128, 384),
        (BATCH * 16 * 16, 128, 128),
        (BATCH * 16 * 16, 192, 128),
        (BATCH * 8 * 8, 128, 384),
        (BATCH, 256, 256),
        // Of larger networks.
        (131_072, 256, 128),
        (32_768, 192, 96),
        (8192, 512, 256),
        (8192, 384, 192),
        (2048, 384, 1152),
        (2048, 288, 864),
        (512, 384, 1152),
        (512, 768, 384),
        (8, 384, 768),
    ] {
        for precision in [Precision::F32, Precision::Bf16] {
            let name = format!("linear {rows} x {c_in} to {c_out}, {precision:?}");
            let cpu = Cpu { precision, ..cpu() };
            passes(c, &name, Conv2d::linear(rows, c_in, c_out), cpu);
        }
    }
}

fn depthwise(c: &mut Criterion) {
    for (side, channels, kernel) in [(32, 64, 3), (16, 128, 7)] {
        let conv = Conv2d {
            n: BATCH,
            h: side,
            w: side,
            c_in: channels,
            c_out: channels,
            kernel: [kernel; 2],
            stride: 1,
            padding: [kernel / 2; 2],
            groups: Groups::Depthwise,
        };
        let name = format!("depthwise {kernel}x{kernel}, {side}x{side}x{channels}");
        passes(c, &name, conv, cpu());
    }
}

fn group_norm(c: &mut Criterion) {
    for (n, side, channels) in [(BATCH, 32, 64), (BATCH, 16, 128), (2, 256, 128)] {
        let norm = GroupNorm {
            n,
            n_positions: side * side,
            channels: [channels, 0],
            n_groups: 32,
            activation: Activation::Silu,
        };
        let x = fill(n * side * side * channels);
        let (scale, shift) = (fill(n * channels), fill(n * channels));
        let inputs = group_norm::Inputs {
            x: [&x, &[]],
            scale: &scale,
            shift: &shift,
        };
        let mut y = x.clone();
        let mut group = c.benchmark_group(format!("group norm {n}x{side}x{side}x{channels}"));
        group.bench_function("forward", |b| {
            b.iter(|| norm.forward(inputs, &mut y, cpu()));
        });
        let moments = norm.forward(inputs, &mut y, cpu());
        let (mut d_x, mut d_scale, mut d_shift) = (x.clone(), scale.clone(), shift.clone());
        group.bench_function("backward", |b| {
            b.iter(|| {
                let gradients = Gradients {
                    d_x: [&mut d_x, &mut []],
                    d_scale: &mut d_scale,
                    d_shift: &mut d_shift,
                };
                norm.backward(inputs, &moments, &y, gradients, cpu());
            });
        });
        group.finish();
    }
}

fn attention(c: &mut Criterion) {
    for side in [16, 8] {
        let attention = Attention {
            n: BATCH,
            n_positions: side * side,
            n_heads: 4,
            head_channels: 32,
            order: Order::HeadMajor,
        };
        let mut y = fill(BATCH * side * side * attention.channels());
        let qkv = fill(3 * y.len());
        let mut d_qkv = qkv.clone();
        for precision in [Precision::F32, Precision::Bf16] {
            let cpu = Cpu { precision, ..cpu() };
            let products = 2 * 2 * BATCH * attention.n_positions.pow(2) * attention.channels();
            let name = format!("attention {side}x{side}, 4 heads of 32, {precision:?}");
            let mut group = c.benchmark_group(name);
            group.throughput(Throughput::Elements(products as u64));
            group.bench_function("forward", |b| {
                b.iter(|| attention.forward(&qkv, &mut y, cpu));
            });
            group.bench_function("backward", |b| {
                b.iter(|| attention.backward(&qkv, &y, &mut d_qkv, cpu));
            });
            group.finish();
        }
    }
}

fn resample(c: &mut Criterion) {
    for (n, side, channels) in [(BATCH, 32, 64), (2, 256, 128)] {
        let size = Resample {
            n,
            h: side,
            w: side,
            c: channels,
        };
        let mut large = fill(n * side * side * channels);
        let mut small = fill(large.len() / 4);
        let mut group = c.benchmark_group(format!("resample {n}x{side}x{side}x{channels}"));
        group.bench_function("gather", |b| {
            b.iter(|| size.gather(&large, 0.25, &mut small, cpu()));
        });
        group.bench_function("spread", |b| {
            b.iter(|| size.spread(&small, 1.0, &mut large, cpu()));
        });
        group.finish();
    }
}

fn adamw(c: &mut Criterion) {
    let adamw = adamw::AdamW {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step: 1,
        grad_scale: 1.0,
        ema_decay: 0.999,
    };
    let grad = fill(5_000_000);
    let [mut param, mut exp_avg, mut exp_avg_sq, mut ema] = [(); 4].map(|()| grad.clone());
    exp_avg_sq.iter_mut().for_each(|x| *x = x.abs());
    c.bench_function("adamw, 5 million weights", |b| {
        b.iter(|| {
            let state = adamw::State {
                param: &mut param,
                exp_avg: &mut exp_avg,
                exp_avg_sq: &mut exp_avg_sq,
                ema: &mut ema,
            };
            adamw.step(&grad, state, cpu());
        });
    });
}

criterion_group! {
    name = ops;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = pages, linear, joined, depthwise, group_norm, attention, resample, adamw
}
criterion_main!(ops);
