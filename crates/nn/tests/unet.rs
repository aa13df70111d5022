//! The U-Net's names, shapes, gradients and invariants.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::rc::Rc;

use candle_core::{DType, Device, Tensor};
use p2_nn::adamw::Step;
use p2_nn::unet::{Dropout, DropoutSite, Heads, Input, Order, Resample, TimeConditioning, UNet};
use p2_nn::{AdamW, Cpu, Init, Node, Recompute, Tape, Threads, UNetConfig};

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

fn cpu() -> Cpu {
    Cpu::best(Threads::new(2))
}

/// `sin(0.05 i)` as `[2, 3, 16, 16]`, channels last.
fn waves() -> Tensor {
    let values: Vec<f32> = (0..2 * 3 * 256)
        .map(|i| (0.05 * f64::from(i)).sin() as f32)
        .collect();
    let x = Tensor::from_vec(values, (2, 3, 16, 16), &Device::Cpu).unwrap();
    x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap()
}

fn bits(y: &Tensor) -> Vec<u32> {
    let y: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
    y.into_iter().map(f32::to_bits).collect()
}

fn forward(unet: &UNet, x: &Tensor, t: &[f64], labels: Option<&[u32]>) -> Tensor {
    on_tape(unet, &Tape::inference(cpu()), x, t, labels)
        .value()
        .clone()
}

fn on_tape(unet: &UNet, tape: &Tape, x: &Tensor, t: &[f64], labels: Option<&[u32]>) -> Node {
    unet.forward(Input {
        x_t: &tape.constant(x),
        t,
        labels,
        dropout: None,
    })
    .unwrap()
}

#[test]
fn the_papers_network_has_its_parameters_names_and_shapes() {
    let config = UNetConfig {
        image_size: 256,
        channels: 128,
        channel_mult: vec![1, 1, 2, 2, 4, 4],
        attention_resolutions: vec![16],
        heads: Heads::Channels(64),
        ..tiny()
    };
    let unet = UNet::new(config, &mut |_, _, _| {}).unwrap();
    assert_eq!(unet.params().n_elements(), 93_563_910);
    assert_eq!(unet.params().len(), 362);
    let params: Vec<_> = unet
        .params()
        .iter()
        .map(|param| (param.name(), param.reference_shape()))
        .collect();
    assert_eq!(params[0], ("time_embed.0.weight", vec![512, 128]));
    assert_eq!(params[4], ("input_blocks.0.0.weight", vec![128, 3, 3, 3]));
    assert_eq!(params[361], ("out.2.bias", vec![6]));
    for (name, shape) in [
        ("input_blocks.1.0.emb_layers.1.weight", vec![256, 512]),
        (
            "input_blocks.9.0.skip_connection.weight",
            vec![512, 256, 1, 1],
        ),
        ("input_blocks.9.1.qkv.weight", vec![1536, 512, 1]),
        ("middle_block.1.proj_out.weight", vec![512, 512, 1]),
        ("output_blocks.3.2.in_layers.2.weight", vec![512, 512, 3, 3]),
        ("output_blocks.11.0.in_layers.0.weight", vec![256]),
    ] {
        assert!(params.contains(&(name, shape)), "{name}");
    }
}

/// Initial values that differ from element to element.
fn some_values(index: usize, _: Init, values: &mut [f32]) {
    for (i, value) in values.iter_mut().enumerate() {
        *value = (0.2 * (0.7 * index as f64 + 0.31 * i as f64).sin()) as f32;
    }
}

