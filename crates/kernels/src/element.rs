//! The types of numbers between ops: f32, and bf16 where products round to it anyway.

pub use half::bf16;

use crate::bf16::round;
use crate::cpu::{Cpu, Shared};
use crate::scratch::Scratch;

/// f32 or bf16. Arithmetic is in f32: a kernel widens what it reads and rounds what it writes.
pub trait Element: Copy + Send + Sync + sealed::Sealed + 'static {
    /// The same number; exact.
    fn widen(self) -> f32;

    /// The nearest number of this type; halfway cases go to the even one.
    fn round(x: f32) -> Self;

    /// Elements by their type.
    fn view(elements: &[Self]) -> Elements<'_>;

    /// Calls `f` with elements in f32.
    fn with_f32(elements: &[Self], cpu: Cpu, f: impl FnOnce(&[f32]));

    /// Calls `f` to write elements in f32, all of them, and rounds them.
    fn write_f32(elements: &mut [Self], cpu: Cpu, f: impl FnOnce(&mut [f32]));
}

/// Elements of either type.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// Of 4 bytes each.
    F32(&'a [f32]),
    /// Of 2 bytes each.
    Bf16(&'a [bf16]),
}

/// Keeps [`Element`] to types that kernels know, and of which any bits are a number.
mod sealed {
    pub trait Sealed {}

    impl Sealed for f32 {}

    impl Sealed for super::bf16 {}
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn round(x: f32) -> Self {
        x
    }

    fn view(elements: &[Self]) -> Elements<'_> {
        Elements::F32(elements)
    }

    fn with_f32(elements: &[Self], _: Cpu, f: impl FnOnce(&[f32])) {
        f(elements);
    }

    fn write_f32(elements: &mut [Self], _: Cpu, f: impl FnOnce(&mut [f32])) {
        f(elements);
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn round(x: f32) -> Self {
        Self::from_bits((round(x).to_bits() >> 16) as u16)
    }

    fn view(elements: &[Self]) -> Elements<'_> {
        Elements::Bf16(elements)
    }

    fn with_f32(elements: &[Self], cpu: Cpu, f: impl FnOnce(&[f32])) {
        let mut wide = Scratch::new(elements.len());
        map(elements, &mut wide, Self::widen, cpu);
        f(&wide);
    }

    fn write_f32(elements: &mut [Self], cpu: Cpu, f: impl FnOnce(&mut [f32])) {
        let mut wide = Scratch::new(elements.len());
        f(&mut wide);
        map(&wide, elements, <Self as Element>::round, cpu);
    }
}

/// `y = f(x)`, element by element.
pub(crate) fn map<X: Element, Y: Element>(
    x: &[X],
    y: &mut [Y],
    f: impl Fn(X) -> Y + Sync,
    cpu: Cpu,
) {
    const TILE: usize = 1 << 14;
    assert_eq!(x.len(), y.len());
    let shared = Shared::new(y);
    cpu.threads.for_each(x.len().div_ceil(TILE), |tile| {
        let x = &x[tile * TILE..];
        let x = &x[..x.len().min(TILE)];
        // SAFETY: tiles are disjoint.
        let y = unsafe { shared.tile(tile * TILE, x.len()) };
        cpu.isa.vectorize(
            #[inline(always)]
            |_| {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = f(x);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Threads;

    #[test]
    fn numbers_of_8_bits_survive_and_others_go_to_the_nearest() {
        let cpu = Cpu::best(Threads::new(2));
        let exact: Vec<f32> = (0..40_000).map(|i| (i % 511) as f32 - 255.0).collect();
        let mut halves = vec![bf16::ZERO; exact.len()];
        map(&exact, &mut halves, bf16::round, cpu);
        bf16::with_f32(&halves, cpu, |wide| {
            for (got, x) in wide.iter().zip(&exact) {
                assert_eq!(got, x);
            }
        });
        let mut again = halves.clone();
        bf16::write_f32(&mut again, cpu, |wide| wide.copy_from_slice(&exact));
        assert_eq!(again, halves);
        for x in [1.0 + 3.0 / 256.0, f32::MAX, f32::NEG_INFINITY, -0.0] {
            assert_eq!(bf16::round(x).to_bits(), bf16::from_f32(x).to_bits());
        }
        assert!(<bf16 as Element>::round(f32::NAN).is_nan());
    }
}
