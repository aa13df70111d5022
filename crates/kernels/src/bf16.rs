//! Products of numbers rounded to bf16, with f32 sums.
//!
//! Where the machine multiplies pairs of bf16 itself, that takes half the time of f32; elsewhere
//! rounded copies go through the f32 kernels, so that the numbers mean the same.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use crate::cpu::Cpu;
use crate::element::map;
use crate::scratch::Scratch;

/// The nearest bf16, as f32; halfway cases go to the even one.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    // The increment would turn some NaNs into infinities.
    f32::from_bits(if x.is_nan() {
        bits | 0x0040_0000
    } else {
        rounded
    })
}

/// A copy with every number rounded.
pub(crate) fn rounded(x: &[f32], cpu: Cpu) -> Scratch {
    let mut copy = Scratch::new(x.len());
    map(x, &mut copy, round, cpu);
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_to_the_nearest_and_to_even_halfway() {
        for (x, nearest) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),              // halfway, down to even
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0), // halfway, up to even
            (1.0 + 1.1 / 256.0, 1.0 + 1.0 / 128.0),
            (-0.0, -0.0),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(round(x).to_bits(), f32::to_bits(nearest), "{x}");
        }
        assert!(round(f32::from_bits(0x7f80_0001)).is_nan());
        assert!(round(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
