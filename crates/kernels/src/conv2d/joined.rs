//! The 1×1 convolution of channels that lie in two places, read and written where they are.

use std::ops::Range;

use super::gemm::Chunk;
use super::{Algorithm, Conv2d, Inputs};
use crate::cpu::{Cpu, Shared};
use crate::gather::{Product, Rows, point_to_rows};
use crate::gemm::{ROWS, Start};
use crate::scratch::Scratch;

/// A 1×1 convolution of stride 1 whose input has the channels of a first tensor, then those of a
/// second. In f32 its results have the bits of the convolution of a copy that holds both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinedConv2d {
    whole: Conv2d,
    c_first: usize,
}

/// What [`JoinedConv2d::forward`] reads; all but `x` as of [`Inputs`].
#[derive(Debug, Clone, Copy)]
pub struct JoinedInputs<'a> {
    /// `[N, H, W, C_first]` and `[N, H, W, C_second]`.
    pub x: [&'a [f32]; 2],
    /// `[1, 1, C_first + C_second, C_out]`.
    pub weight: &'a [f32],
    /// `[C_out]`.
    pub bias: &'a [f32],
    /// `[N, H, W, C_out]`.
    pub residual: Option<&'a [f32]>,
}

impl Conv2d {
    /// The same of two inputs, the first with `c_first` of the channels; none if this is no 1×1
    /// convolution of stride 1 over all channels, or has fewer channels.
    pub fn joined(&self, c_first: usize) -> Option<JoinedConv2d> {
        let is_dense = self.groups == super::Groups::One;
        (self.is_linear() && is_dense && c_first <= self.c_in).then_some(JoinedConv2d {
            whole: *self,
            c_first,
        })
    }
}

impl JoinedConv2d {
    /// Input channels of both.
    fn channels(&self) -> [usize; 2] {
        [self.c_first, self.whole.c_in - self.c_first]
    }

    /// The convolution of each by itself.
    fn parts(&self) -> [Conv2d; 2] {
        self.channels().map(|c_in| Conv2d { c_in, ..self.whole })
    }

    fn n_positions(&self) -> usize {
        self.whole.n * self.whole.h * self.whole.w
    }

    fn check(&self, x_lens: [usize; 2], weight_len: usize, y_len: usize) {
        self.whole.check();
        let expected = self.parts().map(|part| part.x_len());
        assert_eq!(
            (x_lens, weight_len, y_len),
            (expected, self.whole.weight_len(), self.whole.y_len())
        );
    }

    /// `y = (conv(x, weight) + bias) + residual`.
    ///
    /// # Panics
    /// If a slice has another length than its size says; likewise the gradients.
    pub fn forward(&self, inputs: JoinedInputs<'_>, y: &mut [f32], cpu: Cpu) {
        let lens = inputs.x.map(<[f32]>::len);
        self.check(lens, inputs.weight.len(), y.len());
        assert_eq!(inputs.bias.len(), self.whole.c_out);
        assert!(
            inputs
                .residual
                .is_none_or(|residual| residual.len() == y.len())
        );
        match self.whole.algorithm(cpu) {
            Algorithm::Gemm => self.forward_at_once(inputs, y, cpu),
            _ => self.forward_one_by_one(inputs, y, cpu),
        }
    }

    /// One product: a sum over the first channels goes on over the second in registers.
    fn forward_at_once(&self, inputs: JoinedInputs<'_>, y: &mut [f32], cpu: Cpu) {
        let x = inputs.x;
        let into = Product {
            b: &self.whole.panels(inputs.weight, cpu),
            start: Start::Bias(inputs.bias),
            residual: inputs.residual,
            y: &Shared::new(y),
        };
        let channels = self.channels();
        let n = self.n_positions();
        let rows = Rows {
            n,
            k: &channels,
            find: |positions: Range<usize>, a: &mut [*const f32]| {
                let (first, second) = a.split_at_mut(ROWS);
                for ((x, c), a) in x.into_iter().zip(channels).zip([first, second]) {
                    point_to_rows(x, c, positions.clone(), a);
                }
                let next = positions.end..n.min(positions.end + ROWS);
                [0, 1].map(|i| &x[i][next.start * channels[i]..next.end * channels[i]])
            },
        };
        // SAFETY: each pointer is a position's channels.
        unsafe { rows.multiply(&[into], cpu) };
    }

