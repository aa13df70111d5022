//! Dropout: elements times 0 or `1 / (1 - p)`.

use std::rc::Rc;

use candle_core::Tensor;
use p2_kernels::dropout::Mask;
pub use p2_kernels::dropout::Piece;
use p2_kernels::element::bf16;

use super::{Number, composed, is_bf16, is_f32_or_bf16, with_slices, written};
use crate::tape::Node;
use crate::{Cpu, Result};

/// `x` times 0 where an element is dropped, and times `kept` elsewhere.
///
/// - `x`: of images along the first axis
/// - `fill`: says what is dropped, as [`Mask::new`] describes
///
/// # Errors
/// If the engine fails.
///
/// # Source
/// Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".
pub fn dropout(x: &Node, kept: f32, fill: impl Fn(Piece, &mut [u8]) + Sync) -> Result<Node> {
    const NAME: &str = "dropout";
    let (tape, cpu) = (x.tape(), x.tape().cpu());
    let n = x.dims().first().copied().unwrap_or(1);
    let size = [n, x.value().elem_count().checked_div(n).unwrap_or(0)];
    let mask = tape.forward(NAME, || Ok(Mask::new(size, kept, cpu, fill)))?;
    if !is_f32_or_bf16(x) {
        let (device, dtype) = (x.value().device(), x.value().dtype());
        let factors = Tensor::from_vec(mask.factors(), x.dims(), device)?.to_dtype(dtype)?;
        return composed(NAME, [x], |[x]| x * &factors);
    }
    let mask = Rc::new(mask);
    let value = tape.forward(NAME, || apply(&mask, x.value(), cpu))?;
    let (slot, mask_too) = (x.slot(), mask.clone());
    let node = tape.record(NAME, &[x], value, move |d_y, sums| {
        sums.add(slot, apply(&mask_too, d_y.tensor(), cpu)?)
    });
    let saved = x.save();
    Ok(node.with_recipe(move || apply(&mask, &saved.get()?, cpu)))
}

fn apply(mask: &Mask, x: &Tensor, cpu: Cpu) -> Result<Tensor> {
    fn typed<X: Number>(mask: &Mask, x: &Tensor, cpu: Cpu) -> Result<Tensor> {
        with_slices::<X, _, _>([x], |[values]| {
            written(x.shape(), |y| mask.apply(values, y, cpu))
        })
    }
    if is_bf16(x) {
        typed::<bf16>(mask, x, cpu)
    } else {
        typed::<f32>(mask, x, cpu)
    }
}
