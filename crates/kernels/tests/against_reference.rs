//! Each kernel against its naive twin: awkward sizes, every instruction set of the machine, and the
//! same bits for any number of threads and any batch.

mod common;

use common::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::attention::{Attention, Order};
use p2_kernels::group_norm::{Activation, Gradients, GroupNorm, Inputs};
use p2_kernels::resample::Resample;
use p2_kernels::{adamw, elementwise, reference};

#[test]
fn group_norm_and_its_gradients() {
    for (n, n_positions, c, n_groups) in [
        (2, 16, 64, 32),
        (3, 7, 33, 3),
        (1, 1, 4, 2),
        (2, 1100, 32, 32),
        (0, 4, 32, 32),
        (1, 5, 6, 1),
    ] {
        for activation in [Activation::Identity, Activation::Silu] {
            let norm = GroupNorm {
                n,
                n_positions,
                c,
                n_groups,
                activation,
            };
            // A large mean, which naive sums of squares do not survive.
            let x: Vec<f32> = fill(n * n_positions * c, 1)
                .iter()
                .map(|x| x + 30.0)
                .collect();
            let (scale, shift) = (fill(n * c, 2), fill(n * c, 3));
            let inputs = Inputs {
                x: &x,
                scale: &scale,
                shift: &shift,
            };
            let y_slow = reference::group_norm(&norm, &inputs);
            let d_y = fill(x.len(), 4);
            let mut all = vec![];
            for cpu in cpus() {
                let mut y = vec![f32::NAN; x.len()];
                let moments = norm.forward(inputs, &mut y, cpu);
                assert_close(&format!("y of {norm:?} on {cpu:?}"), &y, &y_slow, 2e-5);
                let mut d = [x.len(), scale.len(), shift.len()].map(|len| vec![f32::NAN; len]);
                let [d_x, d_scale, d_shift] = &mut d;
                norm.backward(
                    inputs,
                    &moments,
                    &d_y,
                    Gradients {
                        d_x,
                        d_scale,
                        d_shift,
                    },
                    cpu,
                );
                check_group_norm_gradient(&norm, inputs, &d_y, &d);
                all.push((cpu, [vec![y], d.into()].concat().concat()));
            }
            assert_same_bits(&format!("{norm:?}"), &all);
        }
    }
}

/// Central differences of the reference, at a few elements of each input.
fn check_group_norm_gradient(norm: &GroupNorm, inputs: Inputs<'_>, d_y: &[f32], d: &[Vec<f32>; 3]) {
    let loss = |inputs: &Inputs<'_>| -> f64 {
        let y = reference::group_norm(norm, inputs);
        y.iter().zip(d_y).map(|(y, d_y)| y * f64::from(*d_y)).sum()
    };
    for part in 0..3 {
        for idx in (0..d[part].len()).step_by(d[part].len() / 5 + 1) {
            let at = |step: f32| {
                let mut moved = [inputs.x, inputs.scale, inputs.shift].map(<[f32]>::to_vec);
                moved[part][idx] += step;
                let exact = f64::from(moved[part][idx]);
                let [x, scale, shift] = &moved;
                (loss(&Inputs { x, scale, shift }), exact)
            };
            let ((above, x1), (below, x0)) = (at(1e-2), at(-1e-2));
            let slope = (above - below) / (x1 - x0);
            let scale = d[part].iter().fold(1.0f32, |max, x| max.max(x.abs()));
            let error = (slope - f64::from(d[part][idx])).abs() / f64::from(scale);
            assert!(
                error < 2e-3,
                "{norm:?} input {part}[{idx}]: {} is not {slope}",
                d[part][idx]
            );
        }
    }
}

#[test]
fn attention_and_its_gradient() {
    for (n, n_positions, n_heads, head_channels) in [
        (2, 16, 2, 32),
        (1, 33, 3, 15),
        (2, 1, 1, 1),
        (1, 130, 1, 64),
        (0, 4, 2, 8),
    ] {
        for order in [Order::HeadMajor, Order::KindMajor] {
            let attention = Attention {
                n,
                n_positions,
                n_heads,
                head_channels,
                order,
            };
            let qkv: Vec<f32> = fill(n * n_positions * 3 * attention.channels(), 1)
                .iter()
                .map(|x| 2.0 * x)
                .collect();
            let y_slow = reference::attention(&attention, &qkv);
            let d_y = fill(y_slow.len(), 2);
            let loss = |qkv: &[f32]| -> f64 {
                let y = reference::attention(&attention, qkv);
                y.iter().zip(&d_y).map(|(y, d_y)| y * f64::from(*d_y)).sum()
            };
            let slopes: Vec<(usize, f64)> = (0..qkv.len())
                .step_by(qkv.len() / 16 + 1)
                .map(|idx| {
                    let at = |step: f32| {
                        let mut moved = qkv.clone();
                        moved[idx] += step;
                        (loss(&moved), f64::from(moved[idx]))
                    };
                    let ((above, x1), (below, x0)) = (at(1e-2), at(-1e-2));
                    (idx, (above - below) / (x1 - x0))
                })
                .collect();
            let mut all = vec![];
            for cpu in cpus() {
                let mut y = vec![f32::NAN; y_slow.len()];
                attention.forward(&qkv, &mut y, cpu);
                assert_close(&format!("y of {attention:?} on {cpu:?}"), &y, &y_slow, 1e-5);
                let mut d_qkv = vec![f32::NAN; qkv.len()];
                attention.backward(&qkv, &d_y, &mut d_qkv, cpu);
                for &(idx, slope) in &slopes {
                    let error = (slope - f64::from(d_qkv[idx])).abs();
                    assert!(
                        error < 2e-3,
                        "{attention:?} [{idx}]: {} is not {slope}",
                        d_qkv[idx]
                    );
                }
                all.push((cpu, [y, d_qkv].concat()));
            }
            assert_same_bits(&format!("{attention:?}"), &all);
        }
    }
}

