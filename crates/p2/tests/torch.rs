//! Files of PyTorch: read, written, and refused where they are hostile.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "tests write scratch files")]

mod torch {
    /// Weights there and back.
    mod convert;
    /// Files that want to do harm.
    mod hostile;
    /// Hostile files in the container before PyTorch 1.6.
    mod hostile_legacy;
    /// Which network weights are of, where nobody says it.
    mod network;
    /// Optimizers there and back.
    mod optimizer;
    /// The program, and the files that PyTorch wrote.
    mod program;
}
