//! The type of what stands between a norm and the products that read it.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{DType, Device, Tensor};
use p2_nn::op::Output;
use p2_nn::op::attention::{self, Order};
use p2_nn::op::conv2d::{self, Epilogue, Filter};
use p2_nn::op::dropout::{Piece, dropout};
use p2_nn::op::group_norm::{self, Activation, Affine};
use p2_nn::op::resample::avg_pool2;
use p2_nn::{Cpu, Isa, Precision, Recompute, Tape, Threads};

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
fn products_of_a_norm(cpu: Cpu, output: Output) -> (Vec<DType>, Vec<Tensor>) {
    let shapes: [&[usize]; 7] = [
        &[2, 8, 8, 32],
        &[32],
        &[32],
        &[32, 96],
        &[96],
        &[32, 32],
        &[32],
    ];
    let tape = Tape::recording(cpu, Recompute::Nothing);
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
    let epilogue = Epilogue {
        residual: None,
        output,
    };
    let qkv = conv2d::linear(&kept, filter(w_qkv, b_qkv), epilogue).unwrap();
    let options = attention::Options {
        n_heads: 1,
        order: Order::HeadMajor,
        output,
    };
    let attended = attention::attention(&qkv.reshape((2, 16, 96)).unwrap(), options).unwrap();
    let y = conv2d::linear(&attended, filter(w_out, b_out), Epilogue::default()).unwrap();
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
        let (types, exact) = products_of_a_norm(cpu, Output::ForProducts);
        assert_eq!(types, [DType::F32; 6], "{cpu:?}");
        let cpu = cpu.with_precision(Precision::Bf16);
        let (types, halves) = products_of_a_norm(cpu, Output::ForProducts);
        let between = match isa.name() {
            "amx" => DType::BF16,
            _ => DType::F32,
        };
        assert_eq!(types[..5], [between; 5], "{cpu:?}");
        assert_eq!(types[5], DType::F32, "{cpu:?}");
        let (_, whole) = products_of_a_norm(cpu, Output::Whole);
        for (i, exact) in exact.iter().enumerate() {
            let [half, whole] = [&halves, &whole].map(|found| distance(&found[i], exact));
            // A gradient is rounded anew by dropout, pooling and the norm's reader.
            assert!(half < 2.0 * whole + 1e-3, "{i} on {cpu:?}: {half}, {whole}");
        }
    }
}