#[test]
fn an_image_has_the_same_output_bits_in_any_batch_and_with_any_number_of_threads() {
    let config = UNetConfig {
        n_classes: 10,
        ..tiny()
    };
    let images: Vec<f32> = (0..5 * 768)
        .map(|i| (0.37 * i as f64).sin() as f32)
        .collect();
    let images = Tensor::from_vec(images, (5, 16, 16, 3), &Device::Cpu).unwrap();
    let t = [0.0, 3.0, 250.0, 700.0, 999.0];
    let labels = [0, 1, 2, 3, 9];
    let unet = UNet::new(config, &mut some_values).unwrap();
    let on_threads = |n| {
        let tape = Tape::inference(Cpu::best(Threads::new(n)));
        bits(on_tape(&unet, &tape, &images, &t, Some(&labels)).value())
    };
    let whole = on_threads(1);
    for n_threads in [2, 3, 8] {
        assert_eq!(whole, on_threads(n_threads));
    }
    for batch_size in [1, 2] {
        let mut joined = vec![];
        for first in (0..5).step_by(batch_size) {
            let n = batch_size.min(5 - first);
            let x = images.narrow(0, first, n).unwrap();
            joined.extend(bits(&forward(
                &unet,
                &x,
                &t[first..first + n],
                Some(&labels[first..first + n]),
            )));
        }
        assert_eq!(whole, joined, "batch size {batch_size}");
    }
}

#[test]
fn the_gradient_of_every_parameter_is_the_slope_of_the_loss() {
    let config = UNetConfig {
        image_size: 8,
        attention_resolutions: vec![4],
        n_classes: 3,
        ..tiny()
    };
    let unet = UNet::new(config, &mut some_values).unwrap();
    let x: Vec<f32> = (0..2 * 192)
        .map(|i| (0.11 * i as f64).sin() as f32)
        .collect();
    let x = Tensor::from_vec(x, (2, 8, 8, 3), &Device::Cpu).unwrap();
    let loss = || {
        let y = forward(&unet, &x, &[5.0, 400.0], Some(&[0, 2]));
        (y.sqr().unwrap().mean_all().unwrap() * 100.0).unwrap()
    };
    let tape = Tape::recording(cpu(), Recompute::Nothing);
    let y = on_tape(&unet, &tape, &x, &[5.0, 400.0], Some(&[0, 2]));
    let n_outputs = y.value().elem_count() as f64;
    let gradients = y
        .backward(&(y.value() * (200.0 / n_outputs)).unwrap())
        .unwrap();
    let mut checked = 0;
    for param in unet.params().iter() {
        let gradient: Vec<f32> = gradients
            .of_param(param.var())
            .unwrap_or_else(|| panic!("{} has no gradient", param.name()))
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        // Along the gradient itself the slope is its norm.
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        if norm < 1e-2 {
            continue; // lost in the rounding of the loss; zero in exact arithmetic for key biases
        }
        let values = param.values().unwrap();
        let at = |step: f64| {
            let moved: Vec<f32> = values
                .iter()
                .zip(&gradient)
                .map(|(value, g)| value + (step * f64::from(*g) / norm) as f32)
                .collect();
            param.set_values(&moved).unwrap();
            f64::from(loss().to_scalar::<f32>().unwrap())
        };
        let step = 5e-4;
        let slope = (at(step) - at(-step)) / (2.0 * step);
        param.set_values(&values).unwrap();
        assert!(
            (slope - norm).abs() < 0.03 * norm + 5e-3,
            "{}: {slope} is not {norm}",
            param.name()
        );
        checked += 1;
    }
    assert!(
        checked > unet.params().len() * 2 / 3,
        "only {checked} parameters were checked"
    );
}

/// The gradient of `sum(v y)` with respect to the images, on a tape of inputs alone.
fn input_gradient(unet: &UNet, x: &Tensor, t: &[f64], labels: &[u32], v: &Tensor) -> Tensor {
    let tape = Tape::recording_inputs(cpu());
    let input = tape.input(x);
    let y = unet.forward(Input {
        x_t: &input,
        t,
        labels: Some(labels),
        dropout: None,
    });
    let gradients = y.unwrap().backward(v).unwrap();
    let param = unet.params().iter().next().unwrap();
    assert!(gradients.of_param(param.var()).is_none());
    gradients.of(&input).unwrap().clone()
}

