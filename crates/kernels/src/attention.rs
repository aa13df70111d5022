//! Multi-head self-attention without a stored `T × T` matrix: the backward pass computes it again.
//!
//! Queries, keys and values come interleaved in one tensor, as the projection before wrote them.

use crate::cpu::{Cpu, Isa, Shared};
use crate::elementwise::exp;
use crate::gemm::{OuterProducts, ROWS, RowsTimesPanels, Start, Sum};
use crate::panels::{COLS, Panels, Strips};
use crate::scratch::Scratch;

/// Queries whose scores are in memory at a time.
const QUERIES: usize = 8 * ROWS;

/// Sizes of the operation and the layout of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// Images.
    pub n: usize,
    /// Positions of an image.
    pub n_positions: usize,
    /// Heads.
    pub n_heads: usize,
    /// Channels per head.
    pub head_channels: usize,
    /// How the input's channels are laid out.
    pub order: Order,
}

/// How the 3 C channels of queries, keys and values are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Head by head: its query, key and value (the reference's `QKVAttentionLegacy`).
    HeadMajor,
    /// All queries, all keys, all values, each head by head (`QKVAttention`).
    KindMajor,
}

/// One head of one image: where its rows start, and how far apart they are.
struct Head<'a> {
    qkv: &'a [f32],
    stride: usize,
    offsets: [usize; 3],
    n_positions: usize,
    d: usize,
}

impl Head<'_> {
    /// Row `position` of the queries (0), keys (1) or values (2), `[D]`.
    fn row(&self, kind: usize, position: usize) -> &[f32] {
        &self.qkv[position * self.stride + self.offsets[kind]..][..self.d]
    }

    /// All rows of a kind as a matrix `[T, D]`.
    fn rows(&self, kind: usize, cpu: Cpu) -> Panels<'static> {
        Panels::from_rows(self.n_positions, self.d, |i| self.row(kind, i), cpu)
    }

    /// All rows of a kind as the columns of a matrix `[D, T]`.
    fn columns(&self, kind: usize, cpu: Cpu) -> Panels<'static> {
        Panels::from_columns(self.d, self.n_positions, |i| self.row(kind, i), cpu)
    }
}

impl Attention {
    /// Channels of the output.
    pub fn channels(&self) -> usize {
        self.n_heads * self.head_channels
    }

    /// `softmax(q k^T / sqrt(D)) v` per head: `qkv` is `[N, T, 3 C]`, `y` is `[N, T, C]`, head by
    /// head.
    pub fn forward(&self, qkv: &[f32], y: &mut [f32], cpu: Cpu) {
        self.check(qkv.len(), y.len());
        let (t, d, c) = (self.n_positions, self.head_channels, self.channels());
        let shared = Shared::new(y);
        let one = cpu.one_thread();
        cpu.threads.for_each(self.n * self.n_heads, |task| {
            let (image, head_idx) = (task / self.n_heads, task % self.n_heads);
            let head = self.head(qkv, image, head_idx);
            let (keys, values) = (head.columns(1, one), head.rows(2, one));
            let mut probabilities = Scratch::new(QUERIES.min(t) * t);
            let mut out = Scratch::new(QUERIES.min(t) * d);
            for first in (0..t).step_by(QUERIES) {
                let n_queries = QUERIES.min(t - first);
                self.probabilities(
                    &head,
                    &keys,
                    first,
                    &mut probabilities[..n_queries * t],
                    cpu.isa,
                );
                let rows = |i: usize| &probabilities[i * t..][..t];
                multiply(rows, n_queries, &values, &mut out[..n_queries * d], cpu.isa);
                for i in 0..n_queries {
                    // SAFETY: (image, position, head) of different tasks are disjoint.
                    let y = unsafe { shared.tile((image * t + first + i) * c + head_idx * d, d) };
                    y.copy_from_slice(&out[i * d..][..d]);
                }
            }
        });
    }

    /// `d_qkv`, given the gradient of the output.
    pub fn backward(&self, qkv: &[f32], d_y: &[f32], d_qkv: &mut [f32], cpu: Cpu) {
        self.check(qkv.len(), d_y.len());
        assert_eq!(d_qkv.len(), qkv.len());
        let (t, d) = (self.n_positions, self.head_channels);
        let shared = Shared::new(d_qkv);
        let one = cpu.one_thread();
        cpu.threads.for_each(self.n * self.n_heads, |task| {
            let (image, head_idx) = (task / self.n_heads, task % self.n_heads);
            let head = self.head(qkv, image, head_idx);
            let d_y = Head {
                qkv: &d_y[image * t * self.channels()..],
                stride: self.channels(),
                offsets: [head_idx * d; 3],
                n_positions: t,
                d,
            };
            let gradients = self.head_backward(&head, &d_y, one);
            for (kind, gradient) in gradients.iter().enumerate() {
                for position in 0..t {
                    let start = (image * t + position) * head.stride + head.offsets[kind];
                    // SAFETY: (image, position, kind, head) of different tasks are disjoint.
                    let row = unsafe { shared.tile(start, d) };
                    row.copy_from_slice(&gradient[position * d..][..d]);
                }
            }
        });
    }

