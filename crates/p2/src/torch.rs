//! PyTorch's files of weights (`.pt`, `.pth`), read and written without running a line of them.
//!
//! A file is a zip of a pickle, which is a program for a stack machine, and of raw numbers. `pickle` interprets the
//! few instructions that weights need and refuses all others by name; `read` finds the numbers; `write` makes the
//! same kind of file.

mod pickle;
mod read;
mod write;

pub use read::{TorchFile, TorchTensor};
pub use write::save;

/// PyTorch's names of the types of numbers, and their sizes in bytes.
const STORAGES: [(&str, Number); 4] = [
    ("FloatStorage", Number::F32),
    ("DoubleStorage", Number::F64),
    ("HalfStorage", Number::F16),
    ("BFloat16Storage", Number::Bf16),
];

/// A type of numbers that weights can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    F32,
    F64,
    F16,
    Bf16,
}

impl Number {
    fn n_bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}
