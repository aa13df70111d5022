//! Working memory of a kernel, kept by each thread from one call to the next.
//!
//! Fresh pages cost more than the packing that is written to them.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers that a thread keeps: more than a kernel holds at a time.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers that were left by whoever had them before.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// `len` numbers of any value.
    pub(crate) fn new(len: usize) -> Self {
        let kept = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            let fitting = free
                .iter()
                .enumerate()
                .filter(|(_, buffer)| buffer.len() >= len);
            let smallest = fitting
                .min_by_key(|(_, buffer)| buffer.len())
                .map(|(i, _)| i);
            smallest.map(|i| free.swap_remove(i))
        });
        let buffer = kept.ok().flatten().unwrap_or_else(|| vec![0.0; len]);
        Self { buffer, len }
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
        // Fails in a thread that ends, which needs no buffer any more.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            free.push(buffer);
            if free.len() > KEPT {
                let smallest = free
                    .iter()
                    .enumerate()
                    .min_by_key(|(_, buffer)| buffer.len());
                if let Some((i, _)) = smallest {
                    free.swap_remove(i);
                }
            }
        });
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_its_numbers_and_the_length_asked_for() {
        let mut first = Scratch::new(100);
        first.fill(7.0);
        drop(first);
        let (second, third) = (Scratch::new(60), Scratch::new(60));
        assert_eq!(*second, [7.0; 60]);
        assert_eq!(*third, [0.0; 60]);
        assert!(Scratch::new(0).is_empty());
    }
}