#[test]
fn resampling_pools_and_repeats() {
    for cpu in cpus() {
        let size = Resample {
            n: 1,
            h: 2,
            w: 4,
            c: 2,
        };
        let large: Vec<f32> = (0..16).map(|x| x as f32).collect();
        let mut small = vec![0.0; 4];
        size.gather(&large, 0.25, &mut small, cpu);
        assert_eq!(small, [5.0, 6.0, 9.0, 10.0]);
        let mut repeated = vec![0.0; 16];
        size.spread(&small, 1.0, &mut repeated, cpu);
        assert_eq!(repeated[..8], [5.0, 6.0, 5.0, 6.0, 9.0, 10.0, 9.0, 10.0]);
        assert_eq!(repeated[..8], repeated[8..]);
    }
}

#[test]
fn silu_follows_its_formula_and_slope_from_end_to_end() {
    let x: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 40.0).collect();
    for cpu in cpus() {
        let mut y = vec![0.0; x.len()];
        elementwise::silu(&x, &mut y, cpu);
        let mut d_x = vec![0.0; x.len()];
        elementwise::silu_backward(&x, &vec![1.0; x.len()], &mut d_x, cpu);
        for ((&x, &y), &d_x) in x.iter().zip(&y).zip(&d_x) {
            let s = 1.0 / (1.0 + f64::from(-x).exp());
            let (exact, slope) = (f64::from(x) * s, s + s * f64::from(x) * (1.0 - s));
            assert!(
                (f64::from(y) - exact).abs() <= 3e-7 * exact.abs().max(1.0),
                "silu({x}) = {y}"
            );
            assert!((f64::from(d_x) - slope).abs() <= 3e-6, "silu'({x}) = {d_x}");
        }
    }
}

#[test]
fn concat_joins_channels_and_split_undoes_it() {
    for (n_rows, channels) in [(5, [3, 4]), (0, [2, 1]), (4000, [8, 1])] {
        let (a, b) = (fill(n_rows * channels[0], 1), fill(n_rows * channels[1], 2));
        for cpu in cpus() {
            let mut y = vec![0.0; a.len() + b.len()];
            elementwise::concat(&a, &b, channels, &mut y, cpu);
            let rows: Vec<f32> = (0..n_rows)
                .flat_map(|row| {
                    [
                        &a[row * channels[0]..][..channels[0]],
                        &b[row * channels[1]..][..channels[1]],
                    ]
                    .concat()
                })
                .collect();
            assert_eq!(y, rows);
            let (mut a_again, mut b_again) = (vec![0.0; a.len()], vec![0.0; b.len()]);
            elementwise::split(&y, channels, &mut a_again, &mut b_again, cpu);
            assert_eq!((a_again, b_again), (a.clone(), b.clone()));
        }
    }
}

#[test]
fn adamw_follows_its_algorithm() {
    let (lr, beta1, beta2, eps, weight_decay, ema_decay) = (1e-2, 0.9, 0.99, 1e-8, 0.1, 0.7);
    let n = 20_001; // more than one tile, and a tail
    for cpu in cpus() {
        let start = fill(n, 1);
        let (mut param, mut ema) = (start.clone(), start.clone());
        let (mut exp_avg, mut exp_avg_sq) = (vec![0.0; n], vec![0.0; n]);
        let mut exact: Vec<[f64; 4]> = start
            .iter()
            .map(|&p| [f64::from(p), 0.0, 0.0, f64::from(p)])
            .collect();
        for step in 1..=5u64 {
            let grad = fill(n, 100 + step as u32);
            let adamw = adamw::AdamW {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                step,
                grad_scale: 0.5,
                ema_decay,
            };
            let state = adamw::State {
                param: &mut param,
                exp_avg: &mut exp_avg,
                exp_avg_sq: &mut exp_avg_sq,
                ema: &mut ema,
            };
            adamw.step(&grad, state, cpu);
            for (exact, grad) in exact.iter_mut().zip(&grad) {
                let [p, m, v, e] = exact;
                let g = 0.5 * f64::from(*grad);
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                let m_hat = *m / (1.0 - beta1.powi(step as i32));
                let v_hat = *v / (1.0 - beta2.powi(step as i32));
                *p -= lr * weight_decay * *p;
                *p -= lr * m_hat / (v_hat.sqrt() + eps);
                *e = ema_decay * *e + (1.0 - ema_decay) * *p;
            }
        }
        for (part, values) in [&param, &exp_avg, &exp_avg_sq, &ema]
            .into_iter()
            .enumerate()
        {
            let exact: Vec<f64> = exact.iter().map(|state| state[part]).collect();
            assert_close(&format!("part {part} on {cpu:?}"), values, &exact, 1e-6);
        }
    }
}
