//! Differentiable channels-last ops on candle tensors, the ADM U-Net made of them, and its optimizer.
//!
//! Image tensors are `[N, H, W, C]`, f32.
//! Nothing here knows of diffusion, of files or of random numbers: initial values and dropout
//! masks come from the caller.

pub mod adamw;
mod error;
pub mod layer;
pub mod op;
pub mod params;
pub mod unet;

pub use adamw::AdamW;
pub use error::Error;
pub use p2_kernels::{Cpu, Isa, Threads};
pub use params::{Init, Initializer, Params};
pub use unet::{UNet, UNetConfig};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;
