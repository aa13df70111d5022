//! Operations on each element alone, and the activation they share.

use crate::cpu::{Cpu, MulAdd, Shared};

/// Elements of one tile.
const TILE: usize = 1 << 14;

/// `1.5 * 2^23`: a sum with it is rounded to an integer, which stands in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// `e^x` for `x` clamped to `[-87, 87]`, to 2 units in the last place, in plain operations that
/// vectorize.
#[inline(always)]
pub(crate) fn exp(x: f32, mul_add: MulAdd) -> f32 {
    const ONE: u32 = 1.0_f32.to_bits();
    let x = x.clamp(-87.0, 87.0);
    let shifted = mul_add.run(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add.run(n, -0.693_359_4, x); // ln 2 in two parts (Cody and Waite)
    let r = mul_add.run(n, 2.121_944_4e-4, r);
    let p = mul_add.run(1.987_569_1e-4, r, 1.398_199_9e-3);
    let p = mul_add.run(p, r, 8.333_452e-3);
    let p = mul_add.run(p, r, 4.166_579_6e-2);
    let p = mul_add.run(p, r, 1.666_666_6e-1);
    let p = mul_add.run(p, r, 0.5);
    // The low bits of `ROUND` are zeros: what is left is n in the place of the exponent.
    let power_of_two = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(ONE));
    (mul_add.run(p, r * r, r) + 1.0) * power_of_two
}

/// `1 / x` for `x` from 1 to 1e38, to 2 units in the last place.
///
/// Three of Newton's steps: a division takes as long as all other operations of a sigmoid together.
#[inline(always)]
fn reciprocal(x: f32, mul_add: MulAdd) -> f32 {
    // Subtracting the bits changes the sign of the exponent and is linear in the digits: within an
    // eighth of the reciprocal.
    let mut y = f32::from_bits(0x7ef3_11c7_u32.wrapping_sub(x.to_bits()));
    for _ in 0..3 {
        y *= mul_add.run(-x, y, 2.0);
    }
    y
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32, mul_add: MulAdd) -> f32 {
    reciprocal(1.0 + exp(-x, mul_add), mul_add)
}

/// The derivative of `x sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu_slope(x: f32, mul_add: MulAdd) -> f32 {
    let e = exp(-x, mul_add);
    let s = reciprocal(1.0 + e, mul_add);
    mul_add.run(s * x, e * s, s) // e s is 1 - s without its cancellation
}

/// `y = x sigmoid(x)`.
pub fn silu(x: &[f32], y: &mut [f32], cpu: Cpu) {
    map2(
        x,
        x,
        y,
        cpu,
        #[inline(always)]
        |x, _, mul_add| x * sigmoid(x, mul_add),
    );
}

/// `d_x`, given the gradient of `silu(x)`.
pub fn silu_backward(x: &[f32], d_y: &[f32], d_x: &mut [f32], cpu: Cpu) {
    map2(
        x,
        d_y,
        d_x,
        cpu,
        #[inline(always)]
        |x, d_y, mul_add| d_y * silu_slope(x, mul_add),
    );
}

/// `y = a + b`.
pub fn add(a: &[f32], b: &[f32], y: &mut [f32], cpu: Cpu) {
    map2(
        a,
        b,
        y,
        cpu,
        #[inline(always)]
        |a, b, _| a + b,
    );
}

/// `sum += x`.
pub fn add_assign(sum: &mut [f32], x: &[f32], cpu: Cpu) {
    assert_eq!(sum.len(), x.len());
    let n = sum.len();
    let shared = Shared::new(sum);
    cpu.threads.for_each(n.div_ceil(TILE), |tile| {
        let range = tile * TILE..((tile + 1) * TILE).min(n);
        // SAFETY: tiles are disjoint.
        let sum = unsafe { shared.tile(range.start, range.len()) };
        cpu.isa.vectorize(
            #[inline(always)]
            |_| {
                for (sum, x) in sum.iter_mut().zip(&x[range]) {
                    *sum += x;
                }
            },
        );
    });
}

/// Applies `f` to each pair of elements.
#[inline(always)]
fn map2(a: &[f32], b: &[f32], y: &mut [f32], cpu: Cpu, f: impl Fn(f32, f32, MulAdd) -> f32 + Sync) {
    assert_eq!((a.len(), b.len()), (y.len(), y.len()));
    let n = y.len();
    let shared = Shared::new(y);
    cpu.threads.for_each(n.div_ceil(TILE), |tile| {
        let range = tile * TILE..((tile + 1) * TILE).min(n);
        // SAFETY: tiles are disjoint.
        let y = unsafe { shared.tile(range.start, range.len()) };
        let (a, b) = (&a[range.clone()], &b[range]);
        cpu.isa.vectorize(
            #[inline(always)]
            |mul_add| {
                for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                    *y = f(a, b, mul_add);
                }
            },
        );
    });
}

/// Joins the channels of two images: `y[.., ..c_a] = a`, `y[.., c_a..] = b`.
pub fn concat(a: &[f32], b: &[f32], channels: [usize; 2], y: &mut [f32], cpu: Cpu) {
    let [c_a, c_b] = channels;
    assert_eq!(a.len() + b.len(), y.len());
    assert_eq!(a.len() * c_b, b.len() * c_a);
    let width = c_a + c_b;
    let rows_per_tile = (TILE / width.max(1)).max(1);
    let n_rows = y.len().checked_div(width).unwrap_or(0);
    let shared = Shared::new(y);
    cpu.threads
        .for_each(n_rows.div_ceil(rows_per_tile), |tile| {
            let rows = tile * rows_per_tile..((tile + 1) * rows_per_tile).min(n_rows);
            // SAFETY: tiles are disjoint.
            let y = unsafe { shared.tile(rows.start * width, rows.len() * width) };
            for (y, row) in y.chunks_exact_mut(width).zip(rows) {
                y[..c_a].copy_from_slice(&a[row * c_a..][..c_a]);
                y[c_a..].copy_from_slice(&b[row * c_b..][..c_b]);
            }
        });
}

/// Takes the channels of an image apart again: the inverse, and the gradient, of [`concat()`].
pub fn split(y: &[f32], channels: [usize; 2], a: &mut [f32], b: &mut [f32], cpu: Cpu) {
    let [c_a, c_b] = channels;
    assert_eq!(a.len() + b.len(), y.len());
    assert_eq!(a.len() * c_b, b.len() * c_a);
    let width = c_a + c_b;
    let rows_per_tile = (TILE / width.max(1)).max(1);
    let n_rows = y.len().checked_div(width).unwrap_or(0);
    let (shared_a, shared_b) = (Shared::new(a), Shared::new(b));
    cpu.threads
        .for_each(n_rows.div_ceil(rows_per_tile), |tile| {
            let rows = tile * rows_per_tile..((tile + 1) * rows_per_tile).min(n_rows);
            for row in rows {
                // SAFETY: rows are disjoint.
                let (a, b) =
                    unsafe { (shared_a.tile(row * c_a, c_a), shared_b.tile(row * c_b, c_b)) };
                a.copy_from_slice(&y[row * width..][..c_a]);
                b.copy_from_slice(&y[row * width + c_a..][..c_b]);
            }
        });
}
