//! The one-dimensional transforms of F(4, 3) over vectors of channels.
//!
//! Four outputs of a three-tap filter are a polynomial product, found from its values at six
//! points (Lavin and Gray 2015, arXiv 1509.09308, with Toom and Cook's construction). Our points
//! are 0, ±5/8, ±3/2 and infinity: measured on normal data with 128 channels, outputs are 2.3 times
//! as exact (relative L2 error 1.0e-6 instead of 2.2e-6) as with the usual 0, ±1, ±2, and all
//! constants but those of the filter are exact in binary. Pairs of points ±p share their even and
//! odd parts, so any points cost the same.

use pulp::Simd;

/// Outputs of a tile in each direction.
pub(super) const OUT: usize = 4;

/// Inputs of a tile in each direction: the outputs and a border of one.
pub(super) const IN: usize = 6;

/// Taps of the filter in each direction.
pub(super) const TAPS: usize = 3;

/// Products per tile and pair of channels.
pub(super) const POSITIONS: usize = IN * IN;

/// The points ±A and ±B.
const A: f32 = 0.625;
const B: f32 = 1.5;
const A2: f32 = A * A;
const B2: f32 = B * B;
const A3: f32 = A * A2;
const B3: f32 = B * B2;

/// One over the product of a point's distances to the other finite points.
const AT_ZERO: f64 = 1.0 / (A2 * B2) as f64;
const AT_A: f64 = 1.0 / (2.0 * A2 * (A2 - B2)) as f64;
const AT_B: f64 = 1.0 / (2.0 * B2 * (B2 - A2)) as f64;

/// `scale * point^power`, rounded once.
const fn scaled(scale: f64, point_power: f32) -> f32 {
    (scale * point_power as f64) as f32
}

/// `factor * x + y`.
#[inline(always)]
fn add_scaled<S: Simd>(simd: S, factor: f32, x: S::f32s, y: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(factor), x, y)
}

/// `factor * x`.
#[inline(always)]
fn scale<S: Simd>(simd: S, factor: f32, x: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(factor), x)
}

/// Six inputs to their values at the points.
#[inline(always)]
pub(super) fn input<S: Simd>(simd: S, d: [S::f32s; IN]) -> [S::f32s; IN] {
    let even_a = add_scaled(simd, -B2, d[2], d[4]);
    let odd_a = add_scaled(simd, -B2, d[1], d[3]);
    let even_b = add_scaled(simd, -A2, d[2], d[4]);
    let odd_b = add_scaled(simd, -A2, d[1], d[3]);
    [
        ends(simd, [d[0], d[2], d[4]]),
        add_scaled(simd, A, odd_a, even_a),
        add_scaled(simd, -A, odd_a, even_a),
        add_scaled(simd, B, odd_b, even_b),
        add_scaled(simd, -B, odd_b, even_b),
        ends(simd, [d[1], d[3], d[5]]),
    ]
}

/// The value at 0 of the even inputs, or at infinity of the odd ones.
#[inline(always)]
fn ends<S: Simd>(simd: S, d: [S::f32s; 3]) -> S::f32s {
    let inner = add_scaled(simd, -(A2 + B2), d[1], d[2]);
    add_scaled(simd, A2 * B2, d[0], inner)
}

/// Products at the points to four outputs.
#[inline(always)]
pub(super) fn output<S: Simd>(simd: S, m: [S::f32s; IN]) -> [S::f32s; OUT] {
    let (even_a, odd_a) = (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2]));
    let (even_b, odd_b) = (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4]));
    [
        simd.add_f32s(m[0], simd.add_f32s(even_a, even_b)),
        add_scaled(simd, A, odd_a, scale(simd, B, odd_b)),
        add_scaled(simd, A2, even_a, scale(simd, B2, even_b)),
        add_scaled(simd, A3, odd_a, add_scaled(simd, B3, odd_b, m[5])),
    ]
}

/// Four gradients of outputs to their values at the points: the transpose of [`output`].
#[inline(always)]
pub(super) fn output_gradient<S: Simd>(simd: S, g: [S::f32s; OUT]) -> [S::f32s; IN] {
    let even_a = add_scaled(simd, A2, g[2], g[0]);
    let odd_a = add_scaled(simd, A3, g[3], scale(simd, A, g[1]));
    let even_b = add_scaled(simd, B2, g[2], g[0]);
    let odd_b = add_scaled(simd, B3, g[3], scale(simd, B, g[1]));
    [
        g[0],
        simd.add_f32s(even_a, odd_a),
        simd.sub_f32s(even_a, odd_a),
        simd.add_f32s(even_b, odd_b),
        simd.sub_f32s(even_b, odd_b),
        g[3],
    ]
}

