//! 2-D convolution, channels last: forward and both gradients. A linear layer is its 1×1 case.

mod bf16;
mod depthwise;
mod gemm;
mod joined;
#[cfg(target_arch = "x86_64")]
mod tiles;
pub mod winograd;

#[cfg(target_arch = "x86_64")]
use crate::amx::Amx;
use crate::cpu::{Cpu, Precision, Shared};
use crate::element::Element;
pub use joined::{JoinedConv2d, JoinedInputs};

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Images.
    pub n: usize,
    /// Input rows.
    pub h: usize,
    /// Input columns.
    pub w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels; with [`Groups::Depthwise`] as many as input channels.
    pub c_out: usize,
    /// Filter rows and columns.
    pub kernel: [usize; 2],
    /// Distance of two output positions in the input.
    pub stride: usize,
    /// Rows of zeros above and below the input, columns of zeros left and right of it.
    pub padding: [usize; 2],
    /// Which input channels an output channel sees.
    pub groups: Groups,
}

/// Which input channels an output channel sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Groups {
    /// All.
    One,
    /// Its own alone.
    Depthwise,
}

/// What [`Conv2d::forward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, X = f32> {
    /// `[N, H, W, C_in]`.
    pub x: &'a [X],
    /// `[kernel rows, kernel columns, C_in, C_out]`, depthwise `[.., .., 1, C]`.
    pub weight: &'a [f32],
    /// `[C_out]`.
    pub bias: &'a [f32],
    /// Added to the result, `[N, H_out, W_out, C_out]`.
    pub residual: Option<&'a [f32]>,
}

/// A kernel of [`Conv2d::backward_weight`] in f32: of `x` and `d_y`, to `d_weight` and `d_bias`.
type WeightSums = fn(&Conv2d, &[f32], &[f32], &mut [f32], &mut [f32], Cpu);

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Products of matrices, every output element one chain of multiply-adds.
    Gemm,
    /// Winograd's F(4×4, 3×3): a quarter of the multiplications, five times the rounding.
    Winograd,
    /// As `Gemm`, of inputs rounded to bf16, in pairs where the machine adds pairs.
    Bf16,
    /// As `Bf16`, in tile registers.
    #[cfg(target_arch = "x86_64")]
    Tiles(Amx),
    /// Each channel by itself, every output element one chain of multiply-adds.
    Depthwise,
}

impl Conv2d {
    /// A linear layer over `n` rows.
    pub fn linear(n: usize, c_in: usize, c_out: usize) -> Self {
        Self {
            n,
            h: 1,
            w: 1,
            c_in,
            c_out,
            kernel: [1, 1],
            stride: 1,
            padding: [0, 0],
            groups: Groups::One,
        }
    }

    /// How this convolution is computed.
    ///
    /// Never by the number of images: one has the same bits in any batch.
    pub fn algorithm(&self, cpu: Cpu) -> Algorithm {
        if self.groups == Groups::Depthwise {
            return Algorithm::Depthwise;
        }
        if cpu.precision == Precision::Exact {
            return Algorithm::Gemm;
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(amx) = Amx::of(cpu.isa)
            && cpu.precision == Precision::Bf16
            && tiles::applies(self)
        {
            return Algorithm::Tiles(amx);
        }
        if cpu.precision == Precision::Bf16 && self.is_linear() {
            Algorithm::Bf16
        } else if winograd::applies(self) {
            Algorithm::Winograd
        } else {
            Algorithm::Gemm
        }
    }

    /// Whether each output position sees the same input position and no other.
    fn is_linear(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [0, 0]
    }

    /// Output rows.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.padding[0] - self.kernel[0]) / self.stride + 1
    }

