//! Group norm against its naive twin, and the twin's gradient against finite differences.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::group_norm::{Activation, Gradients, GroupNorm, Inputs};
use p2_kernels::reference;

fn norms() -> impl Iterator<Item = GroupNorm> {
    let sizes = [
        (2, 16, 64, 32),
        (3, 7, 33, 3),
        (1, 1, 4, 2),
        (2, 1100, 32, 32),
        (0, 4, 32, 32),
        (1, 5, 6, 1),
        (3, 15, 17, 17),
        (2, 31, 15, 5),
        (1, 33, 1, 1),
        (16, 3, 31, 1),
    ];
    sizes.into_iter().flat_map(|(n, n_positions, c, n_groups)| {
        [Activation::Identity, Activation::Silu].map(|activation| GroupNorm {
            n,
            n_positions,
            c,
            n_groups,
            activation,
        })
    })
}

/// `x` with a large mean, which naive sums of squares do not survive, scale and shift.
fn inputs(norm: &GroupNorm) -> [Vec<f32>; 3] {
    let x = fill(norm.n * norm.n_positions * norm.c, 1);
    let x = x.iter().map(|x| x + 30.0).collect();
    [x, fill(norm.n * norm.c, 2), fill(norm.n * norm.c, 3)]
}

#[test]
fn group_norm_and_its_gradients() {
    for norm in norms() {
        let [x, scale, shift] = &inputs(&norm);
        let inputs = Inputs { x, scale, shift };
        let d_y = fill(x.len(), 4);
        let y_slow = reference::group_norm(&norm, &inputs);
        let (d_x_slow, d_scale_slow, d_shift_slow) =
            reference::group_norm_backward(&norm, &inputs, &d_y);
        let mut all = vec![];
        for cpu in cpus() {
            let what = |part: &str| format!("{part} of {norm:?} on {cpu:?}");
            let mut y = vec![f32::NAN; x.len()];
            let moments = norm.forward(inputs, &mut y, cpu);
            assert_close(&what("y"), &y, &y_slow, 2e-5);
            let mut d = [x.len(), scale.len(), shift.len()].map(|len| vec![f32::NAN; len]);
            let [d_x, d_scale, d_shift] = &mut d;
            let gradients = Gradients {
                d_x,
                d_scale,
                d_shift,
            };
            norm.backward(inputs, &moments, &d_y, gradients, cpu);
            assert_close(&what("d_x"), &d[0], &d_x_slow, 5e-5);
            assert_close(&what("d_scale"), &d[1], &d_scale_slow, 5e-5);
            assert_close(&what("d_shift"), &d[2], &d_shift_slow, 5e-5);
            all.push((cpu, [vec![y], d.into()].concat().concat()));
        }
        assert_same_bits(&format!("{norm:?}"), &all);
    }
}

#[test]
fn an_image_has_the_same_norm_in_any_batch() {
    for alone in norms().filter(|norm| norm.n > 0) {
        let batch = GroupNorm { n: 16, ..alone };
        let [x, scale, shift] = &inputs(&batch);
        let (x_len, c) = (alone.n_positions * alone.c, alone.c);
        for cpu in cpus() {
            let forward = |first: usize, n: usize| {
                let inputs = Inputs {
                    x: &x[first * x_len..][..n * x_len],
                    scale: &scale[first * c..][..n * c],
                    shift: &shift[first * c..][..n * c],
                };
                let mut y = vec![f32::NAN; n * x_len];
                GroupNorm { n, ..alone }.forward(inputs, &mut y, cpu);
                y
            };
            let all = forward(0, 16);
            for (first, n) in [(0, 1), (5, 3), (15, 1)] {
                assert_eq!(forward(first, n), all[first * x_len..][..n * x_len]);
            }
        }
    }
}

/// Central differences at a few elements of each input.
#[test]
fn the_gradient_of_the_reference_is_its_slope() {
    for norm in norms() {
        let original = inputs(&norm);
        let d_y = fill(original[0].len(), 4);
        let loss = |[x, scale, shift]: &[Vec<f32>; 3]| -> f64 {
            let y = reference::group_norm(&norm, &Inputs { x, scale, shift });
            y.iter().zip(&d_y).map(|(y, d_y)| y * f64::from(*d_y)).sum()
        };
        let [x, scale, shift] = &original;
        let (d_x, d_scale, d_shift) =
            reference::group_norm_backward(&norm, &Inputs { x, scale, shift }, &d_y);
        for (part, d) in [d_x, d_scale, d_shift].iter().enumerate() {
            let largest = d.iter().fold(1.0f64, |max, d| max.max(d.abs()));
            for idx in (0..d.len()).step_by(d.len() / 5 + 1) {
                let at = |step: f32| {
                    let mut moved = original.clone();
                    moved[part][idx] += step;
                    (loss(&moved), f64::from(moved[part][idx]))
                };
                let ((above, x1), (below, x0)) = (at(1e-2), at(-1e-2));
                let slope = (above - below) / (x1 - x0);
                assert!(
                    (slope - d[idx]).abs() < 2e-3 * largest,
                    "{norm:?} input {part}[{idx}]: {} is not {slope}",
                    d[idx]
                );
            }
        }
    }
}
