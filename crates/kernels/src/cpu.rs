//! Which instructions and how many threads the kernels may use.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::awake;

use pulp::{Simd, WithSimd};

/// What a kernel runs on; passed by value to every one.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    /// The instruction set.
    pub isa: Isa,
    /// The number of threads.
    pub threads: Threads,
    /// How accurate products have to be.
    pub precision: Precision,
}

impl Cpu {
    /// The best instruction set of this machine with `threads`, in [`Precision::F32`].
    pub fn best(threads: Threads) -> Self {
        Self {
            isa: Isa::best(),
            threads,
            precision: Precision::F32,
        }
    }

    /// The same, with products of another precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Whether linear layers, attention and convolutions that keep the size of images multiply bf16 in
    /// tile registers: they would round f32 to it.
    pub fn multiplies_bf16(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let has_tiles = crate::amx::Amx::of(self.isa).is_some();
        #[cfg(not(target_arch = "x86_64"))]
        let has_tiles = false;
        has_tiles && self.precision == Precision::Bf16
    }

    /// The name of the instruction set that decides the bits of results.
    ///
    /// Tile registers multiply in [`Precision::Bf16`] alone; without it they are AVX-512.
    pub fn numerics(self) -> &'static str {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(simd, _) if self.precision != Precision::Bf16 => Isa::Avx512(simd).name(),
            isa => isa.name(),
        }
    }

    /// The same on the calling thread alone: what a tile of a kernel may use.
    pub(crate) fn one_thread(self) -> Self {
        Self {
            threads: Threads::new(1),
            ..self
        }
    }
}

/// Which algorithms a kernel may choose; sums are f32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32, where 3×3 convolutions may take a faster algorithm that rounds more.
    #[default]
    F32,
    /// f32, every sum one chain of multiply-adds.
    Exact,
    /// As `F32`, but linear layers and attention multiply numbers rounded to bf16, and so do
    /// convolutions on tile registers.
    Bf16,
}

/// An instruction set that this machine has.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever the compiler was told to assume.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// AVX-512 (F, BW, CD, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// The same, with bf16 tile registers (Intel AMX) for products.
    #[cfg(target_arch = "x86_64")]
    Amx(pulp::x86::V4, crate::amx::Amx),
    /// Arm NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
}

impl Isa {
    /// All instruction sets of this machine, from slow to fast.
    pub fn available() -> Vec<Self> {
        let mut isas = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            isas.extend(pulp::x86::V3::try_new().map(Self::Avx2));
            isas.extend(pulp::x86::V4::try_new().map(Self::Avx512));
            let amx = pulp::x86::V4::try_new().zip(crate::amx::Amx::detect());
            isas.extend(amx.map(|(simd, amx)| Self::Amx(simd, amx)));
        }
        #[cfg(target_arch = "aarch64")]
        isas.extend(pulp::aarch64::Neon::try_new().map(Self::Neon));
        isas
    }

    /// The fastest instruction set of this machine.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// The instruction set of this machine that is called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `portable`, `avx2`, `avx512`, `amx` or `neon`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) => "amx",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
        }
    }

    /// Runs `op` compiled for this instruction set.
    #[inline]
    pub(crate) fn dispatch<Op: WithSimd>(self, op: Op) -> Op::Output {
        match self {
            Self::Portable => Simd::vectorize(pulp::Scalar, op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => Simd::vectorize(simd, op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) | Self::Amx(simd, _) => Simd::vectorize(simd, op),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => Simd::vectorize(simd, op),
        }
    }

    /// Runs a closure whose plain loops the compiler vectorizes for this instruction set.
    #[inline]
    pub(crate) fn vectorize<F: FnOnce(MulAdd)>(self, f: F) {
        struct Loops<F>(F);
        impl<F: FnOnce(MulAdd)> WithSimd for Loops<F> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) {
                (self.0)(MulAdd {
                    is_fused: S::F32_LANES > 1,
                });
            }
        }
        self.dispatch(Loops(f));
    }
}

/// How plain loops multiply and add: in one instruction, which rounds once, where there is one.
///
/// The compiler never fuses the two by itself, and calls a slow function where it is told to
/// without the instruction.
#[derive(Clone, Copy)]
pub(crate) struct MulAdd {
    /// A constant in each compiled loop.
    is_fused: bool,
}

