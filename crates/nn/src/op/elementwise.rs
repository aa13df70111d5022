//! SiLU, sums, and joined channels.

use candle_core::{D, Tensor};
use p2_kernels::elementwise as kernel;

use super::{composed, on_kernels, shape_error, with_slices, written};
use crate::Result;
use crate::tape::Node;

/// `x sigmoid(x)`.
///
/// Candle has it too, but its vectorized part and its tail may round differently, so that a value
/// would depend on its place.
///
/// # Errors
/// If the engine fails.
pub fn silu(x: &Node) -> Result<Node> {
    if !on_kernels(&[x]) {
        return composed("elementwise", [x], |[x]| x.silu());
    }
    let cpu = x.tape().cpu();
    let value = x.tape().forward("elementwise", || {
        with_slices([x.value()], |[x_values]| {
            written(x.dims(), |y| kernel::silu(x_values, y, cpu))
        })
    })?;
    let (slot, saved) = (x.slot(), x.save());
    Ok(x.tape()
        .record("elementwise", &[x], value, move |d_y, sums| {
            let x = saved.get()?;
            let d_x = with_slices([&x, d_y.tensor()], |[x_values, d_y]| {
                written(x.shape(), |d_x| {
                    kernel::silu_backward(x_values, d_y, d_x, cpu);
                })
            })?;
            sums.add(slot, d_x)
        }))
}

/// `a + b` of two tensors of one shape.
///
/// # Errors
/// If the shapes differ.
pub fn add(a: &Node, b: &Node) -> Result<Node> {
    if a.dims() != b.dims() {
        return Err(shape_error(format_args!(
            "add of {:?} and {:?}",
            a.dims(),
            b.dims()
        )));
    }
    if !on_kernels(&[a, b]) {
        return composed("elementwise", [a, b], |[a, b]| a + b);
    }
    let cpu = a.tape().cpu();
    let value = a.tape().forward("elementwise", || {
        with_slices([a.value(), b.value()], |[a_values, b_values]| {
            written(a.dims(), |y| kernel::add(a_values, b_values, y, cpu))
        })
    })?;
    let (slot_a, slot_b) = (a.slot(), b.slot());
    Ok(a.tape()
        .record("elementwise", &[a, b], value, move |d_y, sums| {
            sums.add_shared(slot_a, d_y.tensor())?;
            sums.add_shared(slot_b, d_y.tensor())
        }))
}

/// Adds one value per image and channel: `[N, H, W, C]` and `[N, C]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_per_image(x: &Node, shift: &Node) -> Result<Node> {
    composed("elementwise", [x, shift], |[x, shift]| {
        let (n, c) = shift.dims2()?;
        x.broadcast_add(&shift.reshape((n, 1, 1, c))?)
    })
}

/// Rows of a table: `[entries, C]` to `[N, C]`.
///
/// # Errors
/// If an index is not below the number of entries.
pub fn rows(table: &Node, indices: &[u32]) -> Result<Node> {
    let indices = Tensor::from_slice(indices, indices.len(), table.value().device())?;
    composed("elementwise", [table], |[table]| {
        table.index_select(&indices, 0)
    })
}

/// Joins the channels of two images: `[.., C_a]` and `[.., C_b]` to `[.., C_a + C_b]`.
///
/// # Errors
/// If the other axes differ.
pub fn concat(a: &Node, b: &Node) -> Result<Node> {
    let ((rest_a, c_a), (rest_b, c_b)) = (split_last(a), split_last(b));
    if rest_a != rest_b {
        return Err(shape_error(format_args!(
            "concat of {:?} and {:?}",
            a.dims(),
            b.dims()
        )));
    }
    if !on_kernels(&[a, b]) {
        return composed("elementwise", [a, b], |[a, b]| {
            Tensor::cat(&[a, b], D::Minus1)
        });
    }
    let (cpu, channels) = (a.tape().cpu(), [c_a, c_b]);
    let shape = [rest_a, &[c_a + c_b]].concat();
    let value = a.tape().forward("elementwise", || {
        with_slices([a.value(), b.value()], |[a, b]| {
            written(shape, |y| kernel::concat(a, b, channels, y, cpu))
        })
    })?;
    let (slot_a, slot_b) = (a.slot(), b.slot());
    let (dims_a, dims_b) = (a.dims().to_vec(), b.dims().to_vec());
    Ok(a.tape()
        .record("elementwise", &[a, b], value, move |d_y, sums| {
            let mut d_b = Ok(());
            let d_a = with_slices([d_y.tensor()], |[d_y]| {
                written(dims_a, |d_a| {
                    d_b = written(dims_b, |d_b| kernel::split(d_y, channels, d_a, d_b, cpu))
                        .and_then(|d_b| sums.add(slot_b, d_b));
                })
            })?;
            d_b?;
            sums.add(slot_a, d_a)
        }))
}

fn split_last(x: &Node) -> (&[usize], usize) {
    x.dims()
        .split_last()
        .map_or((&[], 0), |(last, rest)| (rest, *last))
}
