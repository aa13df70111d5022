//! Each op against its plain candle composition: values and all gradients.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{DType, Device, Tensor, Var};
use p2_nn::op::attention::{self, Order};
use p2_nn::op::conv2d::{self, Epilogue, Filter, Geometry};
use p2_nn::op::dropout::{Piece, dropout};
use p2_nn::op::elementwise;
use p2_nn::op::group_norm::{self, Activation, Affine};
use p2_nn::op::resample;
use p2_nn::op::{Joined, Output};
use p2_nn::tape::checkpoint;
use p2_nn::{Cpu, Node, Recompute, Result, Tape, Threads};

fn cpu() -> Cpu {
    Cpu::best(Threads::new(2))
}

fn var(shape: &[usize], seed: f64) -> Var {
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..n)
        .map(|i| ((i as f64 * 0.731 + seed).sin() * 1.3) as f32)
        .collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

fn assert_close(what: &str, fast: &Tensor, slow: &Tensor) {
    assert_eq!(fast.dims(), slow.dims(), "{what}: shape");
    let fast: Vec<f32> = fast.flatten_all().unwrap().to_vec1().unwrap();
    let slow: Vec<f32> = slow.flatten_all().unwrap().to_vec1().unwrap();
    let scale = slow.iter().fold(1.0f32, |max, x| max.max(x.abs()));
    for (idx, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
        assert!(
            (fast - slow).abs() < 3e-5 * scale,
            "{what}[{idx}]: {fast} instead of {slow}"
        );
    }
}

/// Values and gradients of `op` and `reference` agree under a loss that weighs every output.
fn check<const N: usize>(
    what: &str,
    inputs: &[Var; N],
    op: impl Fn([&Node; N]) -> Result<Node>,
    reference: impl Fn([&Tensor; N]) -> candle_core::Result<Tensor>,
) {
    let slow = reference(inputs.each_ref().map(Var::as_tensor)).unwrap();
    let weights = var(slow.dims(), 0.4);
    let loss = (&slow * weights.as_tensor()).unwrap().sum_all().unwrap();
    let expected = loss.backward().unwrap();
    for recompute in [Recompute::Nothing, Recompute::Norms, Recompute::Blocks] {
        let tape = Tape::recording(cpu(), recompute);
        let nodes = inputs.each_ref().map(|input| tape.input(input));
        let y = op(nodes.each_ref()).unwrap();
        assert_close(&format!("{what}: value"), y.value(), &slow);
        let found = y.backward(&weights).unwrap();
        for (i, (node, input)) in nodes.iter().zip(inputs).enumerate() {
            let (found, expected) = (found.of(node).unwrap(), expected.get(input).unwrap());
            assert_close(&format!("{what}: gradient {i}"), found, expected);
        }
    }
    let tape = Tape::inference(cpu());
    let nodes = inputs.each_ref().map(|input| tape.constant(input));
    assert_close(what, op(nodes.each_ref()).unwrap().value(), &slow);
}

#[test]
fn convolutions() {
    for (h, w, c_in, c_out, kernel, stride, padding) in [
        (6, 5, 3, 4, 3, 1, 1),
        (6, 6, 33, 17, 3, 2, 1),
        (9, 7, 32, 48, 3, 1, 1),
        (4, 4, 5, 6, 1, 1, 0),
        (5, 4, 2, 3, 5, 1, 2),
    ] {
        let geometry = Geometry { stride, padding };
        let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        let x = var(&[2, h, w, c_in], 0.1);
        let weight = var(&[kernel, kernel, c_in, c_out], 0.2);
        let bias = var(&[c_out], 0.3);
        let residual = var(&[2, out(h), out(w), c_out], 0.5);
        check(
            "conv2d",
            &[x.clone(), weight.clone(), bias.clone()],
            |[x, weight, bias]| {
                conv2d::conv2d(
                    x,
                    Filter { weight, bias },
                    geometry,
                    Epilogue::To(Output::Whole),
                )
            },
            |[x, weight, bias]| conv2d::conv2d_reference(x, weight, bias, geometry),
        );
        check(
            "conv2d onto a residual",
            &[x, weight, bias, residual],
            |[x, weight, bias, residual]| {
                conv2d::conv2d(
                    x,
                    Filter { weight, bias },
                    geometry,
                    Epilogue::Onto(residual),
                )
            },
            |[x, weight, bias, residual]| {
                conv2d::conv2d_reference(x, weight, bias, geometry)? + residual
            },
        );
    }
    check(
        "linear",
        &[
            var(&[3, 2, 7], 0.1),
            var(&[7, 5], 0.2),
            var(&[5], 0.3),
            var(&[3, 2, 5], 0.4),
        ],
        |[x, weight, bias, residual]| {
            conv2d::linear(x, Filter { weight, bias }, Epilogue::Onto(residual))
        },
        |[x, weight, bias, residual]| x.broadcast_matmul(weight)?.broadcast_add(bias)? + residual,
    );
}

