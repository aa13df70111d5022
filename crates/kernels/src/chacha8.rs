//! Draws of the ChaCha8 generator compared with a threshold, as many blocks at once as a register has lanes.
//!
//! A block depends on the key and its number alone, so any piece of a sequence can be had by itself.
//! What the key is made of is the caller's business.

use pulp::bytemuck::cast_slice;
use pulp::{Simd, WithSimd};

use crate::cpu::Isa;

/// Draws of one block: 16 words, two to a draw.
pub const DRAWS_PER_BLOCK: usize = 8;

/// Which draws of a generator are below a threshold: bit i of `below[b]` says it of draw i of block
/// `first_block + b`.
///
/// A draw is the 64 bits of the next two words, the low one first, as `next_u64` has it in `rand_chacha`;
/// so it is there for a generator of the same key on stream 0.
///
/// # Source
/// Bernstein 2008, "ChaCha, a variant of Salsa20".
pub fn draws_below(threshold: u64, key: &[u32; 8], first_block: u64, below: &mut [u8], isa: Isa) {
    isa.dispatch(DrawsBelow {
        threshold,
        key,
        first_block,
        below,
    });
}

struct DrawsBelow<'a> {
    threshold: u64,
    key: &'a [u32; 8],
    first_block: u64,
    below: &'a mut [u8],
}

impl WithSimd for DrawsBelow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut block = self.first_block;
        for below in self.below.chunks_mut(S::U32_LANES) {
            let words = blocks(simd, self.key, block);
            let bits = [bits_below(simd, self.threshold, &words)];
            for (byte, bits) in below.iter_mut().zip(cast_slice::<_, u32>(&bits)) {
                *byte = *bits as u8;
            }
            block = block.wrapping_add(S::U32_LANES as u64);
        }
    }
}

/// Bit i of a lane: whether draw i of its block is below the threshold.
#[inline(always)]
fn bits_below<S: Simd>(simd: S, threshold: u64, words: &[S::u32s; 16]) -> S::u32s {
    let threshold_low = simd.splat_u32s(threshold as u32);
    let threshold_high = simd.splat_u32s((threshold >> 32) as u32);
    let zero = simd.splat_u32s(0);
    let mut bits = zero;
    for draw in 0..DRAWS_PER_BLOCK {
        let [low, high] = [words[2 * draw], words[2 * draw + 1]];
        let is_below = simd.or_m32s(
            simd.less_than_u32s(high, threshold_high),
            simd.and_m32s(
                simd.equal_u32s(high, threshold_high),
                simd.less_than_u32s(low, threshold_low),
            ),
        );
        let bit = simd.splat_u32s(1 << draw);
        bits = simd.or_u32s(bits, simd.select_u32s(is_below, bit, zero));
    }
    bits
}

/// The words of block `first` in lane 0, of the next one in lane 1, and so on.
#[inline(always)]
fn blocks<S: Simd>(simd: S, key: &[u32; 8], first: u64) -> [S::u32s; 16] {
    let splat = |word| simd.splat_u32s(word);
    let [low, high] = counters(simd, first);
    let start = [
        splat(0x6170_7865), // "expand 32-byte k"
        splat(0x3320_646e),
        splat(0x7962_2d32),
        splat(0x6b20_6574),
        splat(key[0]),
        splat(key[1]),
        splat(key[2]),
        splat(key[3]),
        splat(key[4]),
        splat(key[5]),
        splat(key[6]),
        splat(key[7]),
        low,
        high,
        splat(0), // the stream
        splat(0),
    ];
    let mut words = start;
    for _ in 0..4 {
        words = double_round(simd, words);
    }
    for (word, start) in words.iter_mut().zip(start) {
        *word = simd.add_u32s(*word, start);
    }
    words
}

/// The numbers of successive blocks, their low words and their high words.
#[inline(always)]
fn counters<S: Simd>(simd: S, first: u64) -> [S::u32s; 2] {
    const LANES: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let lanes = S::as_simd_u32s(&LANES).0[0];
    let first_low = simd.splat_u32s(first as u32);
    let first_high = (first >> 32) as u32;
    let low = simd.add_u32s(first_low, lanes);
    let high = simd.select_u32s(
        simd.less_than_u32s(low, first_low),
        simd.splat_u32s(first_high.wrapping_add(1)),
        simd.splat_u32s(first_high),
    );
    [low, high]
}

/// A round of columns and one of diagonals.
#[inline(always)]
fn double_round<S: Simd>(simd: S, words: [S::u32s; 16]) -> [S::u32s; 16] {
    let [
        a0,
        a1,
        a2,
        a3,
        b0,
        b1,
        b2,
        b3,
        c0,
        c1,
        c2,
        c3,
        d0,
        d1,
        d2,
        d3,
    ] = words;
    let [a0, b0, c0, d0] = quarter_round(simd, [a0, b0, c0, d0]);
    let [a1, b1, c1, d1] = quarter_round(simd, [a1, b1, c1, d1]);
    let [a2, b2, c2, d2] = quarter_round(simd, [a2, b2, c2, d2]);
    let [a3, b3, c3, d3] = quarter_round(simd, [a3, b3, c3, d3]);
    let [a0, b1, c2, d3] = quarter_round(simd, [a0, b1, c2, d3]);
    let [a1, b2, c3, d0] = quarter_round(simd, [a1, b2, c3, d0]);
    let [a2, b3, c0, d1] = quarter_round(simd, [a2, b3, c0, d1]);
    let [a3, b0, c1, d2] = quarter_round(simd, [a3, b0, c1, d2]);
    [
        a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
    ]
}

#[inline(always)]
fn quarter_round<S: Simd>(simd: S, [a, b, c, d]: [S::u32s; 4]) -> [S::u32s; 4] {
    let a = simd.add_u32s(a, b);
    let d = rotate::<S, 16>(simd, simd.xor_u32s(d, a));
    let c = simd.add_u32s(c, d);
    let b = rotate::<S, 12>(simd, simd.xor_u32s(b, c));
    let a = simd.add_u32s(a, b);
    let d = rotate::<S, 8>(simd, simd.xor_u32s(d, a));
    let c = simd.add_u32s(c, d);
    let b = rotate::<S, 7>(simd, simd.xor_u32s(b, c));
    [a, b, c, d]
}

/// Each word turned to the left by N bits; the compiler makes one instruction of it where there is one.
#[inline(always)]
fn rotate<S: Simd, const N: u32>(simd: S, words: S::u32s) -> S::u32s {
    simd.or_u32s(
        simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(N)),
        simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(32 - N)),
    )
}
