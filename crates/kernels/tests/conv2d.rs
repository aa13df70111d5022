//! Convolutions of all kinds against their naive twin.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::conv2d::{Conv2d, Groups, Inputs};
use p2_kernels::{Cpu, Precision, Threads, reference};

fn conv(n: usize, image: [usize; 2], channels: [usize; 2], kernel: [usize; 2]) -> Conv2d {
    Conv2d {
        n,
        h: image[0],
        w: image[1],
        c_in: channels[0],
        c_out: channels[1],
        kernel,
        stride: 1,
        padding: kernel.map(|size| size / 2),
        groups: Groups::One,
    }
}

fn depthwise(n: usize, image: [usize; 2], channels: usize, kernel: [usize; 2]) -> Conv2d {
    Conv2d {
        groups: Groups::Depthwise,
        ..conv(n, image, [channels; 2], kernel)
    }
}

fn strided(stride: usize, padding: [usize; 2], conv: Conv2d) -> Conv2d {
    Conv2d {
        stride,
        padding,
        ..conv
    }
}

/// The forward pass with and without a residual, and all gradients, on every kind of CPU.
fn check(conv: Conv2d) {
    let (x, weight) = (fill(conv.x_len(), 1), fill(conv.weight_len(), 2));
    let (bias, d_y) = (fill(conv.c_out, 3), fill(conv.y_len(), 4));
    let residual = fill(conv.y_len(), 5);
    let plain = Inputs {
        x: &x,
        weight: &weight,
        bias: &bias,
        residual: None,
    };
    let added = Inputs {
        residual: Some(&residual),
        ..plain
    };
    let (plain_slow, added_slow) = (
        reference::conv2d(&conv, &plain),
        reference::conv2d(&conv, &added),
    );
    let (d_x_slow, d_weight_slow, d_bias_slow) =
        reference::conv2d_backward(&conv, &x, &weight, &d_y);
    let mut all = vec![];
    for cpu in cpus() {
        let exact = Cpu {
            precision: Precision::Exact,
            ..cpu
        };
        let what = |part: &str| format!("{part} of {conv:?} on {cpu:?}");
        let mut y = vec![f32::NAN; conv.y_len()];
        conv.forward(plain, &mut y, cpu);
        assert_close(&what("y"), &y, &plain_slow, 1e-5);
        let mut y_added = vec![f32::NAN; conv.y_len()];
        conv.forward(added, &mut y_added, cpu);
        assert_close(&what("y + residual"), &y_added, &added_slow, 1e-5);
        let mut d_x = vec![f32::NAN; x.len()];
        conv.backward_input(&d_y, &weight, &mut d_x, cpu);
        assert_close(&what("d_x"), &d_x, &d_x_slow, 1e-5);
        let (mut d_weight, mut d_bias) = (vec![f32::NAN; weight.len()], vec![f32::NAN; bias.len()]);
        conv.backward_weight(&x, &d_y, &mut d_weight, &mut d_bias, cpu);
        assert_close(&what("d_weight"), &d_weight, &d_weight_slow, 1e-5);
        assert_close(&what("d_bias"), &d_bias, &d_bias_slow, 1e-5);
        if conv.algorithm(cpu) == conv.algorithm(exact) {
            let sums = y.iter().zip(&residual).map(|(y, residual)| y + residual);
            assert!(sums.eq(y_added.iter().copied()), "{}", what("residual"));
        }
        all.push((cpu, [y, y_added, d_x, d_weight, d_bias].concat()));
    }
    assert_same_bits(&format!("{conv:?}"), &all);
}

