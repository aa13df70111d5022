//! PyTorch's files of weights (`.pt`, `.pth`), read and written without running a line of them.
//!
//! A file is a pickle, which is a program for a stack machine, and raw numbers: in a zip (`archive`), or one behind
//! the other (`legacy`). `pickle` interprets the few instructions that weights need and refuses all others by name;
//! `tensor` finds their values in the numbers; `write` makes zips of the same kind.

mod adam;
mod archive;
mod legacy;
mod pickle;
mod read;
mod tensor;
mod value;
mod write;

pub use adam::{Adam, Moment};
pub use read::TorchFile;
pub use tensor::TorchTensor;
pub use write::{save, save_adam};

/// Bytes of pickles in a file. The paper's model has 60 kB; a byte of a hostile one takes up to 120 of memory.
const MAX_PICKLE: u64 = 512 << 10;

/// A type of numbers that weights, or a count of steps, can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    F32,
    F64,
    F16,
    Bf16,
    I64,
}

impl Number {
    fn n_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// The start of a text out of a file, for a message: no more of it than helps, and nothing that steers a terminal.
fn quoted(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    let rest = if start.len() < text.len() { ".." } else { "" };
    format!("`{}{rest}`", start.escape_debug())
}
