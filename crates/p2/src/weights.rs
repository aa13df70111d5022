//! Weightings, shown: which there are, and what each of them minimizes.

pub mod catalog;
pub mod figure;
pub mod report;
pub mod spec;
