//! Kernels on bf16: the bits that they have on the same numbers in f32, rounded.

#[expect(
    dead_code,
    reason = "what is compared here has to be equal in every bit"
)]
mod comparison;

use comparison::{cpus, fill};
use p2_kernels::attention::{Attention, Order};
use p2_kernels::conv2d::{Conv2d, Groups, Inputs};
use p2_kernels::dropout::{Mask, Piece};
use p2_kernels::element::bf16;
use p2_kernels::group_norm::{self, Activation, GroupNorm};
use p2_kernels::resample::Resample;
use p2_kernels::{Cpu, Element, Precision};

fn all_cpus() -> impl Iterator<Item = Cpu> {
    let precisions = [Precision::F32, Precision::Exact, Precision::Bf16];
    precisions.into_iter().flat_map(|precision| {
        cpus()
            .into_iter()
            .map(move |cpu| cpu.with_precision(precision))
    })
}

fn rounded<Y: Element>(x: &[f32]) -> Vec<Y> {
    x.iter().map(|&x| Y::round(x)).collect()
}

/// Numbers that bf16 has.
fn numbers<X: Element>(len: usize, seed: u32) -> Vec<X> {
    let halves: Vec<bf16> = rounded(&fill(len, seed));
    halves.into_iter().map(|x| X::round(x.widen())).collect()
}

fn nothing<Y: Element>(len: usize) -> Vec<Y> {
    vec![Y::round(f32::NAN); len]
}

/// Outputs and gradients rounded to bf16, but for those of parameters.
type Results = (Vec<Vec<bf16>>, Vec<Vec<f32>>);

/// Whether each mixture of types has the results of f32 alone.
fn check<const N: usize>(what: &str, cpu: Cpu, whole: &Results, mixtures: [Results; N]) {
    for (types, results) in mixtures.into_iter().enumerate() {
        let as_bits = |(halves, floats): &Results| {
            let halves: Vec<_> = halves.concat().iter().map(|x| x.to_bits()).collect();
            let floats: Vec<_> = floats.concat().iter().map(|x| x.to_bits()).collect();
            (halves, floats)
        };
        assert_eq!(
            as_bits(&results),
            as_bits(whole),
            "{what}, types {types}, on {cpu:?}"
        );
    }
}

fn halves<Y: Element>(x: &[Y]) -> Vec<bf16> {
    x.iter().map(|x| bf16::round(x.widen())).collect()
}

#[test]
fn convolutions() {
    fn run<X: Element, Y: Element>(conv: &Conv2d, cpu: Cpu) -> Results {
        let (x, d_y) = (numbers::<X>(conv.x_len(), 1), numbers::<Y>(conv.y_len(), 2));
        let (weight, bias) = (fill(conv.weight_len(), 3), fill(conv.c_out, 4));
        let residual = fill(conv.y_len(), 5);
        let inputs = Inputs {
            x: &x,
            weight: &weight,
            bias: &bias,
            residual: Some(&residual),
        };
        let (mut y, mut d_x) = (nothing::<Y>(d_y.len()), nothing::<X>(x.len()));
        conv.forward(inputs, &mut y, cpu);
        conv.backward_input(&d_y, &weight, &mut d_x, cpu);
        let [mut d_weight, mut d_bias] = [weight.len(), bias.len()].map(nothing);
        conv.backward_weight(&x, &d_y, &mut d_weight, &mut d_bias, cpu);
        (vec![halves(&y), halves(&d_x)], vec![d_weight, d_bias])
    }
    let conv = |n, image: [usize; 2], channels: [usize; 2], kernel: usize| Conv2d {
        n,
        h: image[0],
        w: image[1],
        c_in: channels[0],
        c_out: channels[1],
        kernel: [kernel; 2],
        stride: 1,
        padding: [kernel / 2; 2],
        groups: Groups::One,
    };
    let depthwise = Conv2d {
        groups: Groups::Depthwise,
        ..conv(1, [5, 4], [7, 7], 3)
    };
    for conv in [
        conv(3, [5, 7], [33, 70], 3),
        conv(2, [17, 3], [15, 31], 1),
        conv(1, [9, 6], [64, 16], 3),
        conv(0, [4, 4], [3, 4], 3),
        conv(1, [3, 3], [0, 4], 3),
        conv(1, [3, 3], [4, 0], 3),
        Conv2d {
            stride: 2,
            ..conv(1, [7, 6], [17, 16], 3)
        },
        Conv2d::linear(1, 1, 1),
        depthwise,
    ] {
        for cpu in all_cpus() {
            let whole = run::<f32, f32>(&conv, cpu);
            let mixtures = [
                run::<f32, bf16>(&conv, cpu),
                run::<bf16, f32>(&conv, cpu),
                run::<bf16, bf16>(&conv, cpu),
            ];
            check(&format!("{conv:?}"), cpu, &whole, mixtures);
        }
    }
}