#[test]
fn group_norms() {
    for activation in [Activation::Identity, Activation::Silu] {
        for (h, w, c, n_groups) in [(3, 4, 64, 32), (5, 3, 6, 2), (2, 2, 32, 32)] {
            let options = group_norm::Options {
                output: Output::Whole,
                n_groups,
                activation,
            };
            let inputs = [
                var(&[2, h, w, c], 0.1),
                var(&[c], 0.2),
                var(&[c], 0.3),
                var(&[2, 2 * c], 0.4),
            ];
            check(
                "conditioned group_norm",
                &inputs,
                |[x, weight, bias, scale_shift]| {
                    let affine = Affine {
                        weight,
                        bias,
                        scale_shift: Some(scale_shift),
                    };
                    group_norm::group_norm(x, affine, options)
                },
                |[x, weight, bias, scale_shift]| {
                    let affine = [weight, bias];
                    group_norm::group_norm_reference(x, affine, Some(scale_shift), options)
                },
            );
            let [x, weight, bias, _] = inputs;
            check(
                "group_norm",
                &[x, weight, bias],
                |[x, weight, bias]| {
                    let affine = Affine {
                        weight,
                        bias,
                        scale_shift: None,
                    };
                    group_norm::group_norm(x, affine, options)
                },
                |[x, weight, bias]| {
                    group_norm::group_norm_reference(x, [weight, bias], None, options)
                },
            );
        }
    }
}

/// Two values, the channels of each and of the norm's groups.
const PAIRS: [([usize; 2], usize); 8] = [
    ([16, 16], 4),
    ([1, 31], 4),
    ([3, 7], 5),
    ([7, 1], 1),
    ([15, 33], 3),
    ([17, 16], 11),
    ([31, 17], 2),
    ([33, 3], 1),
];

/// What a norm computes again must be read by something that saves it: a SiLU.
#[test]
fn group_norms_of_joined_values() {
    for (channels, n_groups) in PAIRS {
        let c = channels[0] + channels[1];
        let options = group_norm::Options {
            output: Output::Whole,
            n_groups,
            activation: Activation::Silu,
        };
        let inputs = [
            var(&[2, 3, 5, channels[0]], 0.1),
            var(&[2, 3, 5, channels[1]], 0.5),
            var(&[c], 0.2),
            var(&[c], 0.3),
            var(&[2, 2 * c], 0.4),
        ];
        check(
            &format!("conditioned group_norm of {channels:?}"),
            &inputs,
            |[a, b, weight, bias, scale_shift]| {
                let affine = Affine {
                    weight,
                    bias,
                    scale_shift: Some(scale_shift),
                };
                let x = Joined::new(a.clone(), b.clone())?;
                elementwise::silu(&group_norm::group_norm(x, affine, options)?)
            },
            |[a, b, weight, bias, scale_shift]| {
                let (x, affine) = (Tensor::cat(&[a, b], 3)?, [weight, bias]);
                group_norm::group_norm_reference(&x, affine, Some(scale_shift), options)?.silu()
            },
        );
        let [a, b, weight, bias, _] = inputs;
        check(
            &format!("group_norm of {channels:?}"),
            &[a, b, weight, bias],
            |[a, b, weight, bias]| {
                let affine = Affine {
                    weight,
                    bias,
                    scale_shift: None,
                };
                let x = Joined::new(a.clone(), b.clone())?;
                group_norm::group_norm(&x, affine, options)
            },
            |[a, b, weight, bias]| {
                let x = Tensor::cat(&[a, b], 3)?;
                group_norm::group_norm_reference(&x, [weight, bias], None, options)
            },
        );
    }
}