fn wave(shape: &[usize], frequency: f64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let values: Vec<f64> = (0..n).map(|i| (frequency * i as f64).sin()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// In f64 against finite differences; the kernels in f32 against that, and against a tape of everything.
#[test]
fn the_gradient_of_the_images_is_the_slope_of_the_output() {
    let config = || UNetConfig {
        image_size: 8,
        attention_resolutions: vec![4],
        n_classes: 3,
        ..tiny()
    };
    let (t, labels) = ([5.0, 400.0], [0, 2]);
    let exact = UNet::with_dtype(config(), &mut some_values, DType::F64).unwrap();
    let (x, v) = (wave(&[2, 8, 8, 3], 0.11), wave(&[2, 8, 8, 6], 0.37));
    let gradient = input_gradient(&exact, &x, &t, &labels, &v);
    let sum = |x: &Tensor| -> f64 {
        let y = forward(&exact, x, &t, Some(&labels));
        let sum = (y * &v).unwrap().sum_all().unwrap();
        sum.to_scalar().unwrap()
    };
    for frequency in [0.7, 1.3, 2.9] {
        let direction = wave(&[2, 8, 8, 3], frequency);
        let at = |step: f64| sum(&(&x + (&direction * step).unwrap()).unwrap());
        let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
        let expected = (&gradient * &direction).unwrap().sum_all().unwrap();
        let expected: f64 = expected.to_scalar().unwrap();
        assert!(
            (slope - expected).abs() < 1e-6 * expected.abs(),
            "{slope} is not {expected}"
        );
    }

    let fast = UNet::new(config(), &mut some_values).unwrap();
    let single = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    let got = input_gradient(&fast, &single(&x), &t, &labels, &single(&v));
    let difference = (got.to_dtype(DType::F64).unwrap() - &gradient).unwrap();
    let square = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>();
    let relative = (square(&difference).unwrap() / square(&gradient).unwrap()).sqrt();
    assert!(relative < 1e-4, "{relative}");

    let tape = Tape::recording(cpu(), Recompute::Nothing);
    let input = tape.input(&single(&x));
    let y = fast.forward(Input {
        x_t: &input,
        t: &t,
        labels: Some(&labels),
        dropout: None,
    });
    let all = y.unwrap().backward(&single(&v)).unwrap();
    assert_eq!(bits(all.of(&input).unwrap()), bits(&got));
}

#[test]
fn an_image_has_the_same_gradient_bits_in_any_batch() {
    let config = UNetConfig {
        n_classes: 10,
        ..tiny()
    };
    let unet = UNet::new(config, &mut some_values).unwrap();
    let single = |x: Tensor| x.to_dtype(DType::F32).unwrap();
    let x = single(wave(&[5, 16, 16, 3], 0.37));
    let v = single(wave(&[5, 16, 16, 6], 0.59));
    let (t, labels) = ([0.0, 3.0, 250.0, 700.0, 999.0], [0, 1, 2, 3, 9]);
    let whole = bits(&input_gradient(&unet, &x, &t, &labels, &v));
    for batch_size in [1, 2, 3] {
        let mut joined = vec![];
        for first in (0..5).step_by(batch_size) {
            let n = batch_size.min(5 - first);
            let rows = first..first + n;
            let [x, v] = [&x, &v].map(|all| all.narrow(0, first, n).unwrap());
            let part = input_gradient(&unet, &x, &t[rows.clone()], &labels[rows], &v);
            joined.extend(bits(&part));
        }
        assert_eq!(whole, joined, "batch size {batch_size}");
    }
}

#[test]
fn what_is_computed_again_has_the_same_gradients() {
    let unet = UNet::new(tiny(), &mut some_values).unwrap();
    let gradients = |recompute| {
        let tape = Tape::recording(cpu(), recompute);
        let y = on_tape(&unet, &tape, &waves(), &[5.0, 400.0], None);
        let gradients = y.backward(y.value()).unwrap();
        let gradients = gradients.into_tensors(unet.params()).unwrap();
        gradients.iter().map(bits).collect::<Vec<_>>()
    };
    let kept = gradients(Recompute::Nothing);
    assert_eq!(kept, gradients(Recompute::Norms));
    assert_another_order_of_sums(&kept, &gradients(Recompute::Blocks));
}

/// Gradients of parameters with and without [`Recompute::Blocks`]: a block adds up the gradients of its input
/// before those from elsewhere.
fn assert_another_order_of_sums(kept: &[Vec<u32>], again: &[Vec<u32>]) {
    assert_eq!(kept.len(), again.len());
    for (param, (kept, again)) in kept.iter().zip(again).enumerate() {
        let [kept, again] = [kept, again].map(|bits| bits.iter().map(|bits| f32::from_bits(*bits)));
        let largest = kept
            .clone()
            .fold(0.0, |max: f32, value| max.max(value.abs()));
        for (kept, again) in kept.zip(again) {
            let difference = (kept - again).abs();
            assert!(
                difference <= 1e-4 * largest + 1e-5,
                "parameter {param}: {again} instead of {kept}"
            );
        }
    }
}

#[derive(Debug)]
struct DropAll;

impl Dropout for DropAll {
    fn kept(&self) -> f32 {
        1.0
    }

    fn fill(&self, _: DropoutSite, dropped: &mut [u8]) {
        dropped.fill(0xff);
    }
}

/// Drops nothing, and remembers what it was asked for.
#[derive(Debug)]
struct Sites(std::sync::Mutex<Vec<(usize, u64, usize, usize)>>);

impl Dropout for Sites {
    fn kept(&self) -> f32 {
        1.0
    }

    fn fill(&self, at: DropoutSite, dropped: &mut [u8]) {
        dropped.fill(0);
        let mut sites = self.0.lock().unwrap();
        sites.push((at.image, at.layer, at.first, dropped.len()));
    }
}

/// About a quarter, as a function of image, layer and element alone.
#[derive(Debug)]
struct Quarter {
    first_image: usize,
}

impl Dropout for Quarter {
    fn kept(&self) -> f32 {
        4.0 / 3.0
    }

    fn fill(&self, at: DropoutSite, dropped: &mut [u8]) {
        for (i, byte) in dropped.iter_mut().enumerate() {
            let place = (self.first_image + at.image) as u64 + 10 * at.layer;
            let mixed =
                (place * 1_000_003 + (at.first / 8 + i) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *byte = (mixed >> 40 & mixed >> 50) as u8;
        }
    }
}

#[test]
fn dropout_has_a_mask_of_its_own_per_image_and_residual_block() {
    let config = UNetConfig {
        dropout: 0.5,
        ..tiny()
    };
    let unet = UNet::new(config, &mut some_values).unwrap();
    let x = waves();
    let tape = Tape::inference(cpu());
    let x = tape.constant(&x);
    let run = |dropout: Option<&Rc<dyn Dropout>>| {
        let input = Input {
            x_t: &x,
            t: &[1.0, 2.0],
            labels: None,
            dropout,
        };
        unet.forward(input)
            .unwrap()
            .value()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
    };
    let sites = Rc::new(Sites(std::sync::Mutex::default()));
    let dropout: Rc<dyn Dropout> = sites.clone();
    assert_eq!(
        run(None),
        run(Some(&dropout)),
        "a mask of ones changes nothing"
    );
    let drop_all: Rc<dyn Dropout> = Rc::new(DropAll);
    assert_ne!(run(None), run(Some(&drop_all)));
    let mut sites = std::mem::take(&mut *sites.0.lock().unwrap());
    sites.sort_unstable();
    // 16×16×32 elements and less: one piece each.
    assert!(sites.iter().all(|&(_, _, first, _)| first == 0));
    let n_sites = sites.len();
    sites.dedup_by_key(|&mut (image, layer, ..)| (image, layer));
    assert_eq!(
        (sites.len(), n_sites),
        (2 * 10, 2 * 10),
        "two images, ten residual blocks"
    );
}

#[test]
fn dropout_has_the_same_bits_on_any_number_of_threads_and_computed_again() {
    let config = UNetConfig {
        dropout: 0.25,
        ..tiny()
    };
    let unet = UNet::new(config, &mut some_values).unwrap();
    let run = |n_threads, recompute| {
        let tape = Tape::recording(Cpu::best(Threads::new(n_threads)), recompute);
        let dropout: Rc<dyn Dropout> = Rc::new(Quarter { first_image: 0 });
        let input = Input {
            x_t: &tape.constant(&waves()),
            t: &[5.0, 400.0],
            labels: None,
            dropout: Some(&dropout),
        };
        let y = unet.forward(input).unwrap();
        let gradients = y.backward(y.value()).unwrap();
        let gradients = gradients.into_tensors(unet.params()).unwrap();
        let gradients = gradients.iter().map(bits).collect::<Vec<_>>();
        (bits(y.value()), gradients)
    };
    let expected = run(1, Recompute::Nothing);
    for n_threads in [1, 2, 3, 8] {
        for recompute in [Recompute::Nothing, Recompute::Norms] {
            assert_eq!(expected, run(n_threads, recompute), "{n_threads} threads");
        }
        let (value, gradients) = run(n_threads, Recompute::Blocks);
        assert_eq!(expected.0, value, "{n_threads} threads, blocks again");
        assert_another_order_of_sums(&expected.1, &gradients);
    }
}

#[test]
fn an_image_is_dropped_from_alike_in_any_batch() {
    let config = UNetConfig {
        dropout: 0.25,
        ..tiny()
    };
    let unet = UNet::new(config, &mut some_values).unwrap();
    let (x, t) = (waves(), [5.0, 400.0]);
    let run = |images: std::ops::Range<usize>| {
        let tape = Tape::inference(cpu());
        let first_image = images.start;
        let dropout: Rc<dyn Dropout> = Rc::new(Quarter { first_image });
        let input = Input {
            x_t: &tape.constant(&x.narrow(0, images.start, images.len()).unwrap()),
            t: &t[images],
            labels: None,
            dropout: Some(&dropout),
        };
        bits(unet.forward(input).unwrap().value())
    };
    assert_eq!(run(0..2), [run(0..1), run(1..2)].concat());
}

#[test]
fn the_optimizer_moves_weights_and_their_average() {
    let unet = UNet::new(tiny(), &mut some_values).unwrap();
    let mut optimizer = AdamW::new(unet.params(), cpu()).unwrap();
    let before: Vec<Vec<f32>> = unet.params().iter().map(|p| p.values().unwrap()).collect();
    let gradients: Vec<Tensor> = unet
        .params()
        .iter()
        .map(|p| p.var().ones_like().unwrap())
        .collect();
    let step = Step {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 1,
        grad_scale: 1.0,
        ema_decay: 0.75,
    };
    optimizer.step(&gradients, step).unwrap();
    assert!(optimizer.step(&gradients[1..], step).is_err());
    let params = optimizer.params().clone();
    for ((param, state), before) in params.iter().zip(optimizer.states_mut()).zip(&before) {
        for ((after, before), ema) in param.values().unwrap().iter().zip(before).zip(&state.ema) {
            // The first step of Adam is lr in the direction of the gradient.
            assert!((before - after - 1e-3).abs() < 1e-6);
            assert!((before - ema - 0.25e-3).abs() < 1e-6);
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_their_values() {
    for (config, message) in [
        (
            UNetConfig {
                channels: 48,
                ..tiny()
            },
            "channels 48",
        ),
        (
            UNetConfig {
                image_size: 15,
                ..tiny()
            },
            "image_size 15",
        ),
        (
            UNetConfig {
                attention_resolutions: vec![5],
                ..tiny()
            },
            "no level has size 5",
        ),
        (
            UNetConfig {
                heads: Heads::Channels(7),
                ..tiny()
            },
            "Channels(7)",
        ),
        (
            UNetConfig {
                dropout: 1.0,
                ..tiny()
            },
            "dropout 1",
        ),
        (
            UNetConfig {
                channel_mult: vec![],
                ..tiny()
            },
            "channel_mult []",
        ),
    ] {
        let error = UNet::new(config, &mut |_, _, _| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    }
    let unet = UNet::new(tiny(), &mut |_, _, _| {}).unwrap();
    let x = Tape::inference(cpu()).constant(&waves());
    let input = Input {
        x_t: &x,
        t: &[1.0, 2.0],
        labels: Some(&[0, 0]),
        dropout: None,
    };
    assert!(
        unet.forward(input).is_err(),
        "labels for an unconditional network"
    );
}
