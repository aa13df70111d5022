//! The register tiles of `vdpbf16ps`, which multiplies and adds pairs of bf16.
//!
//! Everything is packed in pairs along the sum: the low half of a `u32` comes first. One
//! instruction adds 16 sums of two products, so a sum is one chain in the order of its pairs.

use std::arch::x86_64::*;
use std::mem::transmute;

use crate::cache::prefetch_line;
use crate::cpu::{Cpu, Isa, Shared, Threads};
use crate::gemm::{ROWS, Start, Sum};
use crate::panels::{COLS, Tiles};
use crate::scratch::{LINE, Scratch};

/// Positions of one tile of a linear layer.
const TILE: usize = 8 * ROWS;

/// Proof that the machine has the instructions.
#[derive(Clone, Copy)]
pub(crate) struct Bf16(());

/// A matrix `[k, n]` in strips of W columns, `[n / W, k / 2, W]` pairs, padded with zeros.
pub(crate) struct Pairs<const W: usize> {
    data: Scratch,
    n_pairs: usize,
    pub(crate) n: usize,
    strip_stride: usize,
}

impl<const W: usize> Pairs<W> {
    fn new(k: usize, n: usize) -> Self {
        let n_pairs = k.div_ceil(2);
        // Off a power of two, or the same pair of all strips falls into one set of the cache.
        let strip_stride = n_pairs * W + 16;
        Self {
            data: Scratch::new(n.div_ceil(W) * strip_stride),
            n_pairs,
            n,
            strip_stride,
        }
    }

    fn strip(&self, strip: usize) -> &[u32] {
        let strip = &self.data[strip * self.strip_stride..][..self.n_pairs * W];
        pulp::bytemuck::cast_slice(strip)
    }
}

impl Bf16 {
    /// If `isa` is AVX-512 and the machine has the bf16 extension of it.
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        let has =
            matches!(isa, Isa::Avx512(_) | Isa::Amx(..)) && is_x86_feature_detected!("avx512bf16");
        has.then_some(Self(()))
    }

    /// Packs the rows `row(0) .. row(k - 1)`, each of n elements.
    pub(crate) fn pack_rows<'a, const W: usize>(
        self,
        k: usize,
        n: usize,
        row: impl Fn(usize) -> &'a [f32],
    ) -> Pairs<W> {
        let mut pairs = Pairs::new(k, n);
        let stride = pairs.strip_stride;
        if n == 0 {
            return pairs;
        }
        for pair in 0..pairs.n_pairs {
            let low = &row(2 * pair)[..n];
            let high = if 2 * pair + 1 < k {
                &row(2 * pair + 1)[..n]
            } else {
                &[]
            };
            // SAFETY: the instructions are there.
            unsafe { pair_rows::<W>(low, high, &mut pairs.data[pair * W..], stride) };
        }
        pairs
    }

    /// Packs the matrix whose columns are `column(0) .. column(n - 1)`, each of k elements.
    pub(crate) fn pack_columns<'a>(
        self,
        k: usize,
        n: usize,
        column: impl Fn(usize) -> &'a [f32] + Sync,
        threads: Threads,
    ) -> Pairs<COLS> {
        let mut pairs = Pairs::<COLS>::new(k, n);
        let (n_pairs, stride) = (pairs.n_pairs, pairs.strip_stride);
        let shared = Shared::new(&mut pairs.data);
        threads.for_each(n.div_ceil(COLS), |strip| {
            // SAFETY: strips are disjoint.
            let out = unsafe { shared.tile(strip * stride, stride) };
            let mut halves = Scratch::new(n_pairs);
            for c in 0..COLS {
                if strip * COLS + c < n {
                    // SAFETY: the instructions are there.
                    unsafe { pair_row(&column(strip * COLS + c)[..k], &mut halves) };
                } else {
                    halves.fill(0.0);
                }
                for (row, &pair) in out.chunks_exact_mut(COLS).zip(&*halves) {
                    row[c] = pair;
                }
            }
        });
        pairs
    }

    /// `y = start + rows * b + residual` for rows of k elements.
    pub(crate) fn multiply(
        self,
        x: &[f32],
        b: &Pairs<COLS>,
        ends: Ends<'_>,
        y: &mut [f32],
        cpu: Cpu,
    ) {
        if y.is_empty() {
            return;
        }
        let n_rows = y.len() / b.n;
        let k = x.len() / n_rows;
        assert_eq!(x.len(), n_rows * k);
        assert_eq!(y.len(), n_rows * b.n);
        assert_eq!(k.div_ceil(2), b.n_pairs);
        let tiles = Tiles::new([n_rows, k, b.n], TILE, cpu.threads);
        let shared = Shared::new(y);
        cpu.threads.for_each(tiles.count(), |tile| {
            let rows = tiles.rows(tile);
            let mut a = Scratch::new(ROWS * b.n_pairs);
            for first in rows.clone().step_by(ROWS) {
                let live = ROWS.min(rows.end - first);
                for r in 0..live {
                    let row = &x[(first + r) * k..][..k];
                    // SAFETY: the instructions are there.
                    unsafe { pair_row(row, &mut a[r * b.n_pairs..][..b.n_pairs]) };
                }
                prefetch(&x[(first + live) * k..(first + ROWS + live).min(rows.end) * k]);
                for panel in tiles.panels(tile) {
                    let tile = Tile {
                        a: pulp::bytemuck::cast_slice(&a),
                        a_row: b.n_pairs,
                        b: b.strip(panel),
                        first_row: first,
                        n_rows: live,
                        first_col: panel * COLS,
                        n: b.n,
                    };
                    // SAFETY: the instructions are there, and positions and panels of tiles are
                    // disjoint.
                    unsafe { tile.run::<1>(ends, &shared) };
                }
            }
        });
    }

    /// `out[r][c] = sum over positions of a[position][r] * b[position][c]`, or that added to `out`.
    pub(crate) fn outer_products(
        self,
        a: &Pairs<ROWS>,
        b: &Pairs<COLS>,
        sum: Sum,
        out: &mut [f32],
    ) {
        assert_eq!((a.n_pairs, out.len()), (b.n_pairs, a.n * b.n));
        let out = Shared::new(out);
        let ends = Ends {
            start: Start::Zero,
            residual: None,
            sum,
        };
        for panel in 0..b.n.div_ceil(COLS) {
            for strip in 0..a.n.div_ceil(ROWS) {
                let tile = Tile {
                    a: a.strip(strip),
                    a_row: 1,
                    b: b.strip(panel),
                    first_row: strip * ROWS,
                    n_rows: ROWS.min(a.n - strip * ROWS),
                    first_col: panel * COLS,
                    n: b.n,
                };
                // SAFETY: the instructions are there, and `out` is this function's.
                unsafe { tile.run::<ROWS>(ends, &out) };
            }
        }
    }
}

