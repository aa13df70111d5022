//! Attention against its naive twin, and the twin's gradient against finite differences.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::attention::{Attention, Order};
use p2_kernels::{Cpu, Precision, reference};

/// A number rounded to bf16 is off by 1/512 of it at most, and a product of two by twice that; a
/// gradient is a product after others. Errors seen here are up to 6e-3.
const BF16_TOLERANCE: f64 = 1e-2;

fn attentions() -> impl Iterator<Item = Attention> {
    let sizes = [
        (2, 16, 2, 32),
        (1, 33, 3, 15),
        (2, 1, 1, 1),
        (1, 130, 1, 64),
        (0, 4, 2, 8),
        (1, 3, 1, 33),
        (3, 7, 2, 17),
        (1, 15, 3, 7),
        (2, 17, 1, 31),
        (1, 31, 2, 3),
        (1, 97, 1, 16), // one query more than a block
        (1, 32, 1, 32), // one block on tile registers
        (2, 100, 1, 33),
        (1, 256, 2, 32),
        (1, 65, 1, 64),
    ];
    sizes
        .into_iter()
        .flat_map(|(n, n_positions, n_heads, head_channels)| {
            [Order::HeadMajor, Order::KindMajor].map(|order| Attention {
                n,
                n_positions,
                n_heads,
                head_channels,
                order,
            })
        })
}

/// Queries, keys and values whose scores differ.
fn qkv(attention: &Attention) -> Vec<f32> {
    let len = attention.n * attention.n_positions * 3 * attention.channels();
    fill(len, 1).iter().map(|x| 2.0 * x).collect()
}

/// The output and the gradient of the input, on the same random numbers every time.
fn run(attention: &Attention, cpu: Cpu) -> [Vec<f32>; 2] {
    let qkv = qkv(attention);
    let d_y = fill(qkv.len() / 3, 2);
    let [mut y, mut d_qkv] = [d_y.len(), qkv.len()].map(|len| vec![f32::NAN; len]);
    attention.forward(&qkv, &mut y, cpu);
    attention.backward(&qkv, &d_y, &mut d_qkv, cpu);
    [y, d_qkv]
}

#[test]
fn attention_and_its_gradient() {
    for attention in attentions() {
        let qkv = qkv(&attention);
        let y_slow = reference::attention(&attention, &qkv);
        let d_y = fill(y_slow.len(), 2);
        let d_qkv_slow = reference::attention_backward(&attention, &qkv, &d_y);
        for (precision, tolerance) in [
            (Precision::F32, 1e-5),
            (Precision::Exact, 1e-5),
            (Precision::Bf16, BF16_TOLERANCE),
        ] {
            let mut all = vec![];
            for cpu in cpus() {
                let cpu = Cpu { precision, ..cpu };
                let what = |part: &str| format!("{part} of {attention:?} on {cpu:?}");
                let [y, d_qkv] = run(&attention, cpu);
                assert_close(&what("y"), &y, &y_slow, tolerance);
                assert_close(&what("d_qkv"), &d_qkv, &d_qkv_slow, tolerance);
                all.push((cpu, [y, d_qkv].concat()));
            }
            assert_same_bits(&format!("{attention:?} in {precision:?}"), &all);
        }
    }
}

/// Rounded numbers differ from others by their last digits, but not from each other: only where a
/// sum in another order rounds to another side.
#[test]
fn bf16_means_the_same_on_all_instruction_sets() {
    for attention in attentions().filter(|attention| attention.n > 0) {
        let results = |precision| {
            cpus()
                .into_iter()
                .map(move |cpu| run(&attention, Cpu { precision, ..cpu }).concat())
        };
        let rounded: Vec<_> = results(Precision::Bf16).collect();
        for (rounded, f32) in rounded.iter().zip(results(Precision::F32)) {
            assert!(distance(rounded, &f32) > 1e-3, "{attention:?}");
        }
        for other in &rounded[1..] {
            let distance = distance(&rounded[0], other);
            assert!(distance < 1e-3, "{attention:?}: {distance}");
        }
    }
}

/// The largest difference.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max)
}

#[test]
fn an_image_has_the_same_attention_in_any_batch() {
    for alone in attentions().filter(|attention| attention.n > 0) {
        let qkv = qkv(&Attention { n: 16, ..alone });
        let len = alone.n_positions * alone.channels();
        let precisions = [Precision::F32, Precision::Bf16];
        let cpus = cpus()
            .into_iter()
            .flat_map(|cpu| precisions.map(|precision| Cpu { precision, ..cpu }));
        for cpu in cpus {
            let forward = |first: usize, n: usize| {
                let mut y = vec![f32::NAN; n * len];
                let qkv = &qkv[first * 3 * len..][..n * 3 * len];
                Attention { n, ..alone }.forward(qkv, &mut y, cpu);
                y
            };
            let all = forward(0, 16);
            for (first, n) in [(0, 1), (5, 3), (15, 1)] {
                assert_eq!(forward(first, n), all[first * len..][..n * len]);
            }
        }
    }
}

/// Central differences at a few elements.
#[test]
fn the_gradient_of_the_reference_is_its_slope() {
    for attention in attentions() {
        let qkv = qkv(&attention);
        let d_y = fill(qkv.len() / 3, 2);
        let loss = |qkv: &[f32]| -> f64 {
            let y = reference::attention(&attention, qkv);
            y.iter().zip(&d_y).map(|(y, d_y)| y * f64::from(*d_y)).sum()
        };
        let d_qkv = reference::attention_backward(&attention, &qkv, &d_y);
        for idx in (0..qkv.len()).step_by(qkv.len() / 16 + 1) {
            let at = |step: f32| {
                let mut moved = qkv.clone();
                moved[idx] += step;
                (loss(&moved), f64::from(moved[idx]))
            };
            let ((above, x1), (below, x0)) = (at(1e-2), at(-1e-2));
            let slope = (above - below) / (x1 - x0);
            assert!(
                (slope - d_qkv[idx]).abs() < 1e-3 * slope.abs().max(1.0),
                "{attention:?}[{idx}]: {} is not {slope}",
                d_qkv[idx]
            );
        }
    }
}
