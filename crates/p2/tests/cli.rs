//! What the program says: exit code, stdout and stderr of whole commands.

#![allow(clippy::disallowed_methods, reason = "tests write scratch files")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cli {
    /// Measuring: which numbers come out, and what is refused.
    mod bench;
    /// Where a run's values come from, and what is wrong with them.
    mod config;
    /// The lists of presets and of options.
    mod help;
    /// Runs the program and shows what came out.
    pub(crate) mod program;
    /// Weightings, as they are listed, shown and refused.
    mod weights;
}