#[test]
fn convolutions_of_joined_values() {
    for (channels, kernel, stride) in [(1, 1), (1, 2), (3, 1)]
        .into_iter()
        .flat_map(|(kernel, stride)| PAIRS.map(|(channels, _)| (channels, kernel, stride)))
    {
        let padding = kernel / 2;
        let geometry = Geometry { stride, padding };
        let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
        let inputs = [
            var(&[2, 3, 5, channels[0]], 0.1),
            var(&[2, 3, 5, channels[1]], 0.5),
            var(&[kernel, kernel, channels[0] + channels[1], 7], 0.2),
            var(&[7], 0.3),
            var(&[2, out(3), out(5), 7], 0.6),
        ];
        check(
            &format!("{kernel}x{kernel} conv2d of {channels:?} onto a residual"),
            &inputs,
            |[a, b, weight, bias, residual]| {
                let x = Joined::new(a.clone(), b.clone())?;
                conv2d::conv2d(
                    x,
                    Filter { weight, bias },
                    geometry,
                    Epilogue::Onto(residual),
                )
            },
            |[a, b, weight, bias, residual]| {
                let x = Tensor::cat(&[a, b], 3)?;
                conv2d::conv2d_reference(&x, weight, bias, geometry)? + residual
            },
        );
        let [a, b, weight, bias, _] = inputs;
        check(
            &format!("{kernel}x{kernel} conv2d of {channels:?}"),
            &[a, b, weight, bias],
            |[a, b, weight, bias]| {
                let x = Joined::new(a.clone(), b.clone())?;
                conv2d::conv2d(
                    x,
                    Filter { weight, bias },
                    geometry,
                    Epilogue::To(Output::Whole),
                )
            },
            |[a, b, weight, bias]| {
                let x = Tensor::cat(&[a, b], 3)?;
                conv2d::conv2d_reference(&x, weight, bias, geometry)
            },
        );
    }
}

/// No kernel takes f64: the compositions do.
#[test]
fn joined_values_of_another_type_go_through_the_compositions() {
    let single = [
        var(&[2, 3, 5, 3], 0.1),
        var(&[2, 3, 5, 5], 0.5),
        var(&[1, 1, 8, 4], 0.2),
        var(&[8], 0.3),
        var(&[4], 0.4),
    ];
    let run = |dtype| {
        let double = single.each_ref().map(|var| var.to_dtype(dtype).unwrap());
        let tape = Tape::recording(cpu(), Recompute::Nothing);
        let [a, b, weight, scale, bias] = &double.each_ref().map(|value| tape.input(value));
        let affine = Affine {
            weight: scale,
            bias: scale,
            scale_shift: None,
        };
        let options = group_norm::Options {
            output: Output::Whole,
            n_groups: 2,
            activation: Activation::Silu,
        };
        let geometry = Geometry {
            stride: 1,
            padding: 0,
        };
        let x = Joined::new(a.clone(), b.clone()).unwrap();
        let norm = group_norm::group_norm(&x, affine, options).unwrap();
        let filter = Filter { weight, bias };
        let y = conv2d::conv2d(x, filter, geometry, Epilogue::To(Output::Whole)).unwrap();
        let y = conv2d::conv2d(&norm, filter, geometry, Epilogue::Onto(&y)).unwrap();
        let found = y.backward(y.value()).unwrap();
        let d = [a, b, weight, scale, bias].map(|node| found.of(node).unwrap().clone());
        d.map(|d| d.to_dtype(DType::F32).unwrap())
    };
    for (fast, slow) in run(DType::F32).iter().zip(&run(DType::F64)) {
        assert_close("gradient", fast, slow);
    }
}

