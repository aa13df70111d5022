//! The constants of formulas, and the ranges in which they mean something.

use crate::{Error, Result};

/// Of buckets, features or losses; beyond it, a typing error is likelier than a wish.
const MAX_COUNT: usize = 1 << 16;

/// A constant, and whether it may be what it is.
pub(crate) struct Constant {
    name: &'static str,
    value: f64,
    is_allowed: bool,
    /// What is allowed, in words.
    expected: &'static str,
}

impl Constant {
    /// Any finite number.
    pub(crate) fn any(name: &'static str, value: f64) -> Self {
        Self::that(name, value, value.is_finite(), "a finite number")
    }

    /// 0 or more.
    pub(crate) fn size(name: &'static str, value: f64) -> Self {
        let is_allowed = value >= 0.0 && value.is_finite();
        Self::that(name, value, is_allowed, "a finite number of at least 0")
    }

    pub(crate) fn positive(name: &'static str, value: f64) -> Self {
        let is_allowed = value > 0.0 && value.is_finite();
        Self::that(name, value, is_allowed, "a finite number above 0")
    }

    /// A whole number of at least `least`, which `expected` says in words.
    pub(crate) fn count(
        name: &'static str,
        value: usize,
        least: usize,
        expected: &'static str,
    ) -> Self {
        let is_allowed = (least..=MAX_COUNT).contains(&value);
        Self::that(name, value as f64, is_allowed, expected)
    }

    /// From 0 to 1.
    pub(crate) fn share(name: &'static str, value: f64) -> Self {
        let is_allowed = (0.0..=1.0).contains(&value);
        Self::that(name, value, is_allowed, "a number in [0, 1]")
    }

    /// A range of its own.
    pub(crate) fn that(
        name: &'static str,
        value: f64,
        is_allowed: bool,
        expected: &'static str,
    ) -> Self {
        Self {
            name,
            value,
            is_allowed,
            expected,
        }
    }
}

/// Refuses the first constant outside of its range.
pub(crate) fn check(constants: impl IntoIterator<Item = Constant>) -> Result<()> {
    let refused = constants.into_iter().find(|constant| !constant.is_allowed);
    refused.map_or(Ok(()), |constant| {
        Err(Error::Constant {
            name: constant.name,
            value: constant.value,
            expected: constant.expected,
        })
    })
}
