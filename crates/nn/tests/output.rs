//! The type of what stands between a norm and the products that read it.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{DType, Device, Tensor};
use p2_nn::op::Output;
use p2_nn::op::attention::{self, Order};
use p2_nn::op::conv2d::{self, Epilogue, Filter, Geometry};
use p2_nn::op::dropout::{Piece, dropout};
use p2_nn::op::group_norm::{self, Activation, Affine};
use p2_nn::op::resample::{avg_pool2, upsample2};
use p2_nn::{Cpu, Isa, Node, Precision, Recompute, Result, Tape, Threads};

/// Numbers in [-1, 1] without a pattern.
fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let n = shape.iter().product::<usize>();
    let number =
        |i: usize| ((i + 1) * 7919 * (seed + 1) % 2003 * 104_729 % 1009) as f32 / 504.5 - 1.0;
    Tensor::from_vec((0..n).map(number).collect(), shape, &Device::Cpu).unwrap()
}

/// Relative L2.
fn distance(found: &Tensor, expected: &Tensor) -> f32 {
    let norm = |x: &Tensor| {
        x.sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    };
    (norm(&(found - expected).unwrap()) / norm(expected)).sqrt()
}

fn drop_some(piece: Piece, dropped: &mut [u8]) {
    dropped.fill(0b100 + piece.image as u8);
}

/// Types and result of norm, pooling, dropout, attention with its projections, and gradients of all inputs.
fn products_of_a_norm(cpu: Cpu, output: Output, recompute: Recompute) -> (Vec<DType>, Vec<Tensor>) {
    let shapes: [&[usize]; 7] = [
        &[2, 8, 8, 32],
        &[32],
        &[32],
        &[32, 96],
        &[96],
        &[32, 32],
        &[32],
    ];
    let tape = Tape::recording(cpu, recompute);
    let inputs: [_; 7] = std::array::from_fn(|i| tape.input(&numbers(shapes[i], i)));
    let [x, scale, shift, w_qkv, b_qkv, w_out, b_out] = &inputs;
    let affine = Affine {
        weight: scale,
        bias: shift,
        scale_shift: None,
    };
    let options = group_norm::Options {
        n_groups: 4,
        activation: Activation::Silu,
        output,
    };
    let normed = group_norm::group_norm(x, affine, options).unwrap();
    let pooled = avg_pool2(&normed).unwrap();
    let kept = dropout(&pooled, 1.25, drop_some).unwrap();
    let filter = |weight, bias| Filter { weight, bias };
    let qkv = conv2d::linear(&kept, filter(w_qkv, b_qkv), Epilogue::To(output)).unwrap();
    let options = attention::Options {
        n_heads: 1,
        order: Order::HeadMajor,
        output,
    };
    let attended = attention::attention(&qkv.reshape((2, 16, 96)).unwrap(), options).unwrap();
    let y = conv2d::linear(&attended, filter(w_out, b_out), Epilogue::To(Output::Whole)).unwrap();
    let types = [&normed, &pooled, &kept, &qkv, &attended, &y].map(|node| node.value().dtype());
    let gradients = y.backward(&numbers(y.dims(), 9)).unwrap();
    let gradients = inputs
        .iter()
        .map(|input| gradients.of(input).unwrap().clone());
    let results = [y.value().clone()].into_iter().chain(gradients);
    (types.to_vec(), results.collect())
}

