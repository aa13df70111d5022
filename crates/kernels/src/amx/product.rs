//! A block of sums in registers: two by two tiles.

use std::arch::asm;

use super::{Engine, Registers, SIDE};
use crate::gemm::Sum;

/// Rows and columns of a block.
pub(crate) const BLOCK: usize = 2 * SIDE;

/// Terms of a sum that one step adds.
pub(crate) const STEP: usize = 2 * SIDE;

/// One side of a product: tiles of [`SIDE`] rows of 64 bytes. Distances are in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Side<'a> {
    /// Packed pairs, from the first row of the first tile on.
    pub(crate) pairs: &'a [f32],
    /// From a row to the next.
    pub(crate) row: usize,
    /// From the first tile to the second.
    pub(crate) next: usize,
}

impl Side<'_> {
    /// Whether both tiles of a step at `offset` lie in the memory, and no row crosses a cache line.
    fn holds(&self, offset: usize) -> bool {
        let last = offset + self.next + (SIDE - 1) * self.row + 64;
        let aligned = [self.pairs.as_ptr().addr(), offset, self.row, self.next];
        last <= size_of_val(self.pairs) && aligned.iter().all(|x| x.is_multiple_of(64))
    }
}

/// `c[i][j] = sum over steps and their terms of a[i][term] * b[term][j]`.
pub(crate) struct Block<'a> {
    /// Rows of pairs along the sum.
    pub(crate) a: Side<'a>,
    /// Where the tiles of each step are in `a`, in bytes.
    pub(crate) a_steps: &'a Steps,
    /// Rows of columns, each a pair along the sum; consecutive steps follow each other.
    pub(crate) b: Side<'a>,
    pub(crate) sum: Sum,
}

/// Byte offsets of steps.
pub(crate) struct Steps {
    /// Ends with [`END`].
    offsets: Vec<usize>,
    max: usize,
}

/// What stands behind the last offset.
const END: usize = usize::MAX;

impl Steps {
    pub(crate) fn new(offsets: impl Iterator<Item = usize>) -> Self {
        let mut offsets: Vec<_> = offsets.collect();
        let max = offsets.iter().copied().max().unwrap_or(0);
        offsets.push(END);
        Self { offsets, max }
    }

    fn count(&self) -> usize {
        self.offsets.len() - 1
    }
}

/// From the tiles of one step to those of the next, where they follow each other, in bytes.
pub(crate) const STEP_BYTES: usize = 2 * SIDE * 64;

impl Registers {
    /// Computes a block into `c`, [`BLOCK`] rows of as many sums.
    ///
    /// Each sum is one chain over its steps, the same for any other content of the block.
    pub(crate) fn multiply(&self, block: &Block<'_>, c: &mut [f32]) {
        assert_eq!(c.len(), BLOCK * BLOCK);
        let n_steps = block.a_steps.count();
        if n_steps > 0 {
            let last_b = (n_steps - 1) * STEP_BYTES;
            assert!(block.a.holds(block.a_steps.max));
            assert!(block.b.holds(last_b));
        }
        match self.engine {
            // SAFETY: all tiles are in memory by the assertions, the registers are ready.
            Engine::Registers => unsafe { add(block, c) },
            #[cfg(test)]
            Engine::Emulated => emulated::add(block, c),
        }
    }
}