    /// The product of the second onto that of the first.
    fn forward_one_by_one(&self, inputs: JoinedInputs<'_>, y: &mut [f32], cpu: Cpu) {
        let [first, second] = self.parts();
        let (weight_first, weight_second) = inputs.weight.split_at(first.weight_len());
        let mut sum = Scratch::new(y.len());
        let own = Inputs {
            x: inputs.x[0],
            weight: weight_first,
            bias: inputs.bias,
            residual: inputs.residual,
        };
        first.forward(own, &mut sum, cpu);
        let own = Inputs {
            x: inputs.x[1],
            weight: weight_second,
            bias: &Scratch::zeros(inputs.bias.len()),
            residual: Some(&sum),
        };
        second.forward(own, y, cpu);
    }

    /// `d_x`: the gradients with respect to both inputs, given that of the output.
    pub fn backward_input(&self, d_y: &[f32], weight: &[f32], d_x: [&mut [f32]; 2], cpu: Cpu) {
        let lens = d_x.each_ref().map(|d_x| d_x.len());
        self.check(lens, weight.len(), d_y.len());
        let parts = self.parts();
        let (weight_first, weight_second) = weight.split_at(parts[0].weight_len());
        let weights = [weight_first, weight_second];
        if self.whole.algorithm(cpu) == Algorithm::Gemm {
            let panels = [0, 1].map(|i| parts[i].turned(weights[i], cpu));
            let d_x = d_x.map(Shared::new);
            let products = [0, 1].map(|i| Product {
                b: &panels[i],
                start: Start::Zero,
                residual: None,
                y: &d_x[i],
            });
            let c_out = self.whole.c_out;
            let n = self.n_positions();
            let rows = Rows {
                n,
                k: &[c_out],
                find: |positions: Range<usize>, a: &mut [*const f32]| {
                    point_to_rows(d_y, c_out, positions.clone(), a);
                    let next = positions.end..n.min(positions.end + ROWS);
                    [&d_y[next.start * c_out..next.end * c_out], &[]]
                },
            };
            // SAFETY: each pointer is a position's channels.
            return unsafe { rows.multiply(&products, cpu) };
        }
        for ((part, weight), d_x) in parts.iter().zip(weights).zip(d_x) {
            part.backward_input(d_y, weight, d_x, cpu);
        }
    }

    /// `d_weight` and `d_bias`: the gradients with respect to the weights and the bias, given that
    /// of the output.
    pub fn backward_weight(
        &self,
        x: [&[f32]; 2],
        d_y: &[f32],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
        cpu: Cpu,
    ) {
        self.check(x.map(<[f32]>::len), d_weight.len(), d_y.len());
        assert_eq!(d_bias.len(), self.whole.c_out);
        let [first, second] = self.parts();
        if self.whole.algorithm(cpu) == Algorithm::Gemm {
            let sources = [0, 1].map(|i| (x[i], self.channels()[i]));
            let add = |chunk: Chunk<'_>| self.whole.add_linear_chunk(&sources, d_y, chunk, cpu);
            return self.whole.weight_sums(d_y, d_weight, d_bias, add, cpu);
        }
        let (d_weight_first, d_weight_second) = d_weight.split_at_mut(first.weight_len());
        second.backward_weight(x[1], d_y, d_weight_second, d_bias, cpu);
        first.backward_weight(x[0], d_y, d_weight_first, d_bias, cpu);
    }
}