    /// Output columns.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.padding[1] - self.kernel[1]) / self.stride + 1
    }

    /// Whether the sizes make sense and all lengths can be counted: what the pointers rely on.
    ///
    /// # Panics
    /// If not, as all kernels do.
    fn check(&self) {
        let Self {
            n,
            h,
            w,
            c_in,
            c_out,
            kernel,
            stride,
            padding,
            groups,
        } = *self;
        let product = |sizes: &[usize]| {
            sizes
                .iter()
                .try_fold(size_of::<f32>(), |product, &size| product.checked_mul(size))
        };
        let side = |size: usize, i: usize| {
            let side = padding[i].checked_mul(2)?.checked_add(size)?;
            (kernel[i] > 0 && side >= kernel[i]).then_some(side)
        };
        let counts = side(h, 0)
            .zip(side(w, 1))
            .and_then(|(h, w)| product(&[n, h, w, c_in.max(c_out)]))
            .and(product(&[kernel[0], kernel[1], c_in, c_out]));
        assert!(counts.is_some() && stride > 0, "{self:?}");
        assert!(groups == Groups::One || c_in == c_out, "{self:?}");
    }

    /// Filter rows times columns.
    fn n_taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Elements of the input, `[N, H, W, C_in]`.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Elements of the output, `[N, H_out, W_out, C_out]`.
    pub fn y_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c_out
    }

    /// Elements of the weights, `[kernel rows, kernel columns, C_in, C_out]`, depthwise
    /// `[.., .., 1, C]`.
    pub fn weight_len(&self) -> usize {
        match self.groups {
            Groups::One => self.n_taps() * self.c_in * self.c_out,
            Groups::Depthwise => self.n_taps() * self.c_out,
        }
    }

    /// `y = (conv(x, weight) + bias) + residual`: the residual is added to the rounded sum.
    ///
    /// Like all kernels it writes every element of its output and reads none.
    ///
    /// # Panics
    /// If a slice has another length than its size says; likewise all kernels below.
    pub fn forward<X: Element, Y: Element>(&self, inputs: Inputs<'_, X>, y: &mut [Y], cpu: Cpu) {
        self.check();
        let Inputs {
            x,
            weight,
            bias,
            residual,
        } = inputs;
        assert_eq!(bias.len(), self.c_out);
        assert!(residual.is_none_or(|residual| residual.len() == y.len()));
        assert_eq!(
            (x.len(), weight.len(), y.len()),
            (self.x_len(), self.weight_len(), self.y_len())
        );
        let in_f32 = |y, run: fn(&Self, Inputs<'_>, &mut [f32], Cpu)| {
            X::with_f32(x, cpu, |x| {
                let inputs = Inputs {
                    x,
                    weight,
                    bias,
                    residual,
                };
                Y::write_f32(y, cpu, |y| run(self, inputs, y, cpu));
            });
        };
        match self.algorithm(cpu) {
            Algorithm::Gemm => in_f32(y, Self::gemm_forward),
            Algorithm::Winograd => in_f32(y, winograd::forward),
            Algorithm::Bf16 => in_f32(y, Self::bf16_forward),
            #[cfg(target_arch = "x86_64")]
            Algorithm::Tiles(amx) => tiles::forward(self, inputs, y, amx, cpu),
            Algorithm::Depthwise => in_f32(y, Self::depthwise_forward),
        }
    }

    /// `d_x`: the gradient with respect to the input, given that of the output.
    pub fn backward_input<X: Element, Y: Element>(
        &self,
        d_y: &[Y],
        weight: &[f32],
        d_x: &mut [X],
        cpu: Cpu,
    ) {
        self.check();
        assert_eq!(
            (d_y.len(), weight.len(), d_x.len()),
            (self.y_len(), self.weight_len(), self.x_len())
        );
        let in_f32 = |d_x, run: fn(&Self, &[f32], &[f32], &mut [f32], Cpu)| {
            Y::with_f32(d_y, cpu, |d_y| {
                X::write_f32(d_x, cpu, |d_x| run(self, d_y, weight, d_x, cpu));
            });
        };
        match self.algorithm(cpu) {
            Algorithm::Gemm => in_f32(d_x, Self::gemm_backward_input),
            Algorithm::Winograd => in_f32(d_x, winograd::backward_input),
            Algorithm::Bf16 => in_f32(d_x, Self::bf16_backward_input),
            #[cfg(target_arch = "x86_64")]
            Algorithm::Tiles(amx) => tiles::backward_input(self, d_y, weight, d_x, amx, cpu),
            Algorithm::Depthwise => in_f32(d_x, Self::depthwise_backward_input),
        }
    }

    /// `d_weight` and `d_bias`: the gradients with respect to the weights and the bias, given that
    /// of the output.
    ///
    /// The sums over the batch are cut into groups by the sizes alone, added in order.
    pub fn backward_weight<X: Element, Y: Element>(
        &self,
        x: &[X],
        d_y: &[Y],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
        cpu: Cpu,
    ) {
        self.check();
        assert_eq!(d_bias.len(), self.c_out);
        assert_eq!(
            (x.len(), d_y.len(), d_weight.len()),
            (self.x_len(), self.y_len(), self.weight_len())
        );
        let in_f32 = |sums: [&mut [f32]; 2], run: WeightSums| {
            let [d_weight, d_bias] = sums;
            X::with_f32(x, cpu, |x| {
                Y::with_f32(d_y, cpu, |d_y| run(self, x, d_y, d_weight, d_bias, cpu));
            });
        };
        let sums = [d_weight, d_bias];
        match self.algorithm(cpu) {
            Algorithm::Gemm => in_f32(sums, Self::gemm_backward_weight),
            Algorithm::Winograd => in_f32(sums, winograd::backward_weight),
            Algorithm::Bf16 => in_f32(sums, Self::bf16_backward_weight),
            #[cfg(target_arch = "x86_64")]
            Algorithm::Tiles(amx) => tiles::backward_weight(self, (x, d_y), sums, amx, cpu),
            Algorithm::Depthwise => in_f32(sums, Self::depthwise_backward_weight),
        }
    }

    /// Partial sums of a weight gradient over so many positions: enough for many threads, few if
    /// the weights are large or the positions few.
    fn weight_groups(&self, n_positions: usize) -> usize {
        ((1 << 21) / self.weight_len().max(1))
            .min(n_positions / 1024)
            .clamp(1, 16)
    }

    /// Output columns whose input column `ox * stride + kx - padding` lies in the image.
    fn columns(&self, kx: usize) -> std::ops::Range<usize> {
        let first = self.padding[1].saturating_sub(kx).div_ceil(self.stride);
        let end = match (self.w + self.padding[1]).checked_sub(kx + 1) {
            Some(last) => (last / self.stride + 1).min(self.out_w()),
            None => 0,
        };
        first..end.max(first)
    }
}

