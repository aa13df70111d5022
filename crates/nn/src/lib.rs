//! Differentiable channels-last ops on candle tensors, layers and a U-Net made of them, an optimizer.
#![doc = include_str!("../README.md")]

pub mod adamw;
pub mod classifier;
mod error;
pub mod layer;
pub mod op;
pub mod params;
pub mod tape;
mod uncertainty;
pub mod unet;

pub use adamw::AdamW;
pub use classifier::Classifier;
pub use error::Error;
pub use p2_kernels::{Cpu, Isa, Precision, Threads};
pub use params::{Init, Initializer, Params};
pub use tape::{Gradients, Node, Recompute, Tape};
pub use uncertainty::Uncertainty;
pub use unet::{UNet, UNetConfig};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