#[test]
fn attention_in_both_orders() {
    for order in [Order::HeadMajor, Order::KindMajor] {
        let options = attention::Options {
            n_heads: 2,
            order,
            output: Output::Whole,
        };
        check(
            "attention",
            &[var(&[2, 9, 3 * 2 * 5], 0.1)],
            |[qkv]| attention::attention(qkv, options),
            |[qkv]| attention::attention_reference(qkv, options),
        );
    }
}

#[test]
fn resampling() {
    let x = [var(&[2, 4, 6, 3], 0.1)];
    check(
        "avg_pool2",
        &x,
        |[x]| resample::avg_pool2(x),
        |[x]| resample::avg_pool2_reference(x),
    );
    check(
        "upsample2",
        &x,
        |[x]| resample::upsample2(x),
        |[x]| resample::upsample2_reference(x),
    );
    let tape = Tape::inference(cpu());
    let odd = tape.constant(&var(&[1, 3, 2, 1], 0.0));
    assert!(resample::avg_pool2(&odd).is_err());
}

/// Drops elements 1, 3 and 6 of each eight of image 0, more of the others.
fn some_dropped(piece: Piece, dropped: &mut [u8]) {
    dropped.fill(0b0100_1010 | piece.image as u8);
}

#[test]
fn dropout_multiplies_by_0_or_a_constant() {
    for shape in [[2, 3, 4, 5], [3, 1, 1, 1], [1, 5, 3, 33], [0, 2, 2, 3]] {
        let inputs = [var(&shape, 0.1)];
        let [x] = &inputs;
        let [n, h, w, c] = shape;
        let n_elements = h * w * c;
        let factors = (0..n * n_elements).map(|idx| {
            let (image, i) = (idx / n_elements, idx % n_elements);
            f32::from(1 - ((0b0100_1010 | image as u8) >> (i % 8) & 1)) * 1.25
        });
        let factors = Tensor::from_iter(factors, &Device::Cpu).unwrap();
        let factors = factors.reshape(&shape).unwrap();
        let what = format!("dropout of {shape:?}");
        check(
            &what,
            &inputs,
            |[x]| dropout(x, 1.25, some_dropped),
            |[x]| x * &factors,
        );
        // Where there is no kernel.
        let tape = Tape::recording(cpu(), Recompute::Nothing);
        let wide = tape.input(&x.to_dtype(DType::F64).unwrap());
        let y = dropout(&wide, 1.25, some_dropped).unwrap();
        let expected = (x.as_tensor() * &factors).unwrap();
        assert_close(&what, &y.value().to_dtype(DType::F32).unwrap(), &expected);
        let gradients = y.backward(&y.value().ones_like().unwrap()).unwrap();
        let gradient = gradients.of(&wide).unwrap().to_dtype(DType::F32).unwrap();
        assert_close(&what, &gradient, &factors);
    }
}

#[test]
fn elementwise_ops() {
    let pair = [var(&[2, 3, 4, 5], 0.1), var(&[2, 3, 4, 5], 0.2)];
    let single = [pair[0].clone()];
    check("silu", &single, |[x]| elementwise::silu(x), |[x]| x.silu());
    check(
        "add",
        &pair,
        |[a, b]| elementwise::add(a, b),
        |[a, b]| a + b,
    );
    check(
        "add_per_image",
        &[var(&[2, 3, 4, 5], 0.1), var(&[2, 5], 0.2)],
        |[a, shift]| elementwise::add_per_image(a, shift),
        |[a, shift]| a.broadcast_add(&shift.reshape((2, 1, 1, 5))?),
    );
    check(
        "rows",
        &[var(&[4, 3], 0.2)],
        |[table]| elementwise::rows(table, &[3, 1, 3]),
        |[table]| table.index_select(&Tensor::new(&[3u32, 1, 3], &Device::Cpu)?, 0),
    );
    check(
        "concat",
        &[var(&[2, 3, 4, 5], 0.1), var(&[2, 3, 4, 2], 0.2)],
        |[a, b]| elementwise::concat(a, b),
        |[a, b]| Tensor::cat(&[a, b], 3),
    );
}

