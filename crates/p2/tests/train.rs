//! Whole training runs through the program: interrupted, damaged, repeated, and what they leave.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::disallowed_methods, reason = "tests write scratch files")]

mod train {
    /// Models that enlarge images, and cascades of them.
    mod cascade;
    /// Classifiers of noised images.
    mod classifier;
    /// Images as noise, drawn again.
    mod codes;
    /// Two ways to say one thing, which must give the same numbers.
    mod equal;
    /// A NaN, a full disk, a damaged checkpoint.
    mod fault;
    /// Samples pushed away from a worse guess.
    mod guidance;
    /// Folders with images that cannot be used.
    mod images;
    /// Runs that begin with the weights of a model.
    mod init;
    /// Losses that learn.
    mod learning;
    /// Bounds on the likelihood of images.
    mod likelihood;
    /// Every type of loss.
    mod loss;
    /// What the program says about images, folders and runs that it cannot use.
    mod message;
    /// Every value of every option.
    mod option;
    /// Pictures and held-out losses during a run.
    mod picture;
    #[path = "../cli/program.rs"]
    pub(crate) mod program;
    /// A folder with small images, and runs in it.
    pub(crate) mod project;
    /// Killed runs end with the bits of a run that was left in peace.
    mod resume;
    /// Drawn images, which depend on the model, the seed and their number alone.
    mod sample;
    /// Ctrl-C and termination.
    mod signal;
    /// Every weighting.
    mod weighting;
}
