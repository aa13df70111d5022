//! Each op against its plain candle composition: values and all gradients.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at its first surprise"
)]

use candle_core::{Device, Result, Tensor, Var};
use p2_nn::op::attention::{self, Order};
use p2_nn::op::conv2d::{self, Geometry};
use p2_nn::op::elementwise;
use p2_nn::op::group_norm::{self, Activation};
use p2_nn::op::resample;
use p2_nn::{Cpu, Threads};

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
fn check(
    what: &str,
    inputs: &[Var],
    op: impl Fn(&[Tensor]) -> Result<Tensor>,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| -> Result<Vec<Tensor>> {
        let tensors: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
        let y = f(&tensors)?;
        let weights = var(y.dims(), 0.4);
        let gradients = (&y * weights.as_tensor())?.sum_all()?.backward()?;
        let mut results = vec![y];
        for input in inputs {
            results.push(
                gradients
                    .get(input)
                    .expect("every input has a gradient")
                    .clone(),
            );
        }
        Ok(results)
    };
    let (fast, slow) = (run(&op).unwrap(), run(&reference).unwrap());
    for (i, (fast, slow)) in fast.iter().zip(&slow).enumerate() {
        let part = if i == 0 {
            "value".into()
        } else {
            format!("gradient {}", i - 1)
        };
        assert_close(&format!("{what}: {part}"), fast, slow);
    }
}

#[test]
fn convolutions() {
    for (h, w, c_in, c_out, kernel, stride, padding) in [
        (6, 5, 3, 4, 3, 1, 1),
        (6, 6, 33, 17, 3, 2, 1),
        (4, 4, 5, 6, 1, 1, 0),
        (5, 4, 2, 3, 5, 1, 2),
    ] {
        let inputs = [
            var(&[2, h, w, c_in], 0.1),
            var(&[kernel, kernel, c_in, c_out], 0.2),
            var(&[c_out], 0.3),
        ];
        let geometry = Geometry { stride, padding };
        check(
            "conv2d",
            &inputs,
            |t| conv2d::conv2d(&t[0], &t[1], &t[2], geometry, cpu()),
            |t| conv2d::conv2d_reference(&t[0], &t[1], &t[2], geometry),
        );
    }
    let inputs = [var(&[3, 2, 7], 0.1), var(&[7, 5], 0.2), var(&[5], 0.3)];
    check(
        "linear",
        &inputs,
        |t| conv2d::linear(&t[0], &t[1], &t[2], cpu()),
        |t| t[0].broadcast_matmul(&t[1])?.broadcast_add(&t[2]),
    );
}

#[test]
fn group_norms() {
    for activation in [Activation::Identity, Activation::Silu] {
        for (h, w, c, n_groups) in [(3, 4, 64, 32), (5, 3, 6, 2), (2, 2, 32, 32)] {
            let inputs = [
                var(&[2, h, w, c], 0.1),
                var(&[2, c], 0.2),
                var(&[2, c], 0.3),
            ];
            let options = group_norm::Options {
                n_groups,
                activation,
            };
            check(
                "group_norm",
                &inputs,
                |t| group_norm::group_norm(&t[0], &t[1], &t[2], options, cpu()),
                |t| group_norm::group_norm_reference(&t[0], &t[1], &t[2], options),
            );
        }
    }
}

#[test]
fn attention_in_both_orders() {
    for order in [Order::HeadMajor, Order::KindMajor] {
        let options = attention::Options { n_heads: 2, order };
        check(
            "attention",
            &[var(&[2, 9, 3 * 2 * 5], 0.1)],
            |t| attention::attention(&t[0], options, cpu()),
            |t| attention::attention_reference(&t[0], options),
        );
    }
}

#[test]
fn resampling() {
    let x = [var(&[2, 4, 6, 3], 0.1)];
    check(
        "avg_pool2",
        &x,
        |t| resample::avg_pool2(&t[0], cpu()),
        |t| resample::avg_pool2_reference(&t[0]),
    );
    check(
        "upsample2",
        &x,
        |t| resample::upsample2(&t[0], cpu()),
        |t| resample::upsample2_reference(&t[0]),
    );
    assert!(resample::avg_pool2(var(&[1, 3, 2, 1], 0.0).as_tensor(), cpu()).is_err());
}

#[test]
fn elementwise_ops() {
    let inputs = [var(&[2, 3, 4, 5], 0.1), var(&[2, 3, 4, 5], 0.2)];
    check(
        "silu",
        &inputs[..1],
        |t| elementwise::silu(&t[0], cpu()),
        |t| t[0].silu(),
    );
    check(
        "add",
        &inputs,
        |t| elementwise::add(&t[0], &t[1], cpu()),
        |t| &t[0] + &t[1],
    );
    let inputs = [var(&[2, 3, 4, 5], 0.1), var(&[2, 3, 4, 2], 0.2)];
    check(
        "concat",
        &inputs,
        |t| elementwise::concat(&t[0], &t[1], cpu()),
        |t| Tensor::cat(&[&t[0], &t[1]], 3),
    );
}

#[test]
fn wrong_shapes_are_errors() {
    let (x, weight) = (var(&[1, 4, 4, 3], 0.1), var(&[3, 3, 4, 2], 0.2));
    let geometry = Geometry {
        stride: 1,
        padding: 1,
    };
    assert!(conv2d::conv2d(&x, &weight, &var(&[2], 0.3), geometry, cpu()).is_err());
    let options = group_norm::Options {
        n_groups: 2,
        activation: Activation::Silu,
    };
    assert!(
        group_norm::group_norm(&x, &var(&[1, 3], 0.0), &var(&[1, 3], 0.0), options, cpu()).is_err()
    );
    assert!(elementwise::add(&x, &weight, cpu()).is_err());
}
