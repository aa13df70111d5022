//! The U-Net against numbers of the reference code.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{Device, Tensor};
use p2_nn::unet::{Heads, Input, Order, Resample, TimeConditioning, UNet, timestep_embedding};
use p2_nn::{Cpu, Precision, Tape, Threads, UNetConfig};

/// The base configuration of the golden numbers.
fn tiny() -> UNetConfig {
    UNetConfig {
        image_size: 16,
        in_channels: 3,
        out_channels: 6,
        channels: 32,
        channel_mult: vec![1, 2],
        n_res_blocks: 1,
        attention_resolutions: vec![8],
        heads: Heads::Channels(16),
        attention_order: Order::HeadMajor,
        resample: Resample::ResBlock,
        time_conditioning: TimeConditioning::ScaleShift,
        dropout: 0.0,
        n_classes: 0,
    }
}

/// The goldens are f32 sums in plain order: no algorithm with roundings of its own.
fn cpu() -> Cpu {
    Cpu {
        precision: Precision::Exact,
        ..Cpu::best(Threads::new(2))
    }
}

/// A network filled by the rule of the golden numbers: the k-th parameter is
/// `0.1 sin(0.7 k + 0.13 i)`, plus 1 for vectors named `weight`.
fn golden_unet(config: UNetConfig) -> UNet {
    let unet = UNet::new(config, &mut |_, _, _| {}).unwrap();
    for (k, param) in unet.params().iter().enumerate() {
        let shape = param.reference_shape();
        let one = if shape.len() == 1 && param.name().ends_with("weight") {
            1.0
        } else {
            0.0
        };
        let values: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|i| (0.1 * (0.7 * k as f64 + 0.13 * i as f64).sin() + one) as f32)
            .collect();
        param
            .set_values(&param.from_reference(&values).unwrap())
            .unwrap();
    }
    unet
}

/// `sin(0.05 i)` as `[2, 3, 16, 16]`, channels last.
fn golden_input() -> Tensor {
    let values: Vec<f32> = (0..2 * 3 * 256)
        .map(|i| (0.05 * f64::from(i)).sin() as f32)
        .collect();
    let x = Tensor::from_vec(values, (2, 3, 16, 16), &Device::Cpu).unwrap();
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn forward(unet: &UNet, x: &Tensor, t: &[f64], labels: Option<&[u32]>) -> Tensor {
    let input = Input {
        x_t: &Tape::inference(cpu()).constant(x),
        t,
        labels,
        dropout: None,
    };
    unet.forward(input).unwrap().value().clone()
}

struct Golden {
    n_params: usize,
    mean: f64,
    std: f64,
    first: [f64; 4],
    last: [f64; 4],
}

/// Numbers printed by the reference code (PyTorch 1.13, f32) for this rule of filling.
#[track_caller]
fn check(config: UNetConfig, t: &[f64], labels: Option<&[u32]>, golden: &Golden) {
    let unet = golden_unet(config);
    assert_eq!(unet.params().n_elements(), golden.n_params);
    let y = forward(&unet, &golden_input(), t, labels);
    let y = y
        .permute((0, 3, 1, 2))
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let y: Vec<f64> = y.into_iter().map(f64::from).collect();
    let mean = y.iter().sum::<f64>() / y.len() as f64;
    let std = (y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / y.len() as f64).sqrt();
    let close = |what: &str, value: f64, expected: f64| {
        // Relative to the size of the output: the f32 goldens themselves are up to 9e-5 of a value
        // away from an f64 evaluation (case D, the last but one).
        let error = (value - expected).abs() / expected.abs().max(golden.std);
        assert!(error < 1e-4, "{what}: {value} is not {expected}");
    };
    close("mean", mean, golden.mean);
    close("std", std, golden.std);
    for i in 0..4 {
        close("first", y[i], golden.first[i]);
        close("last", y[y.len() - 4 + i], golden.last[i]);
    }
}

#[test]
fn golden_a_legacy_attention_order() {
    check(
        tiny(),
        &[7.0, 500.0],
        None,
        &Golden {
            n_params: 828_358,
            mean: 5.139_585e-2,
            std: 4.074_544e-1,
            first: [0.156_678_4, 0.320_266_0, 0.383_488_0, 0.488_634_6],
            last: [0.125_538_8, -0.006_723_873, -0.049_462_09, -0.046_252_85],
        },
    );
}

#[test]
fn golden_a_at_fractional_noise_levels() {
    check(
        tiny(),
        &[7.5, 500.25],
        None,
        &Golden {
            n_params: 828_358,
            mean: 5.138_048e-2,
            std: 4.075_728e-1,
            first: [0.156_862_5, 0.320_562_3, 0.383_807_2, 0.488_970_8],
            last: [0.126_600_6, -0.005_969_860, -0.048_944_75, -0.046_007_69],
        },
    );
}

#[test]
fn golden_b_new_attention_order() {
    let config = UNetConfig {
        attention_order: Order::KindMajor,
        ..tiny()
    };
    check(
        config,
        &[7.0, 500.0],
        None,
        &Golden {
            n_params: 828_358,
            mean: 4.202_595e-2,
            std: 3.628_538e-1,
            first: [0.085_014_31, 0.205_836_8, 0.263_899_8, 0.317_708_8],
            last: [-0.123_589_1, -0.158_429_8, -0.140_338_0, -0.072_971_38],
        },
    );
}

#[test]
fn golden_c_convolutions_resample_and_the_noise_level_is_added() {
    let config = UNetConfig {
        resample: Resample::Conv,
        time_conditioning: TimeConditioning::Additive,
        heads: Heads::Count(2),
        ..tiny()
    };
    check(
        config,
        &[7.0, 500.0],
        None,
        &Golden {
            n_params: 703_366,
            mean: 1.000_969e-1,
            std: 4.032_751e-1,
            first: [0.056_147_20, 0.047_767_64, 0.069_300_52, 0.128_230_8],
            last: [0.202_662_8, 0.281_218_2, 0.292_350_7, 0.229_431_2],
        },
    );
}

#[test]
fn golden_d_ten_classes() {
    let config = UNetConfig {
        n_classes: 10,
        ..tiny()
    };
    check(
        config,
        &[7.0, 500.0],
        Some(&[3, 9]),
        &Golden {
            n_params: 829_638,
            mean: 7.145_224e-2,
            std: 3.482_118e-1,
            first: [-0.287_000_8, -0.485_041_6, -0.527_364_7, -0.468_118_8],
            last: [0.377_113_5, 0.266_511_9, 0.154_301_3, 0.084_579_95],
        },
    );
}

#[test]
fn the_timestep_embedding_is_that_of_the_reference() {
    let embedding = timestep_embedding(&[7.0], 128);
    let golden = [
        (0, 0.753_902_26),
        (1, 0.975_583_2),
        (2, 0.511_449_28),
        (64, 0.656_986_59),
        (65, -0.219_630_17),
        (66, -0.859_313_49),
        (127, 8.083_469_53e-4),
    ];
    for (idx, golden) in golden {
        assert!(
            (f64::from(embedding[idx]) - golden).abs() < 1e-6,
            "{idx}: {}",
            embedding[idx]
        );
    }
    assert_eq!(timestep_embedding(&[7.0], 5)[4], 0.0);
}
