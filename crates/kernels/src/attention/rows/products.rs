//! The products under attention, with inputs rounded to bf16.

use crate::attention::{Head, Places};
#[cfg(target_arch = "x86_64")]
use crate::bf16::avx512::{Bf16, Ends, Pairs};
use crate::bf16::round;
use crate::cpu::{Cpu, Isa, Shared};
use crate::gemm::{Distance, OuterProducts, ROWS, RowsTimesPanels, Start, Sum};
use crate::panels::{COLS, Panels, Strips};
use crate::scratch::Scratch;

/// What products run on: one thread.
#[derive(Clone, Copy)]
pub(super) struct Products {
    numbers: Numbers,
    cpu: Cpu,
}

/// How products see their inputs.
#[derive(Clone, Copy)]
enum Numbers {
    /// Rounded to bf16.
    Rounded,
    /// Rounded to bf16, in pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs(Bf16),
}

impl Numbers {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "pairs of bf16 need it")
    )]
    fn of(cpu: Cpu) -> Self {
        // Processors with tile registers multiply pairs more slowly than f32.
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512(_), Some(bf16)) = (cpu.isa, Bf16::of(cpu.isa)) {
            return Self::Pairs(bf16);
        }
        Self::Rounded
    }
}

/// The right side of a product, `[k, n]`.
pub(super) enum Right {
    Panels(Panels<'static>),
    #[cfg(target_arch = "x86_64")]
    Pairs(Bf16, Pairs<COLS>),
}

impl Right {
    /// Columns.
    pub(super) fn n(&self) -> usize {
        match self {
            Self::Panels(panels) => panels.n,
            #[cfg(target_arch = "x86_64")]
            Self::Pairs(_, pairs) => pairs.n,
        }
    }
}

/// Rows as products see them, row after row, kind after kind.
pub(super) struct Input {
    data: Scratch,
    places: Places,
}

impl Input {
    pub(super) fn head(&self) -> Head<'_> {
        Head {
            data: &self.data,
            places: self.places,
        }
    }
}

impl Products {
    pub(super) fn new(cpu: Cpu) -> Self {
        Self {
            numbers: Numbers::of(cpu),
            cpu: cpu.one_thread(),
        }
    }

    pub(super) fn isa(&self) -> Isa {
        self.cpu.isa
    }

    /// The first kinds of rows of a head.
    pub(super) fn input(&self, head: &Head<'_>, n_kinds: usize) -> Input {
        let (t, d) = (head.places.n_positions, head.places.d);
        let mut copy = Scratch::new(n_kinds * t * d);
        self.cpu.isa.vectorize(
            #[inline(always)]
            |_| {
                for (i, row) in copy.chunks_exact_mut(d).enumerate() {
                    for (into, &x) in row.iter_mut().zip(head.row(i / t, i % t)) {
                        *into = round(x);
                    }
                }
            },
        );
        let places = Places {
            starts: [0, t * d, 2 * t * d],
            stride: d,
            ..head.places
        };
        Input { data: copy, places }
    }

    /// Rounds what a product is going to read, if it does not do so itself.
    pub(super) fn round(&self, x: &mut [f32]) {
        if matches!(self.numbers, Numbers::Rounded) {
            self.cpu.isa.vectorize(
                #[inline(always)]
                |_| x.iter_mut().for_each(|x| *x = round(*x)),
            );
        }
    }

    /// All rows of a kind as a matrix `[T, D]`.
    pub(super) fn rows(&self, head: &Head<'_>, kind: usize) -> Right {
        let Places { n_positions, d, .. } = head.places;
        let row = |i| head.row(kind, i);
        match self.numbers {
            #[cfg(target_arch = "x86_64")]
            Numbers::Pairs(bf16) => Right::Pairs(bf16, bf16.pack_rows(n_positions, d, row)),
            _ => Right::Panels(Panels::from_rows(n_positions, d, row, self.cpu)),
        }
    }

