//! Numbers rounded to bf16 and packed in pairs, as the registers read them.
//!
//! The first number of a pair is the low half of its 32 bits.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::product::BLOCK;
use super::{Amx, SIDE};
use crate::element::{Element, Elements};
use crate::transpose::avx512;

/// Floats of a tile.
pub(crate) const TILE: usize = SIDE * SIDE;

impl Amx {
    /// Pairs of neighbors in a row, and zeros to the end.
    pub(crate) fn neighbors<X: Element>(self, row: &[X], pairs: &mut [f32]) {
        // SAFETY: the instructions are there.
        unsafe { neighbors(row, pairs) };
    }

    /// A tile of pairs of rows: the rows `row(0) .. row(31)` of at most [`SIDE`] numbers, two by
    /// two.
    pub(crate) fn tile_of_rows<'a>(self, row: impl Fn(usize) -> &'a [f32], tile: &mut [f32]) {
        // SAFETY: the instructions are there.
        unsafe { tile_of_rows(row, tile) };
    }

    /// A tile of pairs of neighbors in columns: `column(0) .. column(15)` of at most 32 numbers.
    pub(crate) fn tile_of_columns<'a, X: Element>(
        self,
        column: impl Fn(usize) -> &'a [X],
        tile: &mut [f32],
    ) {
        // SAFETY: the instructions are there.
        unsafe { tile_of_columns(column, tile) };
    }

    /// Pairs of rows of at most [`BLOCK`] numbers, one pair after the other.
    pub(crate) fn strip_of_rows<'a, X: Element>(
        self,
        pairs: impl Iterator<Item = [&'a [X]; 2]>,
        strip: &mut [f32],
    ) {
        // SAFETY: the instructions are there.
        unsafe { strip_of_rows(pairs, strip) };
    }

    /// The same with each pair as a column of two tiles, [`SIDE`] pairs for each tile; adds all rows
    /// to `sum`.
    pub(crate) fn strip_of_columns<'a, X: Element>(
        self,
        pairs: impl Iterator<Item = [&'a [X]; 2]>,
        strip: &mut [f32],
        sum: &mut [f32; BLOCK],
    ) {
        // SAFETY: the instructions are there.
        unsafe { strip_of_columns(pairs, strip, sum) };
    }

    /// Writes the columns of a block of [`BLOCK`] rows as rows.
    pub(crate) fn transposed(self, block: &[f32], into: &mut [f32]) {
        // SAFETY: the instructions are there.
        unsafe { transposed(block, into) };
    }
}

/// 16 numbers as bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn halves(x: __m512) -> __m256i {
    // SAFETY: both types are 16 numbers of 16 bits.
    unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) }
}

/// Pairs of two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pair(first: __m512, second: __m512) -> __m512i {
    let [first, second] = [first, second].map(|x| _mm512_cvtepu16_epi32(halves(x)));
    _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
}

/// Pairs of neighbors of 32 numbers in two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn pairs_along([first, second]: [__m512; 2]) -> __m512i {
    // SAFETY: both types are 512 bits of numbers.
    unsafe { transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
}

/// The first 16 numbers of a row, with zeros behind its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load<X: Element>(row: &[X]) -> __m512 {
    let mask = ((1u32 << row.len().min(SIDE)) - 1) as u16;
    match X::view(row) {
        // SAFETY: there are as many.
        Elements::F32(row) if row.len() >= SIDE => unsafe { _mm512_loadu_ps(row.as_ptr()) },
        // SAFETY: the mask keeps the load within the row.
        Elements::F32(row) => unsafe { _mm512_maskz_loadu_ps(mask, row.as_ptr()) },
        Elements::Bf16(row) => {
            // SAFETY: as above.
            let row = unsafe { _mm256_maskz_loadu_epi16(mask, row.as_ptr().cast()) };
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(row)))
        }
    }
}

/// The first 32 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn load_two<X: Element>(row: &[X]) -> [__m512; 2] {
    [load(row), load(row.get(SIDE..).unwrap_or_default())]
}

