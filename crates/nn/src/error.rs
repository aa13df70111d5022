//! What can go wrong in this crate.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the tensor engine failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// The sizes of a network do not fit together.
    #[error("{0}")]
    Config(String),
    /// Two parameters of one network have the same name.
    #[error("parameter `{0}` exists already")]
    ParamTwice(String),
    /// A result does not depend on a parameter.
    #[error("`{0}` has no gradient")]
    NoGradient(String),
    /// The optimizer was not given one gradient per parameter.
    #[error("{given} gradients for {needed} parameters")]
    Gradients {
        /// How many there were.
        given: usize,
        /// How many there are parameters.
        needed: usize,
    },
    /// A class label is not below the number of classes, or missing, or not wanted.
    #[error("label {label:?} does not fit a model with {n_classes} classes")]
    Label {
        /// The offending label.
        label: Option<u32>,
        /// 0 for an unconditional model.
        n_classes: usize,
    },
}