    /// All rows of a kind as the columns of a matrix `[D, T]`.
    pub(super) fn columns(&self, head: &Head<'_>, kind: usize) -> Right {
        let Places { n_positions, d, .. } = head.places;
        let (row, cpu) = (|i| head.row(kind, i), self.cpu);
        match self.numbers {
            #[cfg(target_arch = "x86_64")]
            Numbers::Pairs(bf16) => {
                Right::Pairs(bf16, bf16.pack_columns(d, n_positions, row, cpu.threads))
            }
            _ => Right::Panels(Panels::from_columns(d, n_positions, row, cpu)),
        }
    }

    /// `out = a b`, as many rows as `out` has.
    pub(super) fn multiply(&self, a: Left<'_>, b: &Right, out: &mut [f32]) {
        match b {
            Right::Panels(b) => multiply(|i| a.row(i, b.k), b, out, self.cpu.isa),
            #[cfg(target_arch = "x86_64")]
            Right::Pairs(bf16, b) => {
                let ends = Ends {
                    start: Start::Zero,
                    residual: None,
                    sum: Sum::Set,
                };
                let len = out.len() / b.n * a.stride;
                bf16.multiply(&a.data[..len], b, ends, out, self.cpu);
            }
        }
    }

    /// `out = a^T b` for n rows of t and d numbers, `[t, d]`, or that added to `out`.
    ///
    /// Behind the last row of `a`, [`ROWS`] numbers more must be readable.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "pairs of bf16 need it")
    )]
    pub(super) fn add_outer(
        &self,
        (a, b): (Left<'_>, Left<'_>),
        [n, t, d]: [usize; 3],
        sum: Sum,
        out: &mut [f32],
    ) {
        match self.numbers {
            #[cfg(target_arch = "x86_64")]
            Numbers::Pairs(bf16) => {
                let a = bf16.pack_rows(n, t, |i| a.row(i, t));
                let b = bf16.pack_rows(n, d, |i| b.row(i, d));
                bf16.outer_products(&a, &b, sum, out);
            }
            _ => {
                let sums = OuterProducts {
                    a: &Strips::in_place(a.data, n, a.stride),
                    b: &Strips::pack(n, d, |i| Some(b.row(i, d)), self.cpu.isa),
                    sum,
                    out,
                    n_cols: d,
                    next: None,
                };
                sums.run(self.cpu.isa);
            }
        }
    }
}

/// One side of a product: rows, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Left<'a> {
    /// Rows of a head, from one on.
    pub(super) fn rows(head: &Head<'a>, kind: usize, first: usize) -> Self {
        Self {
            data: &head.data[head.places.row(kind, first).start..],
            stride: head.places.stride,
        }
    }

    /// Rows of n numbers.
    pub(super) fn matrix(data: &'a [f32], n: usize) -> Self {
        Self { data, stride: n }
    }

    /// All rows from one on.
    pub(super) fn from(self, row: usize) -> Self {
        Self {
            data: &self.data[row * self.stride..],
            ..self
        }
    }

    pub(super) fn row(&self, i: usize, k: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..k]
    }
}

/// `out[i] = row(i) * b` for all rows of `out`, each row of b.k elements.
fn multiply<'a>(row: impl Fn(usize) -> &'a [f32], b: &Panels<'_>, out: &mut [f32], isa: Isa) {
    let n_rows = out.len() / b.n;
    let out = Shared::new(out);
    for first_row in (0..n_rows).step_by(ROWS) {
        let live = ROWS.min(n_rows - first_row);
        let a: [*const f32; ROWS] =
            std::array::from_fn(|r| row(first_row + r.min(live - 1))[..b.k].as_ptr());
        let block = RowsTimesPanels {
            a: &a,
            k: &[b.k],
            b,
            start: Start::Zero,
            residual: None,
            panels: 0..b.n.div_ceil(COLS),
            out: &out,
            first_row,
            n_rows: live,
            distance: Distance::Near,
        };
        // SAFETY: each row has b.k elements, and `out` is this function's.
        unsafe { block.run(isa) };
    }
}