#[test]
fn attentions() {
    fn run<X: Element, Y: Element>(attention: &Attention, cpu: Cpu) -> Results {
        let len = attention.n * attention.n_positions * attention.channels();
        let (qkv, d_y) = (numbers::<X>(3 * len, 1), numbers::<Y>(len, 2));
        let (mut y, mut d_qkv) = (nothing::<Y>(len), nothing::<X>(3 * len));
        attention.forward(&qkv, &mut y, cpu);
        attention.backward(&qkv, &d_y, &mut d_qkv, cpu);
        (vec![halves(&y), halves(&d_qkv)], vec![])
    }
    for (n_positions, head_channels) in [(1, 1), (33, 7), (64, 32), (96, 17), (100, 64)] {
        for order in [Order::HeadMajor, Order::KindMajor] {
            let attention = Attention {
                n: 2,
                n_positions,
                n_heads: 2,
                head_channels,
                order,
            };
            for cpu in all_cpus() {
                let whole = run::<f32, f32>(&attention, cpu);
                let mixtures = [
                    run::<f32, bf16>(&attention, cpu),
                    run::<bf16, f32>(&attention, cpu),
                    run::<bf16, bf16>(&attention, cpu),
                ];
                check(&format!("{attention:?}"), cpu, &whole, mixtures);
            }
        }
    }
}

#[test]
fn norms() {
    fn run<Y: Element>(norm: &GroupNorm, cpu: Cpu) -> Results {
        let lens = norm.channels.map(|c| norm.n * norm.n_positions * c);
        let c: usize = norm.channels.iter().sum();
        let x = [0, 1].map(|i| fill(lens[i], 1 + i as u32));
        let [scale, shift] = [3, 4].map(|seed| fill(norm.n * c, seed));
        let inputs = group_norm::Inputs {
            x: x.each_ref().map(Vec::as_slice),
            scale: &scale,
            shift: &shift,
        };
        let mut y = nothing::<Y>(lens.iter().sum());
        let moments = norm.forward(inputs, &mut y, cpu);
        let mut d_x = lens.map(nothing);
        let [mut d_scale, mut d_shift] = [scale.len(); 2].map(nothing);
        let gradients = group_norm::Gradients {
            d_x: d_x.each_mut().map(Vec::as_mut_slice),
            d_scale: &mut d_scale,
            d_shift: &mut d_shift,
        };
        let d_y = numbers::<Y>(y.len(), 5);
        norm.backward(inputs, &moments, &d_y, gradients, cpu);
        let [first, second] = d_x;
        (vec![halves(&y)], vec![first, second, d_scale, d_shift])
    }
    for (channels, n_groups) in [([64, 0], 32), ([33, 15], 3), ([1, 0], 1), ([16, 17], 11)] {
        for activation in [Activation::Identity, Activation::Silu] {
            let norm = GroupNorm {
                n: 3,
                n_positions: 131,
                channels,
                n_groups,
                activation,
            };
            for cpu in all_cpus() {
                let (whole, half) = (run::<f32>(&norm, cpu), run::<bf16>(&norm, cpu));
                check(&format!("{norm:?}"), cpu, &whole, [half]);
            }
        }
    }
}

#[test]
fn resampling_and_dropout() {
    fn run<X: Element>(c: usize, cpu: Cpu) -> Results {
        let sizes = Resample {
            n: 2,
            h: 4,
            w: 6,
            c,
        };
        let large = numbers::<X>(2 * 4 * 6 * c, 1);
        let (mut small, mut spread) = (nothing::<X>(large.len() / 4), nothing(large.len()));
        sizes.gather(&large, 0.25, &mut small, cpu);
        sizes.spread(&numbers::<X>(small.len(), 2), 0.25, &mut spread, cpu);
        let fill = |piece: Piece, dropped: &mut [u8]| dropped.fill(0b101 + piece.image as u8);
        let mask = Mask::new([2, large.len() / 2], 1.0 / 0.9, cpu, fill);
        let mut kept = nothing(large.len());
        mask.apply(&large, &mut kept, cpu);
        (vec![halves(&small), halves(&spread), halves(&kept)], vec![])
    }
    for c in [1, 3, 7, 15, 16, 17, 31, 33] {
        for cpu in all_cpus() {
            let (whole, half) = (run::<f32>(c, cpu), run::<bf16>(c, cpu));
            check(&format!("{c} channels"), cpu, &whole, [half]);
        }
    }
}
