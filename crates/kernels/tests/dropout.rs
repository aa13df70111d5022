//! Masks and draws against plain loops over their elements.

#[expect(
    dead_code,
    reason = "what is compared here has to be equal in every bit"
)]
mod comparison;

use comparison::{cpus, fill};
use p2_kernels::chacha8::draws_below;
use p2_kernels::dropout::{Mask, Piece};

/// A block of ChaCha8 as its definition has it.
fn block(key: &[u32; 8], number: u64) -> [u32; 16] {
    let mut start = [0; 16];
    start[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    start[4..12].copy_from_slice(key);
    start[12..14].copy_from_slice(&[number as u32, (number >> 32) as u32]);
    let mut x = start;
    for _ in 0..4 {
        for [a, b, c, d] in [
            [0, 4, 8, 12],
            [1, 5, 9, 13],
            [2, 6, 10, 14],
            [3, 7, 11, 15],
            [0, 5, 10, 15],
            [1, 6, 11, 12],
            [2, 7, 8, 13],
            [3, 4, 9, 14],
        ] {
            for [turns_d, turns_b] in [[16, 12], [8, 7]] {
                x[a] = u32::wrapping_add(x[a], x[b]);
                x[d] = (x[d] ^ x[a]).rotate_left(turns_d);
                x[c] = x[c].wrapping_add(x[d]);
                x[b] = (x[b] ^ x[c]).rotate_left(turns_b);
            }
        }
    }
    std::array::from_fn(|i| x[i].wrapping_add(start[i]))
}

/// Whether draw i of a block is below the threshold, one draw at a time.
fn is_below(threshold: u64, key: &[u32; 8], number: u64, i: usize) -> bool {
    let words = block(key, number);
    (u64::from(words[2 * i + 1]) << 32 | u64::from(words[2 * i])) < threshold
}

#[test]
fn the_plain_loop_is_chacha8() {
    // Strombergson 2013, draft-strombergson-chacha-test-vectors-01, TC1: 8 rounds, 256 bits of key.
    let expected = [0x2fef_003e, 0xd640_5f89, 0xe8b8_5b7f, 0xa1a5_091f];
    assert_eq!(block(&[0; 8], 0)[..4], expected);
}

#[test]
fn draws_are_compared_as_one_at_a_time_would_be() {
    let key = std::array::from_fn(|i| 0x9e37_79b9_u32.wrapping_mul(i as u32 + 1));
    let (low, high) = (u64::from(u32::MAX), u64::from(u32::MAX) << 32);
    // Lanes whose numbers differ in their high words, too, and the end of all numbers.
    for first_block in [0, 1, 1000, low - 5, high | (low - 5)] {
        let words = block(&key, first_block);
        // Around a draw, so that equal high words are decided by the low ones.
        let draw = u64::from(words[3]) << 32 | u64::from(words[2]);
        for threshold in [0, 1 << 61, draw, draw + 1, u64::MAX] {
            for n_blocks in [0, 1, 3, 7, 15, 16, 17, 31, 33] {
                let numbers = (0..n_blocks).map(|i| first_block.wrapping_add(i));
                let byte = |number| {
                    let bit = |i| u8::from(is_below(threshold, &key, number, i)) << i;
                    (0..8).map(bit).sum()
                };
                let expected: Vec<u8> = numbers.map(byte).collect();
                for cpu in cpus() {
                    let mut below = vec![0xa5; n_blocks as usize];
                    draws_below(threshold, &key, first_block, &mut below, cpu.isa);
                    assert_eq!(below, expected, "{n_blocks} from {first_block} on {cpu:?}");
                }
            }
        }
    }
}

#[test]
fn masks_of_any_size_have_the_bits_of_their_images_on_any_number_of_threads() {
    for n in [0, 1, 3] {
        for n_elements in [0, 1, 3, 7, 15, 16, 17, 31, 33, 16_384, 40_001] {
            let key = |image: usize| [7, image as u32, 0, 0, 0, 0, 0, 0];
            let elements = (0..n).flat_map(|image| (0..n_elements).map(move |i| (image, i)));
            let factors: Vec<f32> = elements
                .map(
                    |(image, i)| match is_below(1 << 62, &key(image), i as u64 / 8, i % 8) {
                        true => 0.0,
                        false => 1.25,
                    },
                )
                .collect();
            let x = fill(n * n_elements, 1);
            let products: Vec<u32> = x
                .iter()
                .zip(&factors)
                .map(|(x, factor)| (x * factor).to_bits())
                .collect();
            for cpu in cpus() {
                let set_bits = |piece: Piece, dropped: &mut [u8]| {
                    let first_block = piece.first as u64 / 8;
                    draws_below(1 << 62, &key(piece.image), first_block, dropped, cpu.isa);
                };
                let mask = Mask::new([n, n_elements], 1.25, cpu, set_bits);
                assert_eq!(mask.factors(), factors, "{n} of {n_elements} on {cpu:?}");
                let mut y = vec![f32::NAN; x.len()];
                mask.apply(&x, &mut y, cpu);
                let y: Vec<u32> = y.into_iter().map(f32::to_bits).collect();
                assert_eq!(y, products, "{n} of {n_elements} on {cpu:?}");
            }
        }
    }
}

#[test]
fn a_dropped_element_that_is_not_a_number_stays_visible() {
    for cpu in cpus() {
        let mask = Mask::new([1, 33], 2.0, cpu, |_, dropped| dropped.fill(0xff));
        let mut y = vec![0.0; 33];
        mask.apply(&[f32::INFINITY; 33], &mut y, cpu);
        assert!(y.iter().all(|y| y.is_nan()), "{y:?}");
    }
}