#[test]
fn a_value_that_is_used_twice_gets_both_gradients() {
    let [a, b] = [var(&[1, 2, 2, 4], 0.1), var(&[1, 2, 2, 4], 0.7)];
    check(
        "a diamond",
        &[a, b],
        |[a, b]| {
            // Both sides of a sum share a gradient, and one of them is added to afterwards.
            let sum = elementwise::add(&a.reshape((1, 4, 1, 4))?.reshape((1, 2, 2, 4))?, b)?;
            let twice = elementwise::add(&elementwise::silu(&sum)?, &elementwise::silu(a)?)?;
            elementwise::add(&twice, &elementwise::silu(b)?)
        },
        |[a, b]| ((a + b)?.silu()? + a.silu()?)? + b.silu()?,
    );
}

#[test]
fn a_block_that_is_run_twice_has_the_same_gradients() {
    let weight = var(&[3, 3, 4, 4], 0.2);
    let bias = var(&[4], 0.3);
    let x = var(&[2, 4, 4, 4], 0.1);
    let run = |recompute| {
        let tape = Tape::recording(cpu(), recompute);
        let x = tape.input(&x);
        let (weight, bias) = (weight.clone(), bias.clone());
        let (w, b) = (weight.clone(), bias.clone());
        let y = checkpoint([&x], move |[x]| {
            let filter = Filter {
                weight: &x.tape().param(&weight),
                bias: &x.tape().param(&bias),
            };
            let geometry = Geometry {
                stride: 1,
                padding: 1,
            };
            conv2d::conv2d(&elementwise::silu(x)?, filter, geometry, Epilogue::Onto(x))
        })
        .unwrap();
        let found = y.backward(y.value()).unwrap();
        let gradients = [found.of(&x), found.of_param(&w), found.of_param(&b)];
        gradients.map(|gradient| -> Vec<f32> {
            gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap()
        })
    };
    assert_eq!(run(Recompute::Nothing), run(Recompute::Blocks));
}

#[test]
fn wrong_shapes_are_errors() {
    let tape = Tape::recording(cpu(), Recompute::Nothing);
    let node = |shape: &[usize]| tape.input(&var(shape, 0.1));
    let (x, weight) = (node(&[1, 4, 4, 3]), node(&[3, 3, 4, 2]));
    let geometry = Geometry {
        stride: 1,
        padding: 1,
    };
    let (bias, good) = (node(&[2]), node(&[3, 3, 3, 2]));
    let conv = |weight, residual| {
        conv2d::conv2d(
            &x,
            Filter {
                weight,
                bias: &bias,
            },
            geometry,
            residual,
        )
    };
    assert!(conv(&weight, Epilogue::To(Output::Whole)).is_err());
    assert!(conv(&good, Epilogue::Onto(&x)).is_err());
    assert!(
        conv(&good, Epilogue::To(Output::Whole))
            .unwrap()
            .backward(x.value())
            .is_err()
    );
    let options = group_norm::Options {
        output: Output::Whole,
        n_groups: 2,
        activation: Activation::Silu,
    };
    let affine = Affine {
        weight: &node(&[3]),
        bias: &node(&[3]),
        scale_shift: None,
    };
    assert!(group_norm::group_norm(&x, affine, options).is_err());
    let pair = |a, b| Joined::new(node(a), node(b));
    assert!(pair(&[1, 4, 4, 3], &[1, 4, 2, 3]).is_err());
    let five = pair(&[1, 4, 4, 3], &[1, 4, 4, 2]).unwrap();
    assert_eq!(five.shape().dims(), [1, 4, 4, 5]);
    assert!(group_norm::group_norm(&five, affine, options).is_err());
    for c_in in [2, 3, 4, 6] {
        let weight = &node(&[1, 1, c_in, 2]);
        let filter = Filter {
            weight,
            bias: &bias,
        };
        assert!(conv2d::conv2d(&five, filter, geometry, Epilogue::To(Output::Whole)).is_err());
    }
    assert!(elementwise::add(&x, &weight).is_err());
    assert!(elementwise::rows(&node(&[2, 2]), &[2]).is_err());
}