/// What a product's rows begin and end with.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) start: Start<'a>,
    /// Like the output; added to the rounded sum.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) sum: Sum,
}

/// Up to [`ROWS`] rows by up to [`COLS`] columns of an output with rows of n elements.
struct Tile<'a> {
    /// Pair p of row r stands at `r * a_row + p * STEP`.
    a: &'a [u32],
    a_row: usize,
    /// `[n_pairs, COLS]`.
    b: &'a [u32],
    first_row: usize,
    n_rows: usize,
    first_col: usize,
    n: usize,
}

impl Tile<'_> {
    /// Computes the tile; `STEP` is the distance of two pairs of a row of `a`.
    ///
    /// # Safety
    /// The machine must have the instructions, and nobody else these elements of `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn run<const STEP: usize>(&self, ends: Ends<'_>, out: &Shared<'_>) {
        let n_pairs = self.b.len() / COLS;
        assert!(n_pairs == 0 || self.a.len() > (ROWS - 1) * self.a_row + (n_pairs - 1) * STEP);
        let n_cols = COLS.min(self.n - self.first_col);
        let mask = ((1u64 << n_cols) - 1) as u32;
        let masks = [mask as u16, (mask >> 16) as u16];
        let first = self.first_row * self.n + self.first_col;
        let out_len = (self.n_rows - 1) * self.n + n_cols;
        let out = out.pointer(first, out_len);
        let residual = ends
            .residual
            .map(|residual| residual[first..][..out_len].as_ptr());
        let bias = match ends.start {
            Start::Bias(bias) => bias[self.first_col..][..n_cols].as_ptr(),
            Start::Zero => std::ptr::null(),
        };
        // SAFETY: the rows of `a` and `b` have n_pairs pairs by the assertion; the masks keep all
        // others within `n_cols` elements, and rows within `n_rows`.
        unsafe {
            let mut start = [_mm512_setzero_ps(); 2];
            if !bias.is_null() {
                start = load(bias, masks);
            }
            let mut acc = [start; ROWS];
            if ends.sum == Sum::Add {
                for (r, acc) in acc.iter_mut().enumerate() {
                    if r < self.n_rows {
                        *acc = load(out.add(r * self.n), masks);
                    }
                }
            }
            let mut a: [*const u32; ROWS] = [self.a.as_ptr(); ROWS];
            for (r, a) in a.iter_mut().enumerate() {
                *a = a.add(r * self.a_row);
            }
            let b = self.b.as_ptr();
            for p in 0..n_pairs {
                let columns =
                    [0, 1].map(|v| pairs(_mm512_loadu_si512(b.add(p * COLS + 16 * v).cast())));
                for r in 0..ROWS {
                    let value = pairs(_mm512_set1_epi32(*a[r].add(p * STEP) as i32));
                    for v in 0..2 {
                        acc[r][v] = _mm512_dpbf16_ps(acc[r][v], value, columns[v]);
                    }
                }
            }
            for (r, mut acc) in acc.into_iter().enumerate() {
                if r < self.n_rows {
                    if let Some(residual) = residual {
                        let residual = load(residual.add(r * self.n), masks);
                        acc = [0, 1].map(|v| _mm512_add_ps(acc[v], residual[v]));
                    }
                    for v in 0..2 {
                        let into = out.wrapping_add(r * self.n + 16 * v);
                        _mm512_mask_storeu_ps(into, masks[v], acc[v]);
                    }
                }
            }
        }
    }
}

