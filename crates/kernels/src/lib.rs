//! CPU kernels of p2: slices of f32 in, slices of f32 out, no tensors and no gradient tape.
//!
//! Images are `[N, H, W, C]` with channels contiguous.
//! Every kernel has a naive twin in [`reference`] that the tests hold it to.
//! Work is cut into fixed tiles whose partial sums are added in a fixed order, so the number of
//! threads changes no bit of any result; the forward result of one image moreover does not depend
//! on the batch it stands in.

pub mod adamw;
pub mod attention;
pub mod conv2d;
pub mod cpu;
pub mod elementwise;
mod gemm;
pub mod group_norm;
pub mod process;
pub mod reference;
pub mod resample;

pub use cpu::{Cpu, Isa, Threads};
