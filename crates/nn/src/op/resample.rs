//! 2×2 average pooling and 2× nearest-neighbour upsampling.

use candle_core::Tensor;
use p2_kernels::element::bf16;
use p2_kernels::resample::Resample as Sizes;

use super::{Number, composed, is_bf16, is_f32_or_bf16, shape_error, with_slices, written};
use crate::tape::Node;
use crate::{Cpu, Result};

/// The mean of each 2×2 square: `[N, H, W, C]` to `[N, H/2, W/2, C]`.
///
/// # Errors
/// If H or W is odd.
pub fn avg_pool2(x: &Node) -> Result<Node> {
    let (n, h, w, c) = x.value().dims4()?;
    if h % 2 != 0 || w % 2 != 0 {
        let dims = x.dims();
        return Err(shape_error(format_args!(
            "cannot halve the odd size of {dims:?}"
        )));
    }
    if !is_f32_or_bf16(x) {
        return composed("resample", [x], |[x]| avg_pool2_reference(x));
    }
    let sizes = Sizes { n, h, w, c };
    resample(x, sizes, Direction::Gather { factor: 0.25 })
}

/// [`avg_pool2`] in plain candle operations.
///
/// # Errors
/// If H or W is odd.
pub fn avg_pool2_reference(x: &Tensor) -> candle_core::Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.reshape((n, h / 2, 2, w / 2, 2 * c))?
        .sum(2)? // [N, H/2, W/2, 2 C]
        .reshape((n, h / 2, w / 2, 2, c))?
        .sum(3)?
        .affine(0.25, 0.0)
}

/// Each element four times: `[N, H, W, C]` to `[N, 2 H, 2 W, C]`.
///
/// # Errors
/// If `x` is no image tensor.
pub fn upsample2(x: &Node) -> Result<Node> {
    let (n, h, w, c) = x.value().dims4()?;
    if !is_f32_or_bf16(x) {
        return composed("resample", [x], |[x]| upsample2_reference(x));
    }
    let sizes = Sizes {
        n,
        h: 2 * h,
        w: 2 * w,
        c,
    };
    resample(x, sizes, Direction::Spread { factor: 1.0 })
}

/// [`upsample2`] in plain candle operations.
///
/// # Errors
/// If `x` is no image tensor.
pub fn upsample2_reference(x: &Tensor) -> candle_core::Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    x.reshape((n, h, 1, w, 1, c))?
        .broadcast_as((n, h, 2, w, 2, c))?
        .reshape((n, 2 * h, 2 * w, c))
}

/// From the large image to the small one, or back; each is the other's gradient.
#[derive(Clone, Copy)]
enum Direction {
    Gather { factor: f32 },
    Spread { factor: f32 },
}

impl Direction {
    fn transposed(self) -> Self {
        match self {
            Self::Gather { factor } => Self::Spread { factor },
            Self::Spread { factor } => Self::Gather { factor },
        }
    }

    fn apply(self, x: &Tensor, sizes: Sizes, cpu: Cpu) -> Result<Tensor> {
        if is_bf16(x) {
            self.typed::<bf16>(x, sizes, cpu)
        } else {
            self.typed::<f32>(x, sizes, cpu)
        }
    }

    fn typed<X: Number>(self, x: &Tensor, sizes: Sizes, cpu: Cpu) -> Result<Tensor> {
        let Sizes { n, h, w, c } = sizes;
        with_slices::<X, _, _>([x], |[x]| match self {
            Self::Gather { factor } => {
                written((n, h / 2, w / 2, c), |y| sizes.gather(x, factor, y, cpu))
            }
            Self::Spread { factor } => written((n, h, w, c), |y| sizes.spread(x, factor, y, cpu)),
        })
    }
}

fn resample(x: &Node, sizes: Sizes, direction: Direction) -> Result<Node> {
    let cpu = x.tape().cpu();
    let value = x
        .tape()
        .forward("resample", || direction.apply(x.value(), sizes, cpu))?;
    let slot = x.slot();
    let node = x.tape().record("resample", &[x], value, move |d_y, sums| {
        let d_x = direction.transposed().apply(d_y.tensor(), sizes, cpu)?;
        sums.add(slot, d_x)
    });
    let saved = x.save();
    Ok(node.with_recipe(move || direction.apply(&saved.get()?, sizes, cpu)))
}
