//! Memory for results.

use crate::element::Element;

/// A vector of `len` elements that hold anything, for results that are written as a whole.
///
/// Filling them with zeros first would pass over the memory twice.
#[expect(
    clippy::uninit_vec,
    reason = "every kernel writes its whole result before it is read"
)]
pub fn unfilled<T: Element>(len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity suffices, and any bits are an element.
    unsafe {
        values.set_len(len);
    }
    values
}