/// Three weights to their values at the points.
#[inline(always)]
pub(super) fn weight<S: Simd>(simd: S, w: [S::f32s; TAPS]) -> [S::f32s; IN] {
    let [plus_a, minus_a] = values_at(simd, AT_A, A, w);
    let [plus_b, minus_b] = values_at(simd, AT_B, B, w);
    [
        scale(simd, scaled(AT_ZERO, 1.0), w[0]),
        plus_a,
        minus_a,
        plus_b,
        minus_b,
        w[2],
    ]
}

/// The values of three weights at a point and at its negative.
#[inline(always)]
fn values_at<S: Simd>(simd: S, at: f64, point: f32, w: [S::f32s; TAPS]) -> [S::f32s; 2] {
    let first = scale(simd, scaled(at, 1.0), w[0]);
    let even = add_scaled(simd, scaled(at, point * point), w[2], first);
    let odd = scale(simd, scaled(at, point), w[1]);
    [simd.add_f32s(even, odd), simd.sub_f32s(even, odd)]
}

/// Gradients at the points to those of three weights: the transpose of [`weight`].
#[inline(always)]
pub(super) fn weight_gradient<S: Simd>(simd: S, u: [S::f32s; IN]) -> [S::f32s; TAPS] {
    let (even_a, odd_a) = (simd.add_f32s(u[1], u[2]), simd.sub_f32s(u[1], u[2]));
    let (even_b, odd_b) = (simd.add_f32s(u[3], u[4]), simd.sub_f32s(u[3], u[4]));
    let first = scale(simd, scaled(AT_ZERO, 1.0), u[0]);
    let first = add_scaled(simd, scaled(AT_B, 1.0), even_b, first);
    let second = scale(simd, scaled(AT_B, B), odd_b);
    let third = add_scaled(simd, scaled(AT_B, B2), even_b, u[5]);
    [
        add_scaled(simd, scaled(AT_A, 1.0), even_a, first),
        add_scaled(simd, scaled(AT_A, A), odd_a, second),
        add_scaled(simd, scaled(AT_A, A2), even_a, third),
    ]
}

/// An array made element by element without a loop.
///
/// The compiler unrolls no loop around a whole transform, and arrays that a loop indexes are
/// cleared and kept in memory.
pub(super) trait Unrolled {
    type Item;
    fn unrolled(f: impl FnMut(usize) -> Self::Item) -> Self;
}

impl<T> Unrolled for [T; TAPS] {
    type Item = T;
    #[inline(always)]
    fn unrolled(mut f: impl FnMut(usize) -> T) -> Self {
        [f(0), f(1), f(2)]
    }
}

impl<T> Unrolled for [T; OUT] {
    type Item = T;
    #[inline(always)]
    fn unrolled(mut f: impl FnMut(usize) -> T) -> Self {
        [f(0), f(1), f(2), f(3)]
    }
}

impl<T> Unrolled for [T; IN] {
    type Item = T;
    #[inline(always)]
    fn unrolled(mut f: impl FnMut(usize) -> T) -> Self {
        [f(0), f(1), f(2), f(3), f(4), f(5)]
    }
}

/// A transform of rows, then of columns: takes `from(row, column)`, gives `into(row, column, value)`.
#[inline(always)]
pub(super) fn both_ways<V: Copy, const N: usize, const M: usize>(
    one_way: impl Fn([V; N]) -> [V; M],
    from: impl Fn(usize, usize) -> V,
    mut into: impl FnMut(usize, usize, V),
) where
    [V; N]: Unrolled<Item = V>,
    [[V; M]; N]: Unrolled<Item = [V; M]>,
    [(); M]: Unrolled<Item = ()>,
{
    let half = <[[V; M]; N]>::unrolled(
        #[inline(always)]
        |i| {
            one_way(<[V; N]>::unrolled(
                #[inline(always)]
                |j| from(i, j),
            ))
        },
    );
    <[(); M]>::unrolled(
        #[inline(always)]
        |j| {
            let column = one_way(<[V; N]>::unrolled(
                #[inline(always)]
                |i| half[i][j],
            ));
            <[(); M]>::unrolled(
                #[inline(always)]
                |i| into(i, j, column[i]),
            );
        },
    );
}
