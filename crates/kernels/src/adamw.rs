//! One AdamW step and the moving average of the weights, in one pass over memory.

use crate::cpu::{Cpu, Shared};

/// Elements of one tile.
const TILE: usize = 1 << 14;

/// The numbers of one step.
///
/// # Source
/// Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; bias correction as in
/// Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// The gradient is multiplied by this first (global-norm clipping).
    pub grad_scale: f64,
    /// Share of its old value that the average keeps.
    pub ema_decay: f64,
}

/// What a step changes, all of one length.
#[derive(Debug)]
pub struct State<'a> {
    /// The weights.
    pub param: &'a mut [f32],
    /// Moving average of the gradient.
    pub exp_avg: &'a mut [f32],
    /// Moving average of its square.
    pub exp_avg_sq: &'a mut [f32],
    /// Moving average of the weights.
    pub ema: &'a mut [f32],
}

impl AdamW {
    /// Updates `state` by the gradient `grad`.
    pub fn step(&self, grad: &[f32], state: State<'_>, cpu: Cpu) {
        let n = grad.len();
        let State {
            param,
            exp_avg,
            exp_avg_sq,
            ema,
        } = state;
        let lengths = [param.len(), exp_avg.len(), exp_avg_sq.len(), ema.len()];
        assert_eq!(lengths, [n; 4]);
        let correction1 = 1.0 - self.beta1.powf(self.step as f64);
        let correction2 = 1.0 - self.beta2.powf(self.step as f64);
        // Constants in f64, cast to f32 here and nowhere else.
        let [keep1, add1] = [self.beta1 as f32, (1.0 - self.beta1) as f32];
        let [keep2, add2] = [self.beta2 as f32, (1.0 - self.beta2) as f32];
        let step_size = (self.lr / correction1) as f32;
        let root_scale = (1.0 / correction2.sqrt()) as f32;
        let (eps, grad_scale) = (self.eps as f32, self.grad_scale as f32);
        let shrink = (1.0 - self.lr * self.weight_decay) as f32;
        let ema_add = (1.0 - self.ema_decay) as f32;
        let [param, exp_avg, exp_avg_sq, ema] = [param, exp_avg, exp_avg_sq, ema].map(Shared::new);
        cpu.threads.for_each(n.div_ceil(TILE), |tile| {
            let start = tile * TILE;
            let grad = &grad[start..(start + TILE).min(n)];
            // SAFETY: tiles are disjoint.
            let [param, exp_avg, exp_avg_sq, ema] =
                unsafe { [&param, &exp_avg, &exp_avg_sq, &ema].map(|s| s.tile(start, grad.len())) };
            cpu.isa.vectorize(
                #[inline(always)]
                |_| {
                    for i in 0..grad.len() {
                        let g = grad[i] * grad_scale;
                        let m = exp_avg[i] * keep1 + g * add1;
                        let v = exp_avg_sq[i] * keep2 + g * g * add2;
                        let p = param[i] * shrink - step_size * m / (v.sqrt() * root_scale + eps);
                        exp_avg[i] = m;
                        exp_avg_sq[i] = v;
                        param[i] = p;
                        ema[i] += (p - ema[i]) * ema_add;
                    }
                },
            );
        });
    }
}