#[test]
fn convolution_and_its_gradients() {
    for conv in [
        conv(2, [8, 8], [32, 64], [3, 3]), // whole panels
        conv(3, [5, 7], [3, 33], [3, 3]),  // image input, one over a panel
        conv(1, [6, 4], [31, 6], [3, 3]),  // half a panel
        strided(2, [1, 1], conv(2, [7, 6], [17, 16], [3, 3])), // stride 2, odd and even
        conv(2, [4, 4], [8, 15], [1, 1]),
        conv(1, [9, 3], [4, 5], [5, 5]), // filter wider than the image
        strided(1, [0, 0], conv(1, [5, 5], [2, 3], [3, 3])), // no padding
        conv(2, [1, 1], [1, 1], [3, 3]), // one element
        conv(0, [4, 4], [3, 4], [3, 3]), // no image
        conv(9, [16, 16], [3, 40], [3, 3]), // several chunks of a weight gradient
        conv(2, [6, 9], [5, 7], [1, 7]),
        conv(2, [9, 6], [7, 5], [7, 1]),
        strided(3, [0, 2], conv(1, [8, 11], [3, 2], [2, 4])), // even, not square
        strided(1, [2, 3], conv(1, [3, 3], [2, 2], [1, 2])),  // padding wider than the filter
        conv(1, [3, 3], [0, 4], [3, 3]),                      // no input channel
        conv(1, [3, 3], [4, 0], [3, 3]),                      // no output channel
    ] {
        check(conv);
    }
}

#[test]
fn linear_layer_and_its_gradients() {
    for n in [0, 1, 3, 7, 15, 16, 17, 31, 33, 700] {
        for (c_in, c_out) in [
            (0, 1),
            (1, 0),
            (1, 1),
            (3, 7),
            (15, 33),
            (16, 64),
            (33, 31),
            (64, 17),
        ] {
            check(Conv2d::linear(n, c_in, c_out));
        }
    }
    check(Conv2d::linear(1, 512, 1));
    check(Conv2d::linear(13, 63, 65));
    check(Conv2d::linear(100, 300, 96));
    check(Conv2d::linear(700, 96, 320));
    check(Conv2d::linear(40, 500, 300)); // few rows, cut by columns
    check(Conv2d::linear(2500, 31, 40)); // several groups of a weight gradient
}

#[test]
fn depthwise_convolution_and_its_gradients() {
    for channels in [0, 1, 3, 7, 15, 16, 17, 31, 33, 64, 100] {
        check(depthwise(2, [6, 7], channels, [3, 3]));
    }
    for conv in [
        depthwise(0, [4, 4], 5, [3, 3]),
        depthwise(1, [1, 1], 33, [3, 3]),
        depthwise(3, [9, 17], 8, [5, 5]),
        depthwise(1, [9, 3], 4, [7, 7]), // filter wider than the image
        depthwise(2, [6, 9], 40, [1, 7]),
        depthwise(2, [9, 6], 40, [7, 1]),
        strided(2, [1, 1], depthwise(2, [7, 8], 33, [3, 3])),
        strided(3, [0, 2], depthwise(1, [8, 11], 3, [2, 4])),
        strided(1, [0, 0], depthwise(1, [8, 8], 32, [3, 3])),
        strided(1, [2, 3], depthwise(1, [3, 3], 2, [1, 2])), // padding wider than the filter
    ] {
        check(conv);
    }
}

#[test]
fn an_image_has_the_same_convolution_in_any_batch() {
    for (alone, precision) in [
        (conv(1, [7, 7], [19, 37], [3, 3]), Precision::F32),
        (conv(1, [7, 5], [32, 64], [1, 1]), Precision::Exact),
        (depthwise(1, [7, 7], 37, [3, 3]), Precision::F32),
        (Conv2d::linear(1, 64, 96), Precision::F32),
        (Conv2d::linear(1, 64, 96), Precision::Bf16),
        (conv(1, [7, 11], [32, 64], [1, 1]), Precision::Bf16), // batches over and under the limit of packing
        (conv(1, [5, 6], [19, 37], [3, 3]), Precision::Bf16),
    ] {
        let cpu = Cpu {
            precision,
            ..Cpu::best(Threads::new(2))
        };
        let x = fill(16 * alone.x_len(), 1);
        let (weight, bias) = (fill(alone.weight_len(), 2), fill(alone.c_out, 3));
        let forward = |first: usize, n: usize| {
            let conv = Conv2d { n, ..alone };
            let inputs = Inputs {
                x: &x[first * alone.x_len()..][..conv.x_len()],
                weight: &weight,
                bias: &bias,
                residual: None,
            };
            let mut y = vec![f32::NAN; conv.y_len()];
            conv.forward(inputs, &mut y, cpu);
            y
        };
        let all = forward(0, 16);
        assert_eq!(forward(5, 3), all[5 * alone.y_len()..][..3 * alone.y_len()]);
        for image in 0..16 {
            assert_eq!(
                forward(image, 1),
                all[image * alone.y_len()..][..alone.y_len()]
            );
        }
    }
}

