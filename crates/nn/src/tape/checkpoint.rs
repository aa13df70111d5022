//! Blocks that are run twice so that nothing inside them has to be kept.

use super::{Node, Recompute, Slot, Tape};
use crate::Result;

/// The result of `block`, which is run again for its gradients if the tape asks for that.
///
/// Only the inputs of the block are then kept. It must give the same result each time.
///
/// # Errors
/// If the block fails.
///
/// # Source
/// Chen et al. 2016, arXiv 1604.06174.
pub fn checkpoint<const N: usize>(
    inputs: [&Node; N],
    block: impl Fn([&Node; N]) -> Result<Node> + 'static,
) -> Result<Node> {
    let tape = match inputs.first() {
        Some(first) if first.tape().recompute() == Some(Recompute::Blocks) => first.tape(),
        _ => return block(inputs),
    };
    let cpu = tape.cpu();
    let value = tape.forward("block", || {
        let inner = Tape::inference(cpu);
        let inputs = inputs.map(|input| inner.constant(input.value()));
        Ok(block(inputs.each_ref())?.value().clone())
    })?;
    let slots: [Option<Slot>; N] = inputs.map(Node::slot);
    let saved = inputs.map(Node::save);
    // Its parameters have gradients even if its inputs have none.
    Ok(tape.record_always("block", value, move |d_y, sums| {
        let inner = Tape::recording(cpu, Recompute::Nothing);
        let mut inputs = Vec::with_capacity(N);
        for saved in &saved {
            inputs.push(inner.input(&saved.get()?));
        }
        let Ok(inputs) = <[Node; N]>::try_from(inputs) else {
            return Ok(()); // there are as many as were saved
        };
        let mut gradients = block(inputs.each_ref())?.backward(d_y.tensor())?;
        for (input, slot) in inputs.iter().zip(slots) {
            if let Some(gradient) = gradients.take(input) {
                sums.pass(slot, gradient)?;
            }
        }
        for (param, gradient) in gradients.into_params() {
            sums.pass_param(param, gradient)?;
        }
        Ok(())
    }))
}
