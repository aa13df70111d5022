//! The 1×1 convolution of joined channels against that of a copy.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::conv2d::{Conv2d, Inputs, JoinedInputs};
use p2_kernels::{Cpu, Precision};

/// Rows of both, one behind the other.
fn copied(x: [&[f32]; 2], channels: [usize; 2], n: usize) -> Vec<f32> {
    let row = |source: usize, i: usize| &x[source][i * channels[source]..][..channels[source]];
    (0..n)
        .flat_map(|i| [row(0, i), row(1, i)].concat())
        .collect()
}

fn check(n: usize, channels: [usize; 2], c_out: usize, precision: Precision) {
    let whole = Conv2d::linear(n, channels[0] + channels[1], c_out);
    let Some(conv) = whole.joined(channels[0]) else {
        panic!("{whole:?} has no first {channels:?}");
    };
    let x = [1, 2].map(|seed| fill(n * channels[seed as usize - 1], seed));
    let x = x.each_ref().map(Vec::as_slice);
    let copy = copied(x, channels, n);
    let (weight, bias) = (fill(whole.weight_len(), 3), fill(c_out, 4));
    let (residual, d_y) = (fill(whole.y_len(), 5), fill(whole.y_len(), 6));
    let mut all = vec![];
    for cpu in cpus() {
        let cpu = Cpu { precision, ..cpu };
        let nan = |len: usize| vec![f32::NAN; len];
        let [mut y, mut expected_y] = [(); 2].map(|()| nan(whole.y_len()));
        let inputs = JoinedInputs {
            x,
            weight: &weight,
            bias: &bias,
            residual: Some(&residual),
        };
        conv.forward(inputs, &mut y, cpu);
        let expected = Inputs {
            x: &copy,
            weight: &weight,
            bias: &bias,
            residual: Some(&residual),
        };
        whole.forward(expected, &mut expected_y, cpu);
        let (mut d_first, mut d_second) = (nan(x[0].len()), nan(x[1].len()));
        conv.backward_input(&d_y, &weight, [&mut d_first, &mut d_second], cpu);
        let mut d_copy = nan(copy.len());
        whole.backward_input(&d_y, &weight, &mut d_copy, cpu);
        let [mut d_weight, mut expected_d_weight] = [(); 2].map(|()| nan(weight.len()));
        let [mut d_bias, mut expected_d_bias] = [(); 2].map(|()| nan(c_out));
        conv.backward_weight(x, &d_y, &mut d_weight, &mut d_bias, cpu);
        whole.backward_weight(
            &copy,
            &d_y,
            &mut expected_d_weight,
            &mut expected_d_bias,
            cpu,
        );
        let d_x = copied([&d_first, &d_second], channels, n);
        for (part, found, expected) in [
            ("y", &y, &expected_y),
            ("d_x", &d_x, &d_copy),
            ("d_weight", &d_weight, &expected_d_weight),
            ("d_bias", &d_bias, &expected_d_bias),
        ] {
            let what = format!("{part} of {n} x {channels:?} to {c_out} on {cpu:?}");
            if precision == Precision::Bf16 {
                let expected: Vec<_> = expected.iter().map(|&value| f64::from(value)).collect();
                assert_close(&what, found, &expected, 1e-5);
            } else {
                assert!(found == expected, "{what}");
            }
        }
        all.push((cpu, [y, d_x, d_weight, d_bias].concat()));
    }
    assert_same_bits(&format!("{n} x {channels:?} to {c_out}"), &all);
}

#[test]
fn joined_channels_have_the_convolution_of_their_copy() {
    for precision in [Precision::F32, Precision::Bf16] {
        for n in [0, 1, 11, 12, 13, 40, 700] {
            for (channels, c_out) in [
                ([64, 32], 64),
                ([32, 64], 33),
                ([4, 12], 7),
                ([3, 5], 1),
                ([0, 16], 32),
                ([16, 0], 32),
                ([0, 0], 3),
                ([3, 4], 0),
            ] {
                check(n, channels, c_out, precision);
            }
        }
        check(40, [300, 200], 320, precision); // few rows, cut by columns
        check(2500, [31, 33], 40, precision); // several groups of a weight gradient
        check(600, [300, 250], 64, precision); // tiles of a weight gradient that have channels of both
    }
}

#[test]
fn only_a_1x1_convolution_of_stride_1_reads_two_sources() {
    let linear = Conv2d::linear(3, 8, 4);
    assert!(linear.joined(8).is_some());
    assert!(linear.joined(9).is_none());
    let strided = Conv2d {
        stride: 2,
        ..linear
    };
    assert!(strided.joined(3).is_none());
    let wide = Conv2d {
        kernel: [3, 3],
        padding: [1, 1],
        ..linear
    };
    assert!(wide.joined(3).is_none());
}
