//! The loss against its formula, its gradient against finite differences, and the bits of both.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::loss::{Bound, Image, Inputs, Loss, Means, Output, Term};

/// Images of each kind: without a variational term, between levels, at the first level.
fn images(n: usize, output: Output) -> Vec<Image> {
    let terms = [
        None,
        Some(Term::Divergence { distance: 0.3 }),
        Some(Term::Likelihood {
            x0_error: 0.01,
            log_variance: -7.0,
        }),
    ];
    let is_said = output == Output::PredictionAndVariance;
    let image = |i: usize| Image {
        target_x0: -0.6,
        target_eps: 0.8,
        d_mse: 0.7,
        bound: terms[i % 3].map(|term| Bound {
            ratio_slope: if is_said { -0.4 } else { 1.0 },
            ratio_shift: if is_said { 1.0 } else { -0.2 },
            term,
            d_prediction: 0.2,
            d_variance: 0.2,
        }),
    };
    (0..n).map(image).collect()
}

/// What is minimized, summed over images, by the formulas in f64.
fn minimized(loss: Loss, images: &[Image], inputs: [&[f64]; 3]) -> f64 {
    let [output, x0, eps] = inputs;
    let (len, n_halves) = (loss.n_positions * loss.c, output.len() / x0.len().max(1));
    let mut sum = 0.0;
    for (n, image) in images.iter().enumerate() {
        for i in 0..len {
            let (place, channel) = (n * len + i, i % loss.c);
            let row = (place - channel) * n_halves;
            let (x0, eps) = (x0[place], eps[place]);
            let error = output[row + channel] - image.target_x0 * x0 - image.target_eps * eps;
            sum += image.d_mse * error * error / len as f64;
            let Some(bound) = image.bound else { continue };
            let said = (n_halves == 2).then(|| output[row + loss.c + channel]);
            let r = bound.ratio_slope * (said.unwrap_or(0.0) + bound.ratio_shift);
            sum += bound.d_variance / len as f64
                * match bound.term {
                    Term::Divergence { distance } => {
                        0.5 * (distance * error * error * r.exp() + r.exp() - r - 1.0)
                    }
                    Term::Likelihood {
                        x0_error,
                        log_variance,
                    } => -log_probability(x0, x0_error * error, log_variance - r),
                };
        }
    }
    sum
}

fn log_probability(x: f64, off: f64, log_variance: f64) -> f64 {
    let cdf = |z: f64| {
        let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        1.0 / (1.0 + (-scale * (z + 0.044715 * z.powi(3))).exp())
    };
    let [above, below] = [1.0, -1.0].map(|side| (off + side / 255.0) * (-0.5 * log_variance).exp());
    match x {
        x if x < -0.999 => cdf(above).ln(),
        x if x > 0.999 => cdf(-below).ln(),
        _ => (cdf(above) - cdf(below)).ln(),
    }
}

/// Output, clean images and noise of n images; some pixels belong to the first and the last bin.
fn batch(loss: Loss, n: usize) -> [Vec<f32>; 3] {
    let len = n * loss.n_positions * loss.c;
    let n_halves = match loss.output {
        Output::Prediction => 1,
        Output::PredictionAndVariance => 2,
    };
    let x0 = fill(len, 2)
        .iter()
        .map(|x| (1.4 * x).clamp(-1.0, 1.0))
        .collect();
    [fill(n_halves * len, 1), x0, fill(len, 3)]
}

fn run(
    loss: Loss,
    images: &[Image],
    batch: &[Vec<f32>; 3],
    cpu: p2_kernels::Cpu,
) -> (Vec<Means>, Vec<f32>) {
    let [output, x0, eps] = batch;
    let mut d_output = vec![f32::NAN; output.len()];
    let inputs = Inputs { output, x0, eps };
    let means = loss.with_gradient(images, inputs, &mut d_output, cpu);
    (means, d_output)
}

/// Pixels and channels, around and beyond a tile.
const SIZES: [(usize, usize); 7] = [
    (0, 3),
    (1, 1),
    (1, 3),
    (35, 3),
    (1025, 1),
    (700, 3),
    (1, 1500),
];

fn losses() -> impl Iterator<Item = Loss> {
    let outputs = [Output::Prediction, Output::PredictionAndVariance].into_iter();
    outputs.flat_map(|output| {
        SIZES.map(|(n_positions, c)| Loss {
            n_positions,
            c,
            output,
        })
    })
}

