//! Winograd's convolution against the naive twin: awkward sizes, every instruction set of the
//! machine, and the same bits for any number of threads and any batch.

use p2_kernels::conv2d::{Conv2d, Groups, Inputs, winograd};
use p2_kernels::{Cpu, Isa, Threads, reference};

/// Numbers in about [-1, 1] without a pattern that a wrong index could hit.
fn fill(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(12345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn conv(n: usize, [h, w]: [usize; 2], [c_in, c_out]: [usize; 2]) -> Conv2d {
    Conv2d {
        n,
        h,
        w,
        c_in,
        c_out,
        kernel: [3, 3],
        stride: 1,
        padding: [1, 1],
        groups: Groups::One,
    }
}

/// The length of the error over that of the exact result.
fn relative_error(fast: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(fast.len(), exact.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut fast.iter().zip(exact).map(|(&a, &b)| f64::from(a) - b));
    let scale = norm(&mut exact.iter().copied());
    if scale == 0.0 { error } else { error / scale }
}

fn assert_close(what: &str, fast: &[f32], exact: &[f64]) {
    let error = relative_error(fast, exact);
    assert!(error < 3e-6, "{what}: relative error {error:.1e}");
}

struct Case {
    conv: Conv2d,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    residual: Vec<f32>,
    d_y: Vec<f32>,
}

/// y without and with a residual, `d_x`, `d_weight` and `d_bias`.
type Results = [Vec<f32>; 5];

impl Case {
    fn new(conv: Conv2d) -> Self {
        Self {
            conv,
            x: fill(conv.x_len(), 1),
            weight: fill(conv.weight_len(), 2),
            bias: fill(conv.c_out, 3),
            residual: fill(conv.y_len(), 4),
            d_y: fill(conv.y_len(), 5),
        }
    }

    fn run(&self, cpu: Cpu) -> Results {
        let Self {
            conv,
            x,
            weight,
            bias,
            residual,
            d_y,
        } = self;
        let lens = [
            conv.y_len(),
            conv.y_len(),
            conv.x_len(),
            conv.weight_len(),
            conv.c_out,
        ];
        let mut results = lens.map(|len| vec![f32::NAN; len]);
        let [y, y_plus, d_x, d_weight, d_bias] = &mut results;
        for (residual, y) in [(None, y), (Some(&residual[..]), y_plus)] {
            let inputs = Inputs {
                x,
                weight,
                bias,
                residual,
            };
            winograd::forward(conv, inputs, y, cpu);
        }
        winograd::backward_input(conv, d_y, weight, d_x, cpu);
        winograd::backward_weight(conv, x, d_y, d_weight, d_bias, cpu);
        results
    }

    fn exact(&self) -> [Vec<f64>; 5] {
        let inputs = Inputs {
            x: &self.x,
            weight: &self.weight,
            bias: &self.bias,
            residual: None,
        };
        let y = reference::conv2d(&self.conv, &inputs);
        let y_plus = y.iter().zip(&self.residual).map(|(y, r)| y + f64::from(*r));
        let y_plus = y_plus.collect();
        let (d_x, d_weight, d_bias) =
            reference::conv2d_backward(&self.conv, &self.x, &self.weight, &self.d_y);
        [y, y_plus, d_x, d_weight, d_bias]
    }

    fn check(&self) {
        let exact = self.exact();
        for isa in Isa::available() {
            let mut first: Option<Results> = None;
            for threads in [1, 2, 3, 8].map(Threads::new) {
                let results = self.run(Cpu {
                    isa,
                    ..Cpu::best(threads)
                });
                for (part, (fast, exact)) in results.iter().zip(&exact).enumerate() {
                    let what = format!("part {part} of {:?} on {isa:?}", self.conv);
                    assert_close(&what, fast, exact);
                }
                let bits = |results: &Results| {
                    results
                        .concat()
                        .iter()
                        .map(|x| x.to_bits())
                        .collect::<Vec<_>>()
                };
                if let Some(first) = &first {
                    assert!(
                        bits(first) == bits(&results),
                        "{:?} on {isa:?}: other bits with {threads:?}",
                        self.conv
                    );
                }
                first.get_or_insert(results);
            }
        }
    }
}

#[test]
fn images_of_any_size_are_covered_by_tiles() {
    let sides = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33];
    for (idx, &h) in sides.iter().enumerate() {
        for w in [
            h,
            sides[(idx + 3) % sides.len()],
            sides[(idx + 7) % sides.len()],
        ] {
            Case::new(conv(1, [h, w], [6, 3])).check();
        }
    }
}

#[test]
fn channels_of_any_number_are_padded() {
    let channels = [1, 3, 6, 15, 16, 17, 31, 33, 64, 96];
    for (idx, &c_in) in channels.iter().enumerate() {
        for c_out in [c_in, channels[(idx + 3) % 10], channels[(idx + 6) % 10]] {
            Case::new(conv(1 + idx % 2 * 2, [5, 6], [c_in, c_out])).check();
        }
    }
}

#[test]
fn sizes_of_networks_are_exact_to_six_digits() {
    for (n, size, channels) in [
        (3, [8, 8], [64, 64]),    // blocks of tiles; sums of all weights in one chunk
        (2, [4, 4], [192, 128]),  // passes over channels
        (1, [8, 8], [256, 272]),  // a weight gradient in many blocks of channels
        (9, [15, 17], [96, 160]), // a weight gradient in two chunks of tiles
        (3, [52, 60], [24, 40]),  // a weight gradient in four groups of tiles
    ] {
        Case::new(conv(n, size, channels)).check();
    }
}

#[test]
fn no_images_and_no_channels_are_allowed() {
    for (n, channels) in [(0, [3, 4]), (2, [0, 4]), (2, [3, 0])] {
        Case::new(conv(n, [4, 5], channels)).check();
    }
}

#[test]
fn an_image_has_the_same_convolution_in_any_batch() {
    for isa in Isa::available() {
        // One image goes by panels, the batch by tiles.
        let batch = Case::new(conv(9, [8, 6], [64, 80]));
        let alone = conv(1, [8, 6], [64, 80]);
        let [y, y_plus, d_x, ..] = batch.run(Cpu {
            isa,
            ..Cpu::best(Threads::new(2))
        });
        for image in 0..9 {
            let part = |all: &[f32], len: usize| all[image * len..][..len].to_vec();
            let case = Case {
                conv: alone,
                x: part(&batch.x, alone.x_len()),
                weight: batch.weight.clone(),
                bias: batch.bias.clone(),
                residual: part(&batch.residual, alone.y_len()),
                d_y: part(&batch.d_y, alone.y_len()),
            };
            let [y1, y_plus1, d_x1, ..] = case.run(Cpu {
                isa,
                ..Cpu::best(Threads::new(1))
            });
            assert_eq!(y1, part(&y, alone.y_len()));
            assert_eq!(y_plus1, part(&y_plus, alone.y_len()));
            assert_eq!(d_x1, part(&d_x, alone.x_len()));
        }
    }
}
