//! The classifier: its gradients, and that no image sees another.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

use candle_core::{Device, Tensor};
use p2_nn::classifier::Pool;
use p2_nn::unet::{Heads, Order, Resample, TimeConditioning};
use p2_nn::{Classifier, Cpu, Init, Precision, Recompute, Tape, Threads, UNetConfig};

const POOLS: [Pool; 4] = [
    Pool::Attention,
    Pool::Adaptive,
    Pool::Spatial,
    Pool::SpatialV2,
];

fn config() -> UNetConfig {
    UNetConfig {
        image_size: 8,
        in_channels: 3,
        out_channels: 5,
        channels: 32,
        channel_mult: vec![1, 2],
        n_res_blocks: 1,
        attention_resolutions: vec![4],
        heads: Heads::Channels(32),
        attention_order: Order::HeadMajor,
        resample: Resample::ResBlock,
        time_conditioning: TimeConditioning::ScaleShift,
        dropout: 0.0,
        n_classes: 0,
    }
}

/// A network that says something: also layers that start at zero have weights.
fn classifier(pool: Pool) -> Classifier {
    let mut initializer = |index: usize, init: Init, values: &mut [f32]| {
        let (scale, shift) = match init {
            Init::Ones => (0.1, 1.0),
            Init::Uniform { bound } => (bound, 0.0),
            Init::Zeros | Init::Normal { .. } => (0.05, 0.0),
        };
        let mut state = index as u32 + 1;
        for value in values {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let uniform = f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0;
            *value = (shift + scale * uniform) as f32;
        }
    };
    Classifier::new(config(), pool, &mut initializer).unwrap()
}

fn images(n: usize) -> Tensor {
    let values: Vec<f32> = (0..n * 192)
        .map(|i| (0.37 * i as f64 + (0.05 * i as f64).cos()).sin() as f32)
        .collect();
    Tensor::from_vec(values, (n, 8, 8, 3), &Device::Cpu).unwrap()
}

fn cpu() -> Cpu {
    Cpu {
        precision: Precision::Exact,
        ..Cpu::best(Threads::new(2))
    }
}

/// A number that all scores enter.
fn sum(classifier: &Classifier, x: &Tensor, t: &[f64], factors: &Tensor) -> f64 {
    let tape = Tape::inference(cpu());
    let scores = classifier.forward(&tape.constant(x), t).unwrap();
    let product = (scores.value() * factors).unwrap().sum_all().unwrap();
    f64::from(product.to_scalar::<f32>().unwrap())
}

/// Moves along the gradient and compares the change with its length: of the images, and of each parameter.
#[test]
fn gradients_are_the_slopes_of_the_scores() {
    let (x, t) = (images(2), [3.0, 700.0]);
    let factors = Tensor::new(
        &[[1f32, -0.5, 0.3, 0.8, -1.2], [0.4, 1.1, -0.9, 0.2, 0.6]],
        &Device::Cpu,
    )
    .unwrap();
    for pool in POOLS {
        let classifier = classifier(pool);
        let tape = Tape::recording(cpu(), Recompute::Nothing);
        let input = tape.input(&x);
        let scores = classifier.forward(&input, &t).unwrap();
        let gradients = scores.backward(&factors).unwrap();
        let check = |what: &str, slope: f64, gradient: f64| {
            let error = (slope - gradient).abs();
            assert!(
                error < 0.05 * gradient.abs() + 5e-4,
                "{pool:?}: {what} has slope {slope}, gradient {gradient}"
            );
        };
        // A step along the gradient itself, so that no sum cancels.
        let moved = |value: &Tensor, gradient: &Tensor, step: f64| {
            (value + gradient.affine(step, 0.0).unwrap()).unwrap()
        };
        let norm = |gradient: &Tensor| {
            let squares = gradient.sqr().unwrap().sum_all().unwrap();
            f64::from(squares.to_scalar::<f32>().unwrap()).sqrt()
        };
        let gradient = gradients.of(&input).unwrap();
        let (length, step) = (norm(gradient), 0.02 / norm(gradient));
        let [up, down] =
            [step, -step].map(|step| sum(&classifier, &moved(&x, gradient, step), &t, &factors));
        check("the image", (up - down) / 0.04, length);
        for param in classifier.params().iter() {
            let gradient = gradients.of_param(param.var()).unwrap();
            let before = param.var().as_tensor().copy().unwrap();
            let length = norm(gradient);
            let step = 0.02 / length.max(1e-6);
            let [up, down] = [step, -step].map(|step| {
                param.var().set(&moved(&before, gradient, step)).unwrap();
                sum(&classifier, &x, &t, &factors)
            });
            param.var().set(&before).unwrap();
            check(param.name(), (up - down) / (2.0 * step * length), length);
        }
    }
}

#[test]
fn an_image_has_the_same_scores_in_any_batch() {
    let (x, t) = (images(3), [0.0, 250.5, 999.0]);
    for pool in POOLS {
        let classifier = classifier(pool);
        let forward = |x: &Tensor, t: &[f64]| {
            let scores = classifier.forward(&Tape::inference(cpu()).constant(x), t);
            scores.unwrap().value().to_vec2::<f32>().unwrap()
        };
        let together = forward(&x, &t);
        for i in 0..3 {
            let alone = forward(&x.narrow(0, i, 1).unwrap().copy().unwrap(), &t[i..=i]);
            assert_eq!(alone[0], together[i], "{pool:?}, image {i}");
        }
    }
}

#[test]
fn a_classifier_is_told_no_class() {
    let config = UNetConfig {
        n_classes: 5,
        ..config()
    };
    let error = Classifier::new(config, Pool::Adaptive, &mut |_, _, _| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a classifier is told no class, but n_classes is 5"
    );
}
