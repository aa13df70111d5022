//! The linear layer with inputs rounded to bf16 and f32 sums.

use super::gemm::Chunk;
use super::{Conv2d, Inputs};
#[cfg(target_arch = "x86_64")]
use crate::bf16::avx512::{Bf16, Ends};
use crate::bf16::rounded;
use crate::cpu::Cpu;
#[cfg(target_arch = "x86_64")]
use crate::gemm::{Start, Sum};

impl Conv2d {
    /// See [`Conv2d::forward`].
    pub(super) fn bf16_forward(&self, inputs: Inputs<'_>, y: &mut [f32], cpu: Cpu) {
        #[cfg(target_arch = "x86_64")]
        if let Some(bf16) = Bf16::of(cpu.isa) {
            let row = |i: usize| &inputs.weight[i * self.c_out..][..self.c_out];
            let weight = bf16.pack_rows(self.c_in, self.c_out, row);
            let ends = Ends {
                start: Start::Bias(inputs.bias),
                residual: inputs.residual,
                sum: Sum::Set,
            };
            return bf16.multiply(inputs.x, &weight, ends, y, cpu);
        }
        let inputs = Inputs {
            x: &rounded(inputs.x, cpu),
            weight: &rounded(inputs.weight, cpu),
            ..inputs
        };
        self.gemm_forward(inputs, y, cpu);
    }

    /// See [`Conv2d::backward_input`].
    pub(super) fn bf16_backward_input(
        &self,
        d_y: &[f32],
        weight: &[f32],
        d_x: &mut [f32],
        cpu: Cpu,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(bf16) = Bf16::of(cpu.isa) {
            let column = |i: usize| &weight[i * self.c_out..][..self.c_out];
            let weight = bf16.pack_columns(self.c_out, self.c_in, column, cpu.threads);
            let ends = Ends {
                start: Start::Zero,
                residual: None,
                sum: Sum::Set,
            };
            return bf16.multiply(d_y, &weight, ends, d_x, cpu);
        }
        self.gemm_backward_input(&rounded(d_y, cpu), &rounded(weight, cpu), d_x, cpu);
    }

    /// See [`Conv2d::backward_weight`].
    pub(super) fn bf16_backward_weight(
        &self,
        x: &[f32],
        d_y: &[f32],
        d_weight: &mut [f32],
        d_bias: &mut [f32],
        cpu: Cpu,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(bf16) = Bf16::of(cpu.isa) {
            let add = |mut chunk: Chunk<'_>| {
                let (first, n) = (chunk.positions.start, chunk.positions.len());
                let channels = chunk.channels.clone();
                let row = |i: usize| &x[(first + i) * self.c_in..][channels.clone()];
                let a = bf16.pack_rows(n, channels.len(), row);
                let row = |i: usize| &d_y[(first + i) * self.c_out..][..self.c_out];
                let b = bf16.pack_rows(n, self.c_out, row);
                bf16.outer_products(&a, &b, chunk.sum, chunk.d_weight(self, 0));
            };
            return self.weight_sums(d_y, d_weight, d_bias, add, cpu);
        }
        let (x, rounded_d_y) = (rounded(x, cpu), rounded(d_y, cpu));
        let add = |chunk: Chunk<'_>| self.add_chunk(&x, &rounded_d_y, chunk, cpu);
        self.weight_sums(d_y, d_weight, d_bias, add, cpu);
    }
}
