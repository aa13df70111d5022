//! Memory for results.

/// A vector of `len` elements that hold anything, for results that are written as a whole.
///
/// Filling them with zeros first would pass over the memory twice.
#[expect(
    clippy::uninit_vec,
    reason = "every kernel writes its whole result before it is read"
)]
pub fn unfilled(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity suffices, and any bits are an f32.
    unsafe {
        values.set_len(len);
    }
    values
}