/// Adds the products of all steps.
///
/// # Safety
/// All tiles of all steps must be in memory, and the registers ready.
unsafe fn add(block: &Block<'_>, c: &mut [f32]) {
    // SAFETY: reads tiles that are there by contract, and the block at `c`, which it writes.
    unsafe {
        asm!(
            "test {tile}, {tile}",
            "jnz 4f",
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "jmp 2f",
            "4:",
            "tileloadd tmm0, [{c} + {stride}]",
            "tileloadd tmm1, [{c} + {stride} + 64]",
            "tileloadd tmm2, [{c} + {stride} + 2048]",
            "tileloadd tmm3, [{c} + {stride} + 2112]",
            "2:",
            "mov {tile}, [{steps}]",
            "cmp {tile}, -1",
            "je 3f",
            "add {tile}, {a}",
            "tileloadd tmm4, [{tile} + {a_row}]",
            "tileloadd tmm6, [{b} + {b_row}]",
            "add {tile}, {a_next}",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{tile} + {a_row}]",
            "add {b}, {b_next}",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b} + {b_row}]",
            "sub {b}, {b_next}",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {b}, {step}",
            "add {steps}, 8",
            "jmp 2b",
            "3:",
            "tilestored [{c} + {stride}], tmm0",
            "tilestored [{c} + {stride} + 64], tmm1",
            "tilestored [{c} + {stride} + 2048], tmm2",
            "tilestored [{c} + {stride} + 2112], tmm3",
            tile = inout(reg) usize::from(block.sum == Sum::Add) => _,
            steps = inout(reg) block.a_steps.offsets.as_ptr() => _,
            a = in(reg) block.a.pairs.as_ptr(),
            a_row = in(reg) block.a.row,
            a_next = in(reg) block.a.next,
            b = inout(reg) block.b.pairs.as_ptr() => _,
            b_row = in(reg) block.b.row,
            b_next = in(reg) block.b.next,
            step = const STEP_BYTES,
            c = in(reg) c.as_mut_ptr(),
            stride = in(reg) 4 * BLOCK,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod emulated {
    use super::{BLOCK, Block, SIDE, STEP_BYTES, Side, Sum};

    /// The two numbers of the pair in a column of a row of one of the two tiles at `offset`.
    fn pair(side: &Side<'_>, offset: usize, tile: usize, [row, col]: [usize; 2]) -> [f32; 2] {
        let bytes = offset + tile * side.next + row * side.row;
        let bits = side.pairs[bytes / 4 + col].to_bits();
        [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
    }

    pub(super) fn add(block: &Block<'_>, c: &mut [f32]) {
        if block.sum == Sum::Set {
            c.fill(0.0);
        }
        for step in 0..block.a_steps.count() {
            let (a_at, b_at) = (block.a_steps.offsets[step], step * STEP_BYTES);
            for (i, row) in c.chunks_exact_mut(BLOCK).enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    for k in 0..SIDE {
                        let a = pair(&block.a, a_at, i / SIDE, [i % SIDE, k]);
                        let b = pair(&block.b, b_at, j / SIDE, [k, j % SIDE]);
                        *sum += a[0] * b[0] + a[1] * b[1];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::Amx;
    use crate::scratch::Scratch;

    /// Pairs of small whole numbers, whose sums no order of additions can round.
    fn pairs(len: usize, seed: usize) -> Scratch {
        let mut pairs = Scratch::new(len);
        for (i, pair) in pairs.iter_mut().enumerate() {
            let number = |i: usize| ((i * 7919 + seed) % 17) as f32 - 8.0;
            let (first, second) = (number(2 * i), number(2 * i + 1));
            *pair = f32::from_bits(first.to_bits() >> 16 | second.to_bits());
        }
        pairs
    }

    #[test]
    fn registers_do_what_their_emulation_does() {
        let (a, b) = (pairs(8192, 1), pairs(8192, 2));
        let steps = Steps::new([192, 0, 640].into_iter());
        let none = Steps::new([].into_iter());
        let a = Side {
            pairs: &a,
            row: 320,
            next: 16 * 320,
        };
        let interleaved = Side {
            pairs: &b,
            row: 128,
            next: 64,
        };
        let consecutive = Side {
            pairs: &b,
            row: 64,
            next: 1024,
        };
        for b in [interleaved, consecutive] {
            for (a_steps, sum) in [(&steps, Sum::Set), (&steps, Sum::Add), (&none, Sum::Set)] {
                let block = Block { a, a_steps, b, sum };
                let mut results = vec![];
                for amx in Amx::detect().into_iter().chain(Amx::for_tests()) {
                    let mut c = Scratch::new(BLOCK * BLOCK);
                    c.fill(3.0);
                    amx.registers().multiply(&block, &mut c);
                    results.push(c.to_vec());
                }
                for result in &results {
                    assert!(*result == results[0], "{b:?}");
                    assert!(a_steps.count() == 0 || result.iter().any(|&c| c.abs() > 100.0));
                }
            }
        }
    }

    #[test]
    fn tiles_must_lie_in_their_memory_at_cache_lines() {
        let pairs = Scratch::zeros(2048);
        let side = Side {
            pairs: &pairs,
            row: 64,
            next: 1024,
        };
        assert!(side.holds(8192 - 2048));
        assert!(!side.holds(8192 - 2048 + 64));
        assert!(!side.holds(32));
        assert!(!Side { row: 96, ..side }.holds(0));
    }
}
