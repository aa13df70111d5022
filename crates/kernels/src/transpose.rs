//! Rows of squares of numbers, of 16 or of four, to their columns.

use crate::cpu::Isa;

/// Rows and columns of a large square.
pub(crate) const SIDE: usize = 16;

/// `into[j][i] = from[i * stride + j]`.
#[inline(always)]
pub(crate) fn square(isa: Isa, from: &[f32], stride: usize, into: &mut [[f32; SIDE]; SIDE]) {
    assert!(from.len() >= (SIDE - 1) * stride + SIDE);
    match isa {
        // SAFETY: the instructions are there, and the rows are in bounds.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(_) | Isa::Amx(..) => unsafe { avx512::square(from.as_ptr(), stride, into) },
        _ => {
            for (i, row) in from.chunks(stride).take(SIDE).enumerate() {
                for (into, &value) in into.iter_mut().zip(row) {
                    into[i] = value;
                }
            }
        }
    }
}

/// Four rows as columns.
#[inline(always)]
pub(crate) fn four(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128, _MM_TRANSPOSE4_PS};
        // The compiler would move number by number.
        // SAFETY: both types are four numbers, four times; every such processor has the instructions.
        unsafe {
            let [mut a, mut b, mut c, mut d] =
                std::mem::transmute::<[[f32; 4]; 4], [__m128; 4]>(rows);
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            std::mem::transmute::<[__m128; 4], [[f32; 4]; 4]>([a, b, c, d])
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|column| rows.map(|row| row[column]))
}

/// With shuffles of AVX-512.
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512 {
    use std::arch::x86_64::*;

    use super::SIDE;

    /// Squares of rows that lie apart.
    ///
    /// # Safety
    /// Each row must be readable.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn square(from: *const f32, stride: usize, into: &mut [[f32; SIDE]; SIDE]) {
        // SAFETY: readable by contract.
        let row = |i: usize| unsafe { _mm512_loadu_ps(from.add(i * stride)) };
        columns(&std::array::from_fn(row), into);
    }

    /// Blocks of 4×4 numbers first, then the blocks.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) fn columns(rows: &[__m512; SIDE], into: &mut [[f32; SIDE]]) {
        let into = &mut into[..SIDE];
        let mut blocks = [_mm512_setzero_ps(); SIDE];
        for i in (0..SIDE).step_by(4) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|row| rows[i + row]);
            let [ab, cd] = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)];
            blocks[i] = _mm512_shuffle_ps::<0x44>(ab, cd);
            blocks[i + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
            let [ab, cd] = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)];
            blocks[i + 2] = _mm512_shuffle_ps::<0x44>(ab, cd);
            blocks[i + 3] = _mm512_shuffle_ps::<0xee>(ab, cd);
        }
        for i in 0..4 {
            // Each vector holds four numbers of the columns i, i + 4, i + 8 and i + 12.
            let [a, b, c, d] = [0, 4, 8, 12].map(|rows| blocks[rows + i]);
            let even = [
                _mm512_shuffle_f32x4::<0x88>(a, b),
                _mm512_shuffle_f32x4::<0x88>(c, d),
            ];
            let odd = [
                _mm512_shuffle_f32x4::<0xdd>(a, b),
                _mm512_shuffle_f32x4::<0xdd>(c, d),
            ];
            let columns = [
                _mm512_shuffle_f32x4::<0x88>(even[0], even[1]),
                _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]),
                _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]),
                _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]),
            ];
            for (block, column) in columns.into_iter().enumerate() {
                let into = &mut into[4 * block + i];
                // SAFETY: the array holds a vector.
                unsafe { _mm512_storeu_ps(into.as_mut_ptr(), column) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_rows_become_columns() {
        let rows = std::array::from_fn(|i| std::array::from_fn(|j| (4 * i + j) as f32));
        let columns = four(rows);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(columns.map(|column| column[i]), *row);
        }
    }

    #[test]
    fn columns_become_rows_with_each_instruction_set() {
        let stride = 19;
        let from: Vec<f32> = (0..SIDE * stride).map(|i| i as f32).collect();
        for isa in Isa::available() {
            let mut into = [[f32::NAN; SIDE]; SIDE];
            square(isa, &from, stride, &mut into);
            for (j, column) in into.iter().enumerate() {
                for (i, &value) in column.iter().enumerate() {
                    assert_eq!(value, from[i * stride + j], "{isa:?}");
                }
            }
        }
    }
}
