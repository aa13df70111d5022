//! CPU kernels of p2: slices of numbers in, slices of numbers out, no tensors and no gradient tape.
#![doc = include_str!("../README.md")]

pub mod adamw;
pub mod allocator;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
mod awake;
mod bf16;
mod cache;
pub mod chacha8;
pub mod conv2d;
pub mod cpu;
pub mod dropout;
pub mod element;
pub mod elementwise;
mod gather;
mod gemm;
pub mod group_norm;
mod lanes;
pub mod loss;
pub mod memory;
mod panels;
pub mod process;
pub mod reference;
pub mod resample;
mod scratch;
mod transpose;

#[cfg(target_arch = "x86_64")]
pub use amx::Amx;
pub use cpu::{Cpu, Isa, Precision, Threads};
pub use element::Element;
