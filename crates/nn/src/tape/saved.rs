//! What a gradient needs of a value: the value, or how to compute it again.

use std::rc::Rc;

use candle_core::Tensor;

use crate::Result;

/// Computes a value again.
pub(super) type Recipe = dyn Fn() -> Result<Tensor>;

/// A value for the backward pass.
pub(crate) enum Saved {
    Kept(Tensor),
    Recipe(Rc<Recipe>),
}

impl Saved {
    pub(crate) fn get(&self) -> Result<Tensor> {
        match self {
            Self::Kept(value) => Ok(value.clone()),
            Self::Recipe(recipe) => recipe(),
        }
    }
}