    /// The gradients with respect to the queries, keys and values of one head, `[T, D]` each.
    fn head_backward(&self, head: &Head<'_>, d_y: &Head<'_>, cpu: Cpu) -> [Scratch; 3] {
        let (t, d, isa) = (self.n_positions, self.head_channels, cpu.isa);
        let (keys, key_rows) = (head.columns(1, cpu), head.rows(1, cpu));
        let values = head.columns(2, cpu);
        let [mut d_q, mut d_k, mut d_v] = [(); 3].map(|()| Scratch::new(t * d));
        // The last strip reads past the last row.
        let matrix = || Scratch::new(QUERIES.min(t) * t + ROWS);
        let (mut probabilities, mut d_scores) = (matrix(), matrix());
        for first in (0..t).step_by(QUERIES) {
            let n_queries = QUERIES.min(t - first);
            let p = &mut probabilities[..n_queries * t];
            self.probabilities(head, &keys, first, p, isa);
            let d_s = &mut d_scores[..n_queries * t];
            multiply(|i| d_y.row(0, first + i), n_queries, &values, d_s, isa);
            self.softmax_backward(p, d_s, isa);
            let rows = |i: usize| &d_s[i * t..][..t];
            multiply(
                rows,
                n_queries,
                &key_rows,
                &mut d_q[first * d..][..n_queries * d],
                isa,
            );
            let queries = Strips::pack(n_queries, d, |i| Some(head.row(0, first + i)), isa);
            let d_y = Strips::pack(n_queries, d, |i| Some(d_y.row(0, first + i)), isa);
            let products = [
                (&d_scores, &queries, &mut d_k),
                (&probabilities, &d_y, &mut d_v),
            ];
            for (a, b, out) in products {
                let sums = OuterProducts {
                    a: &Strips::in_place(a, n_queries, t),
                    b,
                    sum: if first == 0 { Sum::Set } else { Sum::Add },
                    out,
                    n_cols: d,
                };
                sums.run(isa);
            }
        }
        [d_q, d_k, d_v]
    }

    /// `softmax(q k^T / sqrt(D))` for the queries from `first` on, as many as `out` has rows.
    fn probabilities(
        &self,
        head: &Head<'_>,
        keys: &Panels<'_>,
        first: usize,
        out: &mut [f32],
        isa: Isa,
    ) {
        let t = self.n_positions;
        let scale = self.scale();
        multiply(|i| head.row(0, first + i), out.len() / t, keys, out, isa);
        isa.vectorize(
            #[inline(always)]
            || {
                for row in out.chunks_exact_mut(t) {
                    let max = reduce(
                        row,
                        row,
                        f32::NEG_INFINITY,
                        |max, s, _| if s > max { s } else { max },
                    );
                    for s in row.iter_mut() {
                        *s = exp((*s - max) * scale);
                    }
                    let reciprocal = 1.0 / reduce(row, row, 0.0, |sum, s, _| sum + s);
                    for s in row.iter_mut() {
                        *s *= reciprocal;
                    }
                }
            },
        );
    }

    /// Turns `d_p` into the gradient of the unscaled scores: `p (d_p - sum(p d_p)) / sqrt(D)`.
    fn softmax_backward(&self, p: &[f32], d_p: &mut [f32], isa: Isa) {
        let (t, scale) = (self.n_positions, self.scale());
        isa.vectorize(
            #[inline(always)]
            || {
                for (p, d_p) in p.chunks_exact(t).zip(d_p.chunks_exact_mut(t)) {
                    let dot = reduce(p, d_p, 0.0, |dot, p, d_p| dot + p * d_p);
                    for (p, d_p) in p.iter().zip(d_p.iter_mut()) {
                        *d_p = p * (*d_p - dot) * scale;
                    }
                }
            },
        );
    }

    fn scale(&self) -> f32 {
        (1.0 / (self.head_channels as f64).sqrt()) as f32
    }

    fn head<'a>(&self, qkv: &'a [f32], image: usize, head: usize) -> Head<'a> {
        let (d, c) = (self.head_channels, self.channels());
        let offsets = match self.order {
            Order::HeadMajor => [0, 1, 2].map(|kind| (head * 3 + kind) * d),
            Order::KindMajor => [0, 1, 2].map(|kind| kind * c + head * d),
        };
        let stride = 3 * c;
        let qkv = &qkv[image * self.n_positions * stride..];
        Head {
            qkv,
            stride,
            offsets,
            n_positions: self.n_positions,
            d,
        }
    }

    fn check(&self, qkv_len: usize, y_len: usize) {
        assert!(self.n_positions > 0 && self.head_channels > 0, "{self:?}");
        assert_eq!(y_len, self.n * self.n_positions * self.channels());
        assert_eq!(qkv_len, 3 * y_len);
    }
}

/// Folds two rows into one number in 16 interleaved lanes, so that it vectorizes in a fixed order.
///
/// `start` must be neutral, and `f(a, lane, 1)` must join a lane to the result.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], start: f32, f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [start; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] = f(lanes[i], a[i], b[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] = f(lanes[i], a, b);
    }
    lanes.into_iter().fold(start, |sum, lane| f(sum, lane, 1.0))
}

/// `out[i] = row(i) * b` for all rows, each of b.k elements.
fn multiply<'a>(
    row: impl Fn(usize) -> &'a [f32],
    n_rows: usize,
    b: &Panels<'_>,
    out: &mut [f32],
    isa: Isa,
) {
    let out = Shared::new(out);
    for first_row in (0..n_rows).step_by(ROWS) {
        let live = ROWS.min(n_rows - first_row);
        let a: [*const f32; ROWS] =
            std::array::from_fn(|r| row(first_row + r.min(live - 1))[..b.k].as_ptr());
        let block = RowsTimesPanels {
            a: &a,
            k: b.k,
            b,
            start: Start::Zero,
            residual: None,
            panels: 0..b.n.div_ceil(COLS),
            out: &out,
            first_row,
            n_rows: live,
        };
        // SAFETY: each row has b.k elements, and `out` is this function's.
        unsafe { block.run(isa) };
    }
}