/// The nearest bf16, halfway cases to the even one.
fn round(x: &[f32]) -> Vec<f32> {
    let round = |x: &f32| {
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    };
    x.iter().map(round).collect()
}

#[test]
fn layers_in_bf16_are_exact_on_rounded_inputs() {
    let linear = [
        (0, 3, 4),
        (3, 0, 4),
        (3, 4, 0),
        (1, 1, 1),
        (7, 15, 33),
        (31, 16, 32),
        (17, 33, 31),
        (1, 256, 64),
        (600, 64, 17),
        (2500, 31, 96), // several groups of a weight gradient
        (5000, 31, 96), // on tile registers several chunks of all pixels
    ];
    let linear = linear.map(|(n, c_in, c_out)| Conv2d::linear(n, c_in, c_out));
    // In bf16 on tile registers alone.
    let convolutions = [
        conv(2, [8, 8], [32, 64], [3, 3]),
        conv(3, [5, 7], [3, 33], [3, 3]),
        conv(1, [9, 16], [40, 5], [5, 5]),
        conv(9, [32, 32], [3, 40], [3, 3]), // several groups of a weight gradient
    ];
    for conv in linear.into_iter().chain(convolutions) {
        let (x, weight) = (fill(conv.x_len(), 1), fill(conv.weight_len(), 2));
        let (bias, d_y) = (fill(conv.c_out, 3), fill(conv.y_len(), 4));
        let residual = fill(conv.y_len(), 5);
        let inputs = Inputs {
            x: &x,
            weight: &weight,
            bias: &bias,
            residual: Some(&residual),
        };
        let (x_round, weight_round, d_y_round) = (round(&x), round(&weight), round(&d_y));
        let rounded = Inputs {
            x: &x_round,
            weight: &weight_round,
            ..inputs
        };
        let y_slow = reference::conv2d(&conv, &rounded);
        let (d_x_slow, d_weight_slow, _) =
            reference::conv2d_backward(&conv, &x_round, &weight_round, &d_y_round);
        let (_, _, d_bias_slow) = reference::conv2d_backward(&conv, &x, &weight, &d_y);
        let mut all = vec![];
        let has_bf16 = |cpu: &Cpu| conv.kernel == [1, 1] || cpu.isa.name() == "amx";
        for cpu in cpus().into_iter().filter(has_bf16) {
            let cpu = Cpu {
                precision: Precision::Bf16,
                ..cpu
            };
            let what = |part: &str| format!("{part} of {conv:?} on {cpu:?}");
            let mut y = vec![f32::NAN; y_slow.len()];
            conv.forward(inputs, &mut y, cpu);
            assert_close(&what("y"), &y, &y_slow, 1e-5);
            let mut d_x = vec![f32::NAN; x.len()];
            conv.backward_input(&d_y, &weight, &mut d_x, cpu);
            assert_close(&what("d_x"), &d_x, &d_x_slow, 1e-5);
            let (mut d_weight, mut d_bias) =
                (vec![f32::NAN; weight.len()], vec![f32::NAN; conv.c_out]);
            conv.backward_weight(&x, &d_y, &mut d_weight, &mut d_bias, cpu);
            assert_close(&what("d_weight"), &d_weight, &d_weight_slow, 1e-5);
            assert_close(&what("d_bias"), &d_bias, &d_bias_slow, 1e-5);
            all.push((cpu, [y, d_x, d_weight, d_bias].concat()));
        }
        assert_same_bits(&format!("{conv:?}"), &all);
    }
}