/// Writes 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(x: __m512i, into: &mut [f32]) {
    let into = &mut into[..SIDE];
    // SAFETY: there is room for as many.
    unsafe { _mm512_storeu_si512(into.as_mut_ptr().cast(), x) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn neighbors<X: Element>(row: &[X], pairs: &mut [f32]) {
    for (i, pairs) in pairs.chunks_exact_mut(SIDE).enumerate() {
        let row = row.get(i * 2 * SIDE..).unwrap_or_default();
        store(pairs_along(load_two(row)), pairs);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile_of_rows<'a>(row: impl Fn(usize) -> &'a [f32], tile: &mut [f32]) {
    for (i, pairs) in tile.chunks_exact_mut(SIDE).enumerate() {
        store(pair(load(row(2 * i)), load(row(2 * i + 1))), pairs);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn tile_of_columns<'a, X: Element>(column: impl Fn(usize) -> &'a [X], tile: &mut [f32]) {
    let mut rows = [_mm512_setzero_si512(); SIDE];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = pairs_along(load_two(column(i)));
    }
    transpose(&rows, tile);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn strip_of_rows<'a, X: Element>(mut rows: impl Iterator<Item = [&'a [X]; 2]>, strip: &mut [f32]) {
    for into in strip.chunks_exact_mut(BLOCK) {
        let [first, second] = rows.next().unwrap_or_default();
        let [first, second] = [load_two(first), load_two(second)];
        for (tile, into) in into.chunks_exact_mut(SIDE).enumerate() {
            store(pair(first[tile], second[tile]), into);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn strip_of_columns<'a, X: Element>(
    mut rows: impl Iterator<Item = [&'a [X]; 2]>,
    strip: &mut [f32],
    sum: &mut [f32; BLOCK],
) {
    let mut sums = load_two(sum);
    for into in strip.chunks_exact_mut(2 * TILE) {
        let mut pairs = [[_mm512_setzero_si512(); SIDE]; 2];
        let [left, right] = &mut pairs;
        for (left, right) in left.iter_mut().zip(right) {
            let [first, second] = rows.next().unwrap_or_default();
            let [first, second] = [load_two(first), load_two(second)];
            for tile in 0..2 {
                sums[tile] = _mm512_add_ps(_mm512_add_ps(sums[tile], first[tile]), second[tile]);
            }
            (*left, *right) = (pair(first[0], second[0]), pair(first[1], second[1]));
        }
        for (pairs, into) in pairs.iter().zip(into.chunks_exact_mut(TILE)) {
            transpose(pairs, into);
        }
    }
    for (sum, sums) in sum.chunks_exact_mut(SIDE).zip(sums) {
        store(_mm512_castps_si512(sums), sum);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transposed(block: &[f32], into: &mut [f32]) {
    let mut columns = [0.0; TILE];
    for tile in 0..4 {
        let [i, j] = [tile / 2 * SIDE, tile % 2 * SIDE];
        let row = |row| _mm512_castps_si512(load(&block[(i + row) * BLOCK + j..]));
        transpose(&std::array::from_fn(row), &mut columns);
        for (k, column) in columns.chunks_exact(SIDE).enumerate() {
            into[(j + k) * BLOCK + i..][..SIDE].copy_from_slice(column);
        }
    }
}

/// Writes the rows of a tile as its columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &[__m512i; SIDE], into: &mut [f32]) {
    let rows = rows.map(|row| _mm512_castsi512_ps(row));
    avx512::columns(&rows, into.as_chunks_mut().0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pair: f32) -> [f32; 2] {
        let bits = pair.to_bits();
        [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
    }

    #[test]
    fn neighbors_are_rounded_to_the_nearest() {
        let Some(amx) = Amx::for_tests() else { return };
        let row: Vec<f32> = (0..37).map(|i| (i as f32 - 20.0) / 7.0).collect();
        let mut pairs = [f32::NAN; 2 * SIDE];
        amx.neighbors(&row, &mut pairs);
        for (i, x) in pairs.map(numbers).concat().into_iter().enumerate() {
            assert_eq!(x, crate::bf16::round(row.get(i).copied().unwrap_or(0.0)));
        }
    }

    #[test]
    fn tiles_hold_pairs_of_rows_and_of_columns() {
        let Some(amx) = Amx::for_tests() else { return };
        // Whole numbers of 8 bits, which are bf16.
        let rows: Vec<[f32; SIDE]> = (0..2 * SIDE)
            .map(|i| std::array::from_fn(|j| ((i * 7 + j * 31) % 251) as f32))
            .collect();
        let columns: Vec<Vec<f32>> = (0..SIDE)
            .map(|j| rows.iter().map(|row| row[j]).collect())
            .collect();
        let (n_rows, n_columns) = (27, 11);
        let live = |i: usize, j: usize| {
            if i < n_rows && j < n_columns {
                rows[i][j]
            } else {
                0.0
            }
        };
        let check = |tile: &[f32]| {
            for (k, &pair) in tile.iter().enumerate() {
                let (i, j) = (k / SIDE, k % SIDE);
                assert_eq!(numbers(pair), [live(2 * i, j), live(2 * i + 1, j)]);
            }
        };
        let mut tile = [f32::NAN; TILE];
        amx.tile_of_rows(
            |i| {
                if i < n_rows {
                    &rows[i][..n_columns]
                } else {
                    &[]
                }
            },
            &mut tile,
        );
        check(&tile);
        tile.fill(f32::NAN);
        amx.tile_of_columns(
            |j| {
                if j < n_columns {
                    &columns[j][..n_rows]
                } else {
                    &[]
                }
            },
            &mut tile,
        );
        check(&tile);
    }

    #[test]
    fn strips_hold_pairs_along_rows_and_along_columns() {
        let Some(amx) = Amx::for_tests() else { return };
        let n_channels = 21;
        let pixel = |slab: usize, i: usize| -> Vec<f32> {
            (0..n_channels)
                .map(|j| ((i * 17 + j * 5 + slab * 97) % 251) as f32)
                .collect()
        };
        let slabs = [0, 1].map(|slab| (0..SIDE).map(|i| pixel(slab, i)).collect::<Vec<_>>());
        let pairs = || (0..13).map(|i| [&slabs[0][i][..], &slabs[1][i][..]]);
        let [mut rows, mut columns] = [[f32::NAN; SIDE * BLOCK]; 2];
        amx.strip_of_rows(pairs(), &mut rows);
        let mut sum = [1.0; BLOCK];
        amx.strip_of_columns(pairs(), &mut columns, &mut sum);
        for i in 0..SIDE {
            for j in 0..BLOCK {
                let is_live = i < 13 && j < n_channels;
                let expected = [0, 1].map(|slab| if is_live { slabs[slab][i][j] } else { 0.0 });
                assert_eq!(numbers(rows[i * BLOCK + j]), expected);
                assert_eq!(
                    numbers(columns[j / SIDE * TILE + j % SIDE * SIDE + i]),
                    expected
                );
            }
        }
        for (j, sum) in sum.into_iter().enumerate() {
            let all = pairs()
                .flatten()
                .map(|row| row.get(j).copied().unwrap_or(0.0));
            assert_eq!(sum, 1.0 + all.sum::<f32>());
        }
    }
}