/// Adds the parts of `partial`, each as long as the sum, in order.
fn sum_groups(partial: &[f32], sum: &mut [f32], cpu: Cpu) {
    const TILE: usize = 1 << 12;
    let n = sum.len();
    let shared = Shared::new(sum);
    cpu.threads.for_each(n.div_ceil(TILE), |tile| {
        let range = tile * TILE..((tile + 1) * TILE).min(n);
        // SAFETY: tiles are disjoint.
        let sum = unsafe { shared.tile(range.start, range.len()) };
        sum.copy_from_slice(&partial[range.clone()]);
        for part in partial.chunks_exact(n).skip(1) {
            cpu.isa.vectorize(
                #[inline(always)]
                |_| {
                    for (sum, value) in sum.iter_mut().zip(&part[range.clone()]) {
                        *sum += value;
                    }
                },
            );
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithm_depends_on_an_image_and_the_cpu_alone() {
        for isa in crate::Isa::available() {
            for precision in [Precision::F32, Precision::Exact, Precision::Bf16] {
                let cpu = Cpu {
                    isa,
                    precision,
                    ..Cpu::best(crate::Threads::new(1))
                };
                let linear = Conv2d::linear(1, 64, 64);
                let depthwise = Conv2d {
                    groups: Groups::Depthwise,
                    ..linear
                };
                let has_tiles = isa.name() == "amx";
                let name = format!("{:?}", linear.algorithm(cpu));
                match precision {
                    Precision::Bf16 if has_tiles => assert!(name.starts_with("Tiles"), "{name}"),
                    Precision::Bf16 => assert_eq!(name, "Bf16"),
                    Precision::F32 | Precision::Exact => assert_eq!(name, "Gemm"),
                }
                assert_eq!(depthwise.algorithm(cpu), Algorithm::Depthwise);
                for n in [0, 64] {
                    for conv in [linear, depthwise] {
                        assert_eq!(Conv2d { n, ..conv }.algorithm(cpu), conv.algorithm(cpu));
                    }
                }
            }
        }
    }
}
