//! Gradients of a batch, summed over micro-batches in order, and the check that they are finite.

use std::sync::Arc;

use candle_core::Tensor;
use p2_nn::{Gradients as Found, Params, adamw};
use rayon::prelude::*;

use super::values;
use crate::config::section::Optim;
use crate::fault;
use crate::problem::Problem;

/// One gradient per parameter.
pub(super) struct Gradients {
    params: Params,
    sums: Vec<Tensor>,
}

impl Gradients {
    pub(super) fn zero(params: &Params) -> Self {
        Self {
            params: params.clone(),
            sums: Vec::new(),
        }
    }

    /// Adds the gradients of a micro-batch.
    pub(super) fn add(&mut self, gradients: Found) -> anyhow::Result<()> {
        let gradients = gradients.into_tensors(&self.params)?;
        if self.sums.is_empty() {
            self.sums = gradients;
            return Ok(());
        }
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            *sum = (&*sum + gradient)?;
        }
        Ok(())
    }

    /// The sums, in the order of the parameters.
    pub(super) fn tensors(&self) -> &[Tensor] {
        &self.sums
    }

    /// The global L2 norm.
    ///
    /// # Errors
    /// If it is not finite: names the step, the first such parameter, and the levels and files of
    /// the batch.
    pub(super) fn checked_norm(
        &self,
        t: &[f64],
        files: &[Arc<str>],
        step: u64,
    ) -> anyhow::Result<f64> {
        let norms: Vec<_> = self.sums.par_iter().map(square_norm).collect();
        let mut sum = 0.0;
        for (param, norm) in self.params.iter().zip(norms) {
            let norm = fault::number("train.gradient", norm?);
            if !norm.is_finite() {
                let images: Vec<String> = t
                    .iter()
                    .zip(files)
                    .map(|(t, file)| format!("t = {t} for {file}"))
                    .collect();
                let message = format!(
                    "the gradient of `{}` is not finite in step {step}: {}",
                    param.name(),
                    images.join("; ")
                );
                return Err(diverged(message).into());
            }
            sum += norm;
        }
        Ok(sum.sqrt())
    }
}

/// The sum of squares in f64, in 8 lanes and in order.
fn square_norm(tensor: &Tensor) -> anyhow::Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let (candle_core::Storage::Cpu(storage), Some((start, end))) =
        (&*storage, layout.contiguous_offsets())
    else {
        anyhow::bail!("gradients must be contiguous, on the CPU");
    };
    let (chunks, rest) = storage.as_slice::<f32>()?[start..end].as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    let rest: f64 = rest.iter().map(|&value| f64::from(value).powi(2)).sum();
    Ok(lanes.iter().sum::<f64>() + rest)
}

/// Stops at the first loss that is not finite.
///
/// # Errors
/// Names the step and, for each such image, noise level and file.
pub(super) fn check_loss(
    losses: &Tensor,
    (t, times): (&[u32], &[f64]),
    log_snr: &[f64],
    files: &[Arc<str>],
    step: u64,
) -> anyhow::Result<()> {
    let mut losses = values(losses)?;
    if let Some(first) = losses.first_mut() {
        *first = fault::number("train.loss", *first);
    }
    let broken: Vec<String> = losses
        .iter()
        .zip(t.iter().zip(times).zip(files))
        .filter(|(loss, _)| !loss.is_finite())
        .map(|(loss, ((&t, time), file))| {
            let log_snr = log_snr[t as usize];
            format!("{loss} at t = {time} (log-SNR {log_snr:.2}) for {file}")
        })
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(diverged(format!(
        "the loss is not finite in step {step}: {}",
        broken.join("; ")
    ))
    .into())
}

/// The step that gradients of this norm are good for, clipped if they are too long.
pub(super) fn adamw_step(optim: &Optim, lr: f64, grad_norm: f64, step: u64) -> adamw::Step {
    let clip = optim.max_grad_norm > 0.0 && grad_norm > optim.max_grad_norm;
    adamw::Step {
        lr,
        beta1: optim.beta1,
        beta2: optim.beta2,
        eps: optim.eps,
        weight_decay: optim.weight_decay,
        step,
        grad_scale: if clip {
            optim.max_grad_norm / grad_norm
        } else {
            1.0
        },
        ema_decay: 0.0,
    }
}

fn diverged(message: String) -> Problem {
    Problem::new(message).because("nothing can be learnt from it, so the weights were not touched").hint(
        "the last checkpoint is intact; continue from it with a smaller optim.lr, or look at the files",
    )
}
