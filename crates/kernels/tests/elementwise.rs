//! Resampling, elementwise functions and AdamW against their formulas.

mod comparison;

use comparison::{assert_close, assert_same_bits, cpus, fill};
use p2_kernels::resample::Resample;
use p2_kernels::{adamw, elementwise};

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
fn elementwise_functions_of_any_length_have_the_same_bits_on_any_number_of_threads() {
    for n in [0, 1, 3, 7, 15, 16, 17, 31, 33, 40_001] {
        let (a, b) = (fill(n, 1), fill(n, 2));
        let sums: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(a + b)).collect();
        let mut all = vec![];
        for cpu in cpus() {
            let [mut sum, mut silu, mut slope] = [(); 3].map(|()| vec![f32::NAN; n]);
            elementwise::add(&a, &b, &mut sum, cpu);
            assert_close(&format!("sum of {n} on {cpu:?}"), &sum, &sums, 1e-9);
            elementwise::silu(&a, &mut silu, cpu);
            elementwise::silu_backward(&a, &b, &mut slope, cpu);
            assert!(silu.iter().chain(&slope).all(|y| y.is_finite()));
            all.push((cpu, [sum, silu, slope].concat()));
        }
        assert_same_bits(&format!("{n} elements"), &all);
    }
}

#[test]
fn resampling_of_awkward_sizes_follows_its_formula() {
    for (n, h, w, c) in [
        (0, 2, 2, 1),
        (1, 2, 2, 1),
        (3, 6, 2, 7),
        (2, 2, 10, 17),
        (1, 14, 6, 33),
    ] {
        let size = Resample { n, h, w, c };
        let large = fill(n * h * w * c, 1);
        let place = |idx: usize| {
            let (row, x, channel) = (idx / (w * c), idx / c % w, idx % c);
            (row / 2 * (w / 2) + x / 2) * c + channel
        };
        let mut sums = vec![0.0; large.len() / 4];
        for (idx, x) in large.iter().enumerate() {
            sums[place(idx)] += 0.25 * f64::from(*x);
        }
        for cpu in cpus() {
            let mut small = vec![f32::NAN; sums.len()];
            size.gather(&large, 0.25, &mut small, cpu);
            assert_close(&format!("{size:?} on {cpu:?}"), &small, &sums, 1e-6);
            let mut repeated = vec![f32::NAN; large.len()];
            size.spread(&small, 0.5, &mut repeated, cpu);
            let expected = (0..large.len()).map(|idx| 0.5 * small[place(idx)]);
            assert!(expected.eq(repeated.iter().copied()), "{size:?} on {cpu:?}");
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