impl MulAdd {
    /// `a * b + c`.
    #[inline(always)]
    pub(crate) fn run(self, a: f32, b: f32, c: f32) -> f32 {
        if self.is_fused {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many threads share a kernel's tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads(NonZeroUsize);

impl Threads {
    /// `n` threads; 0 counts as 1.
    pub fn new(n: usize) -> Self {
        Self(NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN))
    }

    /// The number of threads.
    pub fn count(self) -> usize {
        self.0.get()
    }

    /// These, or one if so many multiply-adds take less time than starting another.
    pub(crate) fn for_products(self, n_products: usize) -> Self {
        if n_products < 1 << 22 {
            Self::new(1)
        } else {
            self
        }
    }

    /// Calls `f(0)` to `f(n_tiles - 1)`, each once, on the current rayon pool.
    ///
    /// Which thread runs a tile, and when, is open: a tile's result must not depend on it. But each
    /// thread begins with its own share, the same part of the images in every op, so that it finds in
    /// its caches what it wrote there; then it helps the others.
    pub(crate) fn for_each(self, n_tiles: usize, f: impl Fn(usize) + Sync) {
        let n_workers = self.count().min(n_tiles);
        if n_workers <= 1 {
            return (0..n_tiles).for_each(f);
        }
        let share = |worker: usize| worker * n_tiles / n_workers;
        let next: Vec<_> = (0..n_workers)
            .map(|worker| OwnLine(AtomicUsize::new(share(worker))))
            .collect();
        let n_done = AtomicUsize::new(0);
        let work = || {
            let own = rayon::current_thread_index().unwrap_or(0);
            for worker in (own..own + n_workers).map(|worker| worker % n_workers) {
                loop {
                    let tile = next[worker].0.fetch_add(1, Ordering::Relaxed);
                    if tile >= share(worker + 1) {
                        break;
                    }
                    f(tile);
                    n_done.fetch_add(1, Ordering::Release);
                }
            }
        };
        let stays_awake = awake::has_core_per_thread();
        rayon::scope(|scope| {
            for _ in 1..n_workers {
                scope.spawn(|_| {
                    work();
                    if stays_awake {
                        awake::look_for_work();
                    }
                });
            }
            work();
            if stays_awake {
                awake::wait_for(|| n_done.load(Ordering::Acquire) == n_tiles);
            }
        });
    }
}

/// A counter in a cache line of its own: threads count without waiting for each other.
#[repr(align(128))]
struct OwnLine(AtomicUsize);

/// A buffer whose tiles are written by different threads.
///
/// The one place where kernels share mutable memory.
pub(crate) struct Shared<'a, T = f32> {
    data: *mut T,
    len: usize,
    lifetime: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: every access goes through `tile`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            lifetime: std::marker::PhantomData,
        }
    }

    /// The elements `start .. start + len`.
    ///
    /// # Safety
    /// While the slice lives no other one may overlap it.
    #[expect(
        clippy::mut_from_ref,
        reason = "the caller promises that tiles are disjoint"
    )]
    pub(crate) unsafe fn tile(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(start, len), len) }
    }

    /// Where the elements `start .. start + len` are, for those who write some of them.
    #[inline(always)]
    pub(crate) fn pointer(&self, start: usize, len: usize) -> *mut T {
        assert!(
            start + len <= self.len,
            "tile {start}+{len} of {}",
            self.len
        );
        self.data.wrapping_add(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_runs_once_whatever_the_number_of_threads() {
        for n_threads in [0, 1, 2, 3, 8] {
            for n_tiles in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..n_tiles).map(|_| AtomicUsize::new(0)).collect();
                Threads::new(n_threads).for_each(n_tiles, |tile| {
                    counts[tile].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts
                        .iter()
                        .all(|count| count.load(Ordering::Relaxed) == 1)
                );
            }
        }
    }

    #[test]
    fn an_instruction_set_is_found_by_its_name_or_not_at_all() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(isa.name()).map(Isa::name), Some(isa.name()));
        }
        assert!(Isa::from_name("sse9").is_none());
    }
}
