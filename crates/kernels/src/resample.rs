//! Halving and doubling an image: 2×2 average pooling and nearest-neighbour upsampling.
//!
//! Each is, up to a factor of 4, the other's gradient.

use crate::cpu::{Cpu, Shared};
use crate::element::Element;

/// Sizes of the larger image, `[N, H, W, C]` with even H and W.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resample {
    /// Images.
    pub n: usize,
    /// Rows of the larger image.
    pub h: usize,
    /// Columns of the larger image.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Resample {
    /// `small = factor * (sum of each 2×2 square of large)`: pooling with 1/4, and with 1 the
    /// gradient of [`Resample::spread`] with 1.
    pub fn gather<X: Element>(&self, large: &[X], factor: f32, small: &mut [X], cpu: Cpu) {
        let (width, small_width) = self.check(large.len(), small.len());
        let shared = Shared::new(small);
        cpu.threads.for_each(self.n * self.h / 2, |row| {
            let (top, bottom) = large[2 * row * width..][..2 * width].split_at(width);
            // SAFETY: rows are disjoint.
            let small = unsafe { shared.tile(row * small_width, small_width) };
            cpu.isa.vectorize(
                #[inline(always)]
                |_| {
                    let pairs = top
                        .chunks_exact(2 * self.c)
                        .zip(bottom.chunks_exact(2 * self.c));
                    for (small, (top, bottom)) in small.chunks_exact_mut(self.c).zip(pairs) {
                        for c in 0..self.c {
                            let top = top[c].widen() + top[c + self.c].widen();
                            let bottom = bottom[c].widen() + bottom[c + self.c].widen();
                            small[c] = X::round((top + bottom) * factor);
                        }
                    }
                },
            );
        });
    }

    /// `large = factor * small`, each element four times: upsampling with 1, and with 1/4 the
    /// gradient of pooling.
    pub fn spread<X: Element>(&self, small: &[X], factor: f32, large: &mut [X], cpu: Cpu) {
        let (width, small_width) = self.check(large.len(), small.len());
        let shared = Shared::new(large);
        cpu.threads.for_each(self.n * self.h / 2, |row| {
            let small = &small[row * small_width..][..small_width];
            // SAFETY: pairs of rows are disjoint.
            let large = unsafe { shared.tile(2 * row * width, 2 * width) };
            let (top, bottom) = large.split_at_mut(width);
            cpu.isa.vectorize(
                #[inline(always)]
                |_| {
                    for (top, small) in top
                        .chunks_exact_mut(2 * self.c)
                        .zip(small.chunks_exact(self.c))
                    {
                        for c in 0..self.c {
                            let value = X::round(small[c].widen() * factor);
                            top[c] = value;
                            top[c + self.c] = value;
                        }
                    }
                },
            );
            bottom.copy_from_slice(top);
        });
    }

    fn check(&self, large: usize, small: usize) -> (usize, usize) {
        assert!(
            self.h.is_multiple_of(2) && self.w.is_multiple_of(2),
            "odd size {self:?}"
        );
        assert_eq!(large, self.n * self.h * self.w * self.c);
        assert_eq!(small * 4, large);
        assert!(self.c > 0);
        (self.w * self.c, self.w / 2 * self.c)
    }
}