#[test]
fn what_products_alone_read_is_bf16_where_they_round_to_it() {
    for isa in Isa::available() {
        let cpu = Cpu {
            isa,
            ..Cpu::best(Threads::new(2))
        };
        let run = |cpu, output| products_of_a_norm(cpu, output, Recompute::Nothing);
        let (types, exact) = run(cpu, Output::ForProducts);
        assert_eq!(types, [DType::F32; 6], "{cpu:?}");
        let cpu = cpu.with_precision(Precision::Bf16);
        let (types, halves) = run(cpu, Output::ForProducts);
        let between = match isa.name() {
            "amx" => DType::BF16,
            _ => DType::F32,
        };
        assert_eq!(types[..5], [between; 5], "{cpu:?}");
        assert_eq!(types[5], DType::F32, "{cpu:?}");
        let (_, whole) = run(cpu, Output::Whole);
        for (i, exact) in exact.iter().enumerate() {
            let [half, whole] = [&halves, &whole].map(|found| distance(&found[i], exact));
            // A gradient is rounded anew by dropout, pooling and the product that read the norm.
            assert!(half < 2.0 * whole + 1e-3, "{i} on {cpu:?}: {half}, {whole}");
        }
        let (_, again) = products_of_a_norm(cpu, Output::ForProducts, Recompute::Norms);
        for (i, (again, halves)) in again.iter().zip(&halves).enumerate() {
            assert_eq!(distance(again, halves), 0.0, "{i} on {cpu:?}");
        }
    }
}

/// Value and gradient of the input, `[2, 4, 4, 12]`, of type `dtype`.
fn run(dtype: DType, op: impl Fn(&Tape, &Node) -> Result<Node>) -> [Tensor; 2] {
    let tape = Tape::recording(Cpu::best(Threads::new(2)), Recompute::Nothing);
    let halves = numbers(&[2, 4, 4, 12], 1).to_dtype(DType::BF16).unwrap();
    let x = tape.input(&halves.to_dtype(dtype).unwrap());
    let y = op(&tape, &x).unwrap();
    let d_y = numbers(y.dims(), 2).to_dtype(DType::BF16).unwrap();
    let gradients = y
        .backward(&d_y.to_dtype(y.value().dtype()).unwrap())
        .unwrap();
    let d_x = gradients.of(&x).unwrap();
    assert_eq!(d_x.dtype(), dtype);
    [y.value().clone(), d_x.clone()]
}

type Op<'a> = &'a dyn Fn(&Tape, &Node) -> Result<Node>;

/// On any machine: kernels take bf16 everywhere.
#[test]
fn gradients_of_bf16_are_bf16_and_those_of_f32_but_for_rounding() {
    let conv = |tape: &Tape, x: &Node, kernel: usize, residual: Option<&Node>| {
        let filter = Filter {
            weight: &tape.constant(&numbers(&[kernel, kernel, 12, 12], 3)),
            bias: &tape.constant(&numbers(&[12], 4)),
        };
        let geometry = Geometry {
            stride: 1,
            padding: kernel / 2,
        };
        let epilogue = residual.map_or(Epilogue::To(Output::ForProducts), Epilogue::Onto);
        conv2d::conv2d(x, filter, geometry, epilogue)
    };
    let attend = |x: &Node, output| {
        let options = attention::Options {
            n_heads: 2,
            order: Order::KindMajor,
            output,
        };
        attention::attention(&x.reshape((2, 16, 12))?, options)
    };
    let ops: [(&str, Op<'_>); 7] = [
        ("3x3", &|tape, x| conv(tape, x, 3, None)),
        ("1x1", &|tape, x| conv(tape, x, 1, None)),
        ("onto", &|tape, x| {
            conv(tape, x, 3, Some(&tape.input(&numbers(&[2, 4, 4, 12], 5))))
        }),
        ("attention", &|_, x| attend(x, Output::ForProducts)),
        ("pooling", &|_, x| avg_pool2(x)),
        ("upsampling", &|_, x| upsample2(x)),
        ("twice", &|tape, x| {
            let first = conv(tape, x, 3, None)?;
            conv(tape, x, 1, Some(&first))
        }),
    ];
    for (name, op) in ops {
        let half = run(DType::BF16, op);
        for (found, expected) in half.iter().zip(&run(DType::F32, op)) {
            let error = distance(&found.to_dtype(DType::F32).unwrap(), expected);
            assert!(error < 4e-3, "{name}: {error}");
        }
    }
}