#[test]
fn means_add_up_to_what_is_minimized() {
    for loss in losses().filter(|loss| loss.n_positions > 0) {
        let (images, batch) = (images(4, loss.output), batch(loss, 4));
        let exact = batch
            .each_ref()
            .map(|values| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let expected = minimized(loss, &images, exact.each_ref().map(Vec::as_slice));
        for cpu in cpus() {
            let (means, _) = run(loss, &images, &batch, cpu);
            let of_image = |(image, means): (&Image, &Means)| {
                let bound = image.bound.map_or(0.0, |bound| bound.d_variance);
                image.d_mse * means.squared + bound * means.nats
            };
            let got: f64 = images.iter().zip(&means).map(of_image).sum();
            let difference = (got - expected).abs();
            assert!(difference < 1e-6 * expected, "{loss:?}: {got} {expected}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_what_is_minimized() {
    for loss in losses().filter(|loss| (1..100).contains(&(loss.n_positions * loss.c))) {
        let (images, batch) = (images(3, loss.output), batch(loss, 3));
        let [mut output, x0, eps] = batch
            .each_ref()
            .map(|values| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let step = 1e-5;
        let mut at = |i: usize, step: f64| {
            output[i] += step;
            let value = minimized(loss, &images, [&output, &x0, &eps]);
            output[i] -= step;
            value
        };
        let slopes: Vec<f64> = (0..batch[0].len())
            .map(|i| (at(i, step) - at(i, -step)) / (2.0 * step))
            .collect();
        for cpu in cpus() {
            let (_, d_output) = run(loss, &images, &batch, cpu);
            assert_close(&format!("{loss:?} on {cpu:?}"), &d_output, &slopes, 1e-6);
        }
    }
}

#[test]
fn an_image_has_the_same_bits_in_any_batch_with_any_number_of_threads() {
    for loss in losses() {
        let (images, batch) = (images(5, loss.output), batch(loss, 5));
        let mut all = vec![];
        for cpu in cpus() {
            let (means, d_output) = run(loss, &images, &batch, cpu);
            for n in 0..5 {
                let part = |values: &[f32]| {
                    let len = values.len() / 5;
                    values[n * len..][..len].to_vec()
                };
                let alone = batch.each_ref().map(|values| part(values));
                let (mean_alone, d_alone) = run(loss, &images[n..=n], &alone, cpu);
                let bits = |means: &Means| [means.squared, means.nats].map(f64::to_bits);
                let what = format!("{loss:?} on {cpu:?}, image {n}");
                assert_eq!(bits(&mean_alone[0]), bits(&means[n]), "{what}");
                assert_eq!(d_alone, part(&d_output), "{what}");
            }
            // Means are compared by their digits in f32 and by what these leave.
            let digits = means.iter().flat_map(|means| {
                [means.squared, means.nats]
                    .map(|mean| [mean as f32, (mean - f64::from(mean as f32)) as f32])
            });
            all.push((cpu, digits.flatten().chain(d_output).collect()));
        }
        assert_same_bits(&format!("{loss:?}"), &all);
    }
}

#[test]
fn no_images_have_no_loss() {
    for loss in losses() {
        let (means, d_output) = run(loss, &[], &batch(loss, 0), cpus()[0]);
        assert!(means.is_empty() && d_output.is_empty());
    }
}

#[test]
fn what_is_not_finite_is_not_hidden() {
    let loss = Loss {
        n_positions: 20,
        c: 3,
        output: Output::PredictionAndVariance,
    };
    let images = images(3, loss.output);
    // A variance that overflows makes an infinite term; a NaN stays one.
    for (place, value) in [(0, f32::NAN), (3, f32::NAN), (3, -1e3)] {
        let mut batch = batch(loss, 3);
        (0..3).for_each(|n| batch[0][n * 120 + place] = value);
        for cpu in cpus() {
            let (means, _) = run(loss, &images, &batch, cpu);
            let is_hidden = |(i, means): (usize, &Means)| {
                let is_seen = place == 0 || i > 0;
                let is_broken = !means.squared.is_finite() || !means.nats.is_finite();
                // The least likelihood of a pixel is a number.
                is_seen && !is_broken && !(i == 2 && value == -1e3)
            };
            assert!(
                !means.iter().enumerate().any(is_hidden),
                "{value}: {means:?}"
            );
        }
    }
}
