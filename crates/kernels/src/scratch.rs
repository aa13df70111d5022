//! Working memory of kernels, which outlives the call.
//!
//! Fresh pages cost more than the packing that fills them, so each thread keeps the buffers it has
//! used and lends them again. They only grow, are as many as one thread holds at a time, and are
//! never cleared: what is lent holds old numbers.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(vec![]) };
}

/// Floats of a cache line. Vectors that straddle two lines cost twice.
pub(crate) const LINE: usize = 16;

/// A borrowed buffer that starts at a cache line.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// At least `len` floats of any value: the smallest free buffer that is large enough.
    ///
    /// A thread that waits for others may run a tile of an unrelated kernel meanwhile. So a buffer
    /// is taken out of the list while it is lent, and such a tile gets another.
    pub(crate) fn new(len: usize) -> Self {
        let mut buffer = FREE
            .with_borrow_mut(|free| {
                let fits = |buffer: &Vec<f32>| buffer.len() >= len + LINE;
                let smallest = (0..free.len())
                    .filter(|&idx| fits(&free[idx]))
                    .min_by_key(|&idx| free[idx].len());
                let chosen = smallest.or((0..free.len()).max_by_key(|&idx| free[idx].len()));
                chosen.map(|idx| free.swap_remove(idx))
            })
            .unwrap_or_default();
        if buffer.len() < len + LINE {
            // Zeroed by the system page by page as it is touched, not by a pass of ours.
            drop(buffer);
            buffer = vec![0.0; len + LINE];
        }
        let bytes = buffer.as_ptr().addr().next_multiple_of(64) - buffer.as_ptr().addr();
        Self {
            start: bytes / size_of::<f32>(),
            buffer,
            len,
        }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut zeros = Self::new(len);
        zeros.fill(0.0);
        zeros
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // While a thread ends its list may be gone already.
        let _ = FREE.try_with(|free| free.borrow_mut().push(buffer));
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[self.start..][..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_lent_to_one_at_a_time_and_comes_back() {
        let first = Scratch::new(100);
        let second = Scratch::new(10);
        assert_eq!((first.len(), second.len()), (100, 10));
        assert!(first.as_ptr().addr().is_multiple_of(64));
        let addresses = [first.as_ptr(), second.as_ptr()];
        assert_ne!(addresses[0], addresses[1]);
        drop((first, second));
        // The smallest that fits, so both are used again.
        let (second, first) = (Scratch::new(9), Scratch::new(99));
        assert_eq!([first.as_ptr(), second.as_ptr()], addresses);
    }
}