/// Two vectors, of which the masks may leave out the end.
///
/// # Safety
/// The elements of the masks must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(from: *const f32, masks: [u16; 2]) -> [__m512; 2] {
    // SAFETY: readable by contract; what the masks leave out is not touched.
    unsafe {
        [
            _mm512_maskz_loadu_ps(masks[0], from),
            _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(16)),
        ]
    }
}

/// The lanes that the first `n` elements fill.
fn lanes(n: usize) -> u16 {
    ((1u32 << n.min(16)) - 1) as u16
}

/// Pairs of neighbors in a row.
///
/// # Safety
/// The machine must have the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pair_row(row: &[f32], pairs: &mut [f32]) {
    assert_eq!(row.len().div_ceil(2), pairs.len());
    for (row, pairs) in row.chunks(32).zip(pairs.chunks_mut(16)) {
        // SAFETY: the masks keep loads and stores within the chunks.
        unsafe {
            let low = _mm512_maskz_loadu_ps(lanes(row.len()), row.as_ptr());
            let rest = row.len().saturating_sub(16);
            let high = _mm512_maskz_loadu_ps(lanes(rest), row.as_ptr().wrapping_add(16));
            let halves = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(pairs.as_mut_ptr().cast(), lanes(pairs.len()), halves);
        }
    }
}

/// Pairs of two rows, strip by strip; an empty high row counts as zeros.
///
/// # Safety
/// The machine must have the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pair_rows<const W: usize>(low: &[f32], high: &[f32], out: &mut [f32], stride: usize) {
    let n = low.len();
    assert!(high.is_empty() || high.len() == n);
    for (strip, first) in (0..n).step_by(W).enumerate() {
        let out = &mut out[strip * stride..][..W];
        for c in (0..W).step_by(16) {
            let live = lanes(n.saturating_sub(first + c).min(W - c));
            // SAFETY: the masks keep loads within the rows and stores within the strip.
            unsafe {
                let low = half(_mm512_maskz_loadu_ps(
                    live,
                    low.as_ptr().wrapping_add(first + c),
                ));
                let high_live = if high.is_empty() { 0 } else { live };
                let high = high.as_ptr().wrapping_add(first + c);
                let high = half(_mm512_maskz_loadu_ps(high_live, high));
                let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                let into = out.as_mut_ptr().add(c).cast();
                _mm512_mask_storeu_epi32(into, lanes(W - c), pairs);
            }
        }
    }
}

/// Each lane as bf16 in its low half.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn half(x: __m512) -> __m512i {
    // SAFETY: both types are 16 numbers of 16 bits.
    let halves = unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) };
    _mm512_cvtepu16_epi32(halves)
}

/// The same bits as 32 bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(x: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits of numbers.
    unsafe { transmute::<__m512i, __m512bh>(x) }
}

/// Asks for rows that the next block reads: its many short streams are too many for the hardware
/// to foresee.
fn prefetch(rows: &[f32]) {
    for line in rows.chunks(LINE) {
        prefetch_line(line.as_ptr());
    }
}
