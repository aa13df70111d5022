//! How far the kernels' f32 is from f64: the whole network, its output and every gradient.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{DType, Device, Tensor};
use p2_nn::unet::{Heads, Input, Order, Resample, TimeConditioning};
use p2_nn::{Cpu, Init, Precision, Recompute, Tape, Threads, UNet, UNetConfig};

fn config() -> UNetConfig {
    UNetConfig {
        image_size: 16,
        in_channels: 3,
        out_channels: 6,
        channels: 64,
        channel_mult: vec![1, 2],
        n_res_blocks: 1,
        attention_resolutions: vec![8],
        heads: Heads::Channels(32),
        attention_order: Order::HeadMajor,
        resample: Resample::ResBlock,
        time_conditioning: TimeConditioning::ScaleShift,
        dropout: 0.0,
        n_classes: 0,
    }
}

/// Numbers without a pattern in `(-1, 1)`.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Output, then the gradient of every parameter by its name, in f64.
fn run(dtype: DType, precision: Precision) -> Vec<(String, Vec<f64>)> {
    let mut noise = Noise(1);
    // The layers that start at zero have weights like the others, or nothing would be seen of them.
    let mut fill = |_: usize, init: Init, values: &mut [f32]| {
        let (bound, shift) = match init {
            Init::Uniform { bound } => (bound, 0.0),
            Init::Ones => (0.1, 1.0),
            Init::Zeros | Init::Normal { .. } => (0.04, 0.0),
        };
        values.fill_with(|| (shift + bound * noise.next()) as f32);
    };
    let unet = UNet::with_dtype(config(), &mut fill, dtype).unwrap();
    let mut image = |channels: usize| {
        let values = (0..4 * 256 * channels).map(|_| 1.7 * noise.next() as f32);
        let image = Tensor::from_iter(values, &Device::Cpu).unwrap();
        let image = image.reshape((4, 16, 16, channels)).unwrap();
        image.to_dtype(dtype).unwrap()
    };
    let (x_t, d_y) = (image(3), image(6));
    let cpu = Cpu {
        precision,
        ..Cpu::best(Threads::new(2))
    };
    let tape = Tape::recording(cpu, Recompute::Nothing);
    let input = Input {
        x_t: &tape.constant(&x_t),
        t: &[3.0, 120.0, 500.0, 990.0],
        labels: None,
        dropout: None,
    };
    let y = unet.forward(input).unwrap();
    let values = |tensor: &Tensor| -> Vec<f64> {
        let tensor = tensor.to_dtype(DType::F64).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    let gradients = y.backward(&d_y).unwrap();
    let gradients = gradients.into_tensors(unet.params()).unwrap();
    let names = unet.params().iter().map(|param| param.name().to_owned());
    let mut results = vec![("output".to_owned(), values(y.value()))];
    results.extend(names.zip(gradients.iter().map(values)));
    results
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    norm(&differences)
}

fn joined(parts: &[(String, Vec<f64>)]) -> Vec<f64> {
    parts
        .iter()
        .flat_map(|(_, values)| values)
        .copied()
        .collect()
}

#[test]
fn output_and_gradients_are_those_of_f64_but_for_rounding() {
    let truth = run(DType::F64, Precision::Exact);
    for (precision, bound, worst_bound) in [
        (Precision::F32, 2e-5, 5e-5),
        (Precision::Exact, 1e-5, 5e-5),
        // Tensors whose gradient is zero but for rounding have any error.
        (Precision::Bf16, 3e-2, f64::INFINITY),
    ] {
        let found = run(DType::F32, precision);
        let output = distance(&found[0].1, &truth[0].1) / norm(&truth[0].1);
        let (all_found, all_truth) = (joined(&found[1..]), joined(&truth[1..]));
        let total = norm(&all_truth);
        let gradients = distance(&all_found, &all_truth) / total;
        let tensors = found[1..].iter().zip(&truth[1..]);
        // Some gradients are zero in exact arithmetic, such as that of the keys' bias.
        let worst = tensors.map(|((name, found), (_, truth))| {
            (distance(found, truth) / norm(truth).max(1e-6 * total), name)
        });
        let (worst, name) = worst.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let figures = format!(
            "{precision:?}: output {output:.1e}, gradients {gradients:.1e}, worst {worst:.1e} ({name})"
        );
        println!("{figures}");
        assert!(
            output < bound && gradients < bound && worst < worst_bound,
            "{figures}"
        );
        let rounds = output > 1e-4;
        assert_eq!(rounds, precision == Precision::Bf16, "{figures}");
    }
}
