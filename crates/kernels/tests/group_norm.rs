//! Group norm against its naive twin, and the twin's gradient against finite differences.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::group_norm::{Activation, Gradients, GroupNorm, Inputs};
use p2_kernels::{Cpu, reference};

fn norms() -> impl Iterator<Item = GroupNorm> {
    let sizes = [
        (2, 16, [64, 0], 32),
        (3, 7, [33, 0], 3),
        (1, 1, [4, 0], 2),
        (2, 1100, [32, 0], 32),
        (0, 4, [32, 0], 32),
        (1, 5, [6, 0], 1),
        (3, 15, [17, 0], 17),
        (2, 31, [15, 0], 5),
        (1, 33, [1, 0], 1),
        (16, 3, [31, 0], 1),
        // Two sources, most with a group that has channels of both.
        (2, 16, [64, 32], 32),
        (2, 1100, [16, 16], 32),
        (3, 7, [1, 31], 4),
        (2, 15, [3, 7], 5),
        (2, 31, [7, 1], 1),
        (1, 300, [15, 33], 3),
        (3, 5, [17, 16], 11),
        (2, 33, [31, 17], 2),
        (1, 3, [33, 3], 1),
        (0, 4, [5, 3], 2),
        (2, 9, [0, 6], 3),
    ];
    sizes
        .into_iter()
        .flat_map(|(n, n_positions, channels, n_groups)| {
            [Activation::Identity, Activation::Silu].map(|activation| GroupNorm {
                n,
                n_positions,
                channels,
                n_groups,
                activation,
            })
        })
}

fn c(norm: &GroupNorm) -> usize {
    norm.channels.iter().sum()
}

/// `x` with a large mean, which naive sums of squares do not survive, scale and shift.
fn inputs(norm: &GroupNorm) -> [Vec<f32>; 3] {
    let x = fill(norm.n * norm.n_positions * c(norm), 1);
    let x = x.iter().map(|x| x + 30.0).collect();
    [x, fill(norm.n * c(norm), 2), fill(norm.n * c(norm), 3)]
}

/// The channels of each source.
fn split(norm: &GroupNorm, x: &[f32]) -> [Vec<f32>; 2] {
    let rows = || x.chunks_exact(c(norm));
    let first = norm.channels[0];
    [
        rows().flat_map(|row| row[..first].to_vec()).collect(),
        rows().flat_map(|row| row[first..].to_vec()).collect(),
    ]
}

/// The inverse of [`split`].
fn join(norm: &GroupNorm, [first, second]: &[Vec<f32>; 2]) -> Vec<f32> {
    let [c_first, c_second] = norm.channels;
    let rows = 0..norm.n * norm.n_positions;
    rows.flat_map(|row| {
        let first = &first[row * c_first..][..c_first];
        [first, &second[row * c_second..][..c_second]].concat()
    })
    .collect()
}

/// `y`, and the gradients with respect to all channels of `x`, to scale and to shift.
fn forward_and_backward(norm: &GroupNorm, d_y: &[f32], cpu: Cpu) -> [Vec<f32>; 4] {
    let [x, scale, shift] = &inputs(norm);
    let sources = split(norm, x);
    let inputs = Inputs {
        x: sources.each_ref().map(Vec::as_slice),
        scale,
        shift,
    };
    let mut y = vec![f32::NAN; x.len()];
    let moments = norm.forward(inputs, &mut y, cpu);
    let mut d_sources = sources
        .each_ref()
        .map(|source| vec![f32::NAN; source.len()]);
    let [mut d_scale, mut d_shift] = [scale, shift].map(|line| vec![f32::NAN; line.len()]);
    let gradients = Gradients {
        d_x: d_sources.each_mut().map(Vec::as_mut_slice),
        d_scale: &mut d_scale,
        d_shift: &mut d_shift,
    };
    norm.backward(inputs, &moments, d_y, gradients, cpu);
    [y, join(norm, &d_sources), d_scale, d_shift]
}

#[test]
fn group_norm_and_its_gradients() {
    for norm in norms() {
        let [x, scale, shift] = &inputs(&norm);
        let sources = split(&norm, x);
        let inputs = Inputs {
            x: sources.each_ref().map(Vec::as_slice),
            scale,
            shift,
        };
        let d_y = fill(x.len(), 4);
        let y_slow = reference::group_norm(&norm, &inputs);
        let (d_x_slow, d_scale_slow, d_shift_slow) =
            reference::group_norm_backward(&norm, &inputs, &d_y);
        let mut all = vec![];
        for cpu in cpus() {
            let what = |part: &str| format!("{part} of {norm:?} on {cpu:?}");
            let found = forward_and_backward(&norm, &d_y, cpu);
            assert_close(&what("y"), &found[0], &y_slow, 2e-5);
            assert_close(&what("d_x"), &found[1], &d_x_slow, 5e-5);
            assert_close(&what("d_scale"), &found[2], &d_scale_slow, 5e-5);
            assert_close(&what("d_shift"), &found[3], &d_shift_slow, 5e-5);
            all.push((cpu, found.concat()));
        }
        assert_same_bits(&format!("{norm:?}"), &all);
    }
}

#[test]
fn two_sources_have_the_bits_of_one() {
    for norm in norms() {
        let joined = GroupNorm {
            channels: [c(&norm), 0],
            ..norm
        };
        let d_y = fill(norm.n * norm.n_positions * c(&norm), 4);
        for cpu in cpus() {
            let bits = |norm| {
                let found = forward_and_backward(norm, &d_y, cpu);
                found.map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            assert_eq!(bits(&norm), bits(&joined), "{norm:?} on {cpu:?}");
        }
    }
}

#[test]
fn an_image_has_the_same_norm_in_any_batch() {
    for alone in norms().filter(|norm| norm.n > 0) {
        let batch = GroupNorm { n: 16, ..alone };
        let [x, scale, shift] = &inputs(&batch);
        let (x_len, c) = (alone.n_positions * c(&alone), c(&alone));
        for cpu in cpus() {
            let forward = |first: usize, n: usize| {
                let sources = split(&alone, &x[first * x_len..][..n * x_len]);
                let inputs = Inputs {
                    x: sources.each_ref().map(Vec::as_slice),
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
            let sources = split(&norm, x);
            let x = sources.each_ref().map(Vec::as_slice);
            let y = reference::group_norm(&norm, &Inputs { x, scale, shift });
            y.iter().zip(&d_y).map(|(y, d_y)| y * f64::from(*d_y)).sum()
        };
        let [x, scale, shift] = &original;
        let sources = split(&norm, x);
        let x = sources.each_ref().map(Vec::as_slice);
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
