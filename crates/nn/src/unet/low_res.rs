//! What a super-resolution network sees beside the noised image: a small one, blown up.

use candle_core::Tensor;

use crate::Result;
use crate::op::elementwise::concat;
use crate::tape::Node;

/// `x_t` and then a small image, bilinearly enlarged to its size, as more channels.
///
/// The network that reads it has twice the `in_channels`.
///
/// # Shapes
/// - `x_t`: `[N, H, W, C]`
/// - `low_res`: `[N, h, w, C]`
/// - returns: `[N, H, W, 2 C]`
///
/// # Errors
/// If the shapes do not fit.
///
/// # Source
/// Nichol and Dhariwal 2021, arXiv 2102.09672, section 4.5; the reference's `SuperResModel`. Golden:
/// `tests/goldens.rs`.
pub fn with_low_res(x_t: &Node, low_res: &Tensor) -> Result<Node> {
    let (_, h, w, _) = x_t.value().dims4()?;
    let enlarged = enlarge(&enlarge(low_res, 1, h)?, 2, w)?; // [N, H, W, C]
    concat(x_t, &x_t.tape().constant(&enlarged))
}

/// Linear interpolation along an axis to `n` positions, whose outermost lie half a pixel inside the edges.
fn enlarge(x: &Tensor, axis: usize, n: usize) -> candle_core::Result<Tensor> {
    let x = x.contiguous()?;
    let n_before = x.dim(axis)?;
    let (mut lower, mut upper, mut weights) = (vec![], vec![], vec![]);
    for i in 0..n {
        let place = (i as f64 + 0.5) * n_before as f64 / n as f64 - 0.5;
        let place = place.max(0.0);
        lower.push(place as u32);
        upper.push((place as u32 + 1).min(n_before.saturating_sub(1) as u32));
        weights.push(place.fract());
    }
    let mut shape = vec![1; x.rank()];
    shape[axis] = n;
    let weights = Tensor::from_vec(weights, shape, x.device())?;
    let rows = |places: Vec<u32>, weights: &Tensor| {
        let places = Tensor::from_vec(places, n, x.device())?;
        let weights = weights.to_dtype(x.dtype())?;
        x.index_select(&places, axis)?.broadcast_mul(&weights)
    };
    rows(lower, &weights.affine(-1.0, 1.0)?)? + rows(upper, &weights)?
}
