//! The networks against numbers of the reference code.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{Device, Tensor};
use p2_nn::classifier::Pool;
use p2_nn::unet::{
    Heads, Input, Order, Resample, TimeConditioning, UNet, timestep_embedding, with_low_res,
};
use p2_nn::{Classifier, Cpu, Node, Params, Precision, Tape, Threads, UNetConfig};

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

/// Fills a network by the rule of the golden numbers: the k-th parameter is
/// `0.1 sin(0.7 k + 0.13 i)`, plus 1 for vectors named `weight`.
fn fill(params: &Params) {
    for (k, param) in params.iter().enumerate() {
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
}

fn golden_unet(config: UNetConfig) -> UNet {
    let unet = UNet::new(config, &mut |_, _, _| {}).unwrap();
    fill(unet.params());
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

fn forward(unet: &UNet, x_t: &Node, t: &[f64], labels: Option<&[u32]>) -> Tensor {
    let input = Input {
        x_t,
        t,
        labels,
        dropout: None,
    };
    unet.forward(input).unwrap().value().clone()
}

fn on_tape(x: &Tensor) -> Node {
    Tape::inference(cpu()).constant(x)
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
    check_output(
        &forward(&unet, &on_tape(&golden_input()), t, labels),
        golden,
    );
}

/// The numbers of an image tensor, channels last, or of scores `[N, n_classes]`, in the reference's order.
#[track_caller]
fn check_output(y: &Tensor, golden: &Golden) {
    let y = match y.rank() {
        4 => y.permute((0, 3, 1, 2)).unwrap(),
        _ => y.clone(),
    };
    let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
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
fn golden_e_super_resolution() {
    let config = UNetConfig {
        in_channels: 6,
        ..tiny()
    };
    let golden = Golden {
        n_params: 829_222,
        mean: 7.366_863e-2,
        std: 5.058_427e-1,
        first: [-0.806_857_3, -1.321_891, -1.470_015, -1.438_253],
        last: [-0.851_408_4, -0.824_490_3, -0.676_665_9, -0.362_828_9],
    };
    let unet = golden_unet(config);
    assert_eq!(unet.params().n_elements(), golden.n_params);
    let low_res: Vec<f32> = (0..2 * 3 * 16)
        .map(|i| (0.3 * f64::from(i)).sin() as f32)
        .collect();
    let low_res = Tensor::from_vec(low_res, (2, 3, 4, 4), &Device::Cpu).unwrap();
    let low_res = low_res.permute((0, 2, 3, 1)).unwrap();
    let x_t = with_low_res(&on_tape(&golden_input()), &low_res).unwrap();
    check_output(&forward(&unet, &x_t, &[7.0, 500.0], None), &golden);
}

/// The classifier of the golden numbers: ten classes.
#[track_caller]
fn check_classifier(pool: Pool, golden: &Golden) {
    let config = UNetConfig {
        out_channels: 10,
        ..tiny()
    };
    let classifier = Classifier::new(config, pool, &mut |_, _, _| {}).unwrap();
    fill(classifier.params());
    assert_eq!(classifier.params().n_elements(), golden.n_params);
    let scores = classifier.forward(&on_tape(&golden_input()), &[7.0, 500.0]);
    check_output(scores.unwrap().value(), golden);
}

#[test]
fn golden_f_classifier_with_attention() {
    check_classifier(
        Pool::Attention,
        &Golden {
            n_params: 381_834,
            mean: -5.601_368e-2,
            std: 2.261_405e-1,
            first: [-0.281_148_9, 0.059_650_68, 0.249_732_3, -0.299_321_2],
            last: [-0.306_138_9, -0.121_303_9, 0.228_856_8, -0.297_586_0],
        },
    );
}

#[test]
fn golden_f_classifier_with_the_mean() {
    check_classifier(
        Pool::Adaptive,
        &Golden {
            n_params: 365_194,
            mean: 1.227_469e-1,
            std: 2.799_576e-1,
            first: [0.449_814_3, -0.145_189_4, -0.082_519_65, 0.475_453_6],
            last: [0.473_607_7, -0.012_532_96, -0.178_503_3, 0.447_936_8],
        },
    );
}

#[test]
fn golden_f_classifier_with_all_means() {
    check_classifier(
        Pool::Spatial,
        &Golden {
            n_params: 845_706,
            mean: -4.140_705e-3,
            std: 3.885_643,
            first: [4.140_590, -5.063_905, 3.227_067, 0.846_571_0],
            last: [-2.874_829, -0.849_177_4, 4.396_932, -4.983_839],
        },
    );
}

#[test]
fn golden_f_classifier_with_all_means_and_a_norm() {
    check_classifier(
        Pool::SpatialV2,
        &Golden {
            n_params: 849_802,
            mean: -1.882_876,
            std: 16.087_67,
            first: [-4.441_708, -13.485_06, 23.558_50, -19.293_60],
            last: [-24.799_29, 20.024_25, -3.236_288, -15.538_15],
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
