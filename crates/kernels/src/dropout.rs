//! Dropout: the elements of images times 0 or a constant, as a bit of each says.

use pulp::{Simd, WithSimd};

use crate::cpu::{Cpu, Shared};
use crate::element::Element;

/// Elements of one piece: a multiple of those of a word, and of all that one call of a generator may draw.
const PIECE: usize = 1 << 14;

/// Elements whose bits are read at once.
const WORD: usize = 32;

/// Which elements of some images are dropped, in one bit each.
#[derive(Debug, Clone, PartialEq)]
pub struct Mask {
    /// Of each image, from a byte of its own on: bit `i % 8` of byte `i / 8` is set where element i is dropped.
    dropped: Vec<u8>,
    n: usize,
    n_elements: usize,
    kept: f32,
}

/// Successive elements of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Place of the image in the batch.
    pub image: usize,
    /// Its first element, a multiple of 16384.
    pub first: usize,
}

impl Mask {
    /// The mask of `n` images of `n_elements` each, whose bits `fill` sets.
    ///
    /// - `kept`: what elements that are not dropped are multiplied by
    /// - `fill`: called for each piece once, in any order and from several threads; sets bit `i % 8` of
    ///   byte `i / 8` where element i of the piece is dropped, and clears the others
    pub fn new(
        [n, n_elements]: [usize; 2],
        kept: f32,
        cpu: Cpu,
        fill: impl Fn(Piece, &mut [u8]) + Sync,
    ) -> Self {
        let n_bytes = n_elements.div_ceil(8);
        let mut mask = Self {
            dropped: vec![0; n * n_bytes],
            n,
            n_elements,
            kept,
        };
        let n_pieces = mask.n_pieces();
        let shared = Shared::new(&mut mask.dropped);
        cpu.threads.for_each(n * n_pieces, |tile| {
            let (image, first) = (tile / n_pieces, tile % n_pieces * PIECE);
            let len = PIECE.min(n_elements - first).div_ceil(8);
            // SAFETY: pieces are disjoint, and each begins at a byte of its own.
            let dropped = unsafe { shared.tile(image * n_bytes + first / 8, len) };
            fill(Piece { image, first }, dropped);
        });
        mask
    }

    /// Elements of all images.
    pub fn len(&self) -> usize {
        self.n * self.n_elements
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What each element is multiplied by.
    pub fn factors(&self) -> Vec<f32> {
        let of_image = |dropped| (0..self.n_elements).map(move |i| factor(dropped, i, self.kept));
        let images = (0..self.n).map(|image| self.of_image(image));
        images.flat_map(of_image).collect()
    }

    /// `y = x factors`, which is also how a gradient goes back.
    pub fn apply<X: Element>(&self, x: &[X], y: &mut [X], cpu: Cpu) {
        assert_eq!((x.len(), y.len()), (self.len(), self.len()));
        let n_pieces = self.n_pieces();
        let shared = Shared::new(y);
        cpu.threads.for_each(self.n * n_pieces, |tile| {
            let (image, first) = (tile / n_pieces, tile % n_pieces * PIECE);
            let len = PIECE.min(self.n_elements - first);
            let start = image * self.n_elements + first;
            cpu.isa.dispatch(Product {
                x: &x[start..][..len],
                dropped: &self.of_image(image)[first / 8..],
                kept: self.kept,
                // SAFETY: pieces are disjoint.
                y: unsafe { shared.tile(start, len) },
            });
        });
    }

    fn n_pieces(&self) -> usize {
        self.n_elements.div_ceil(PIECE)
    }

    fn of_image(&self, image: usize) -> &[u8] {
        let n_bytes = self.n_elements.div_ceil(8);
        &self.dropped[image * n_bytes..][..n_bytes]
    }
}

/// What element i is multiplied by.
#[inline(always)]
fn factor(dropped: &[u8], i: usize, kept: f32) -> f32 {
    if dropped[i / 8] >> (i % 8) & 1 == 1 {
        0.0
    } else {
        kept
    }
}

/// The elements of a piece times their factors.
///
/// A product also with 0: what is not a number shall stay visible.
struct Product<'a, X> {
    x: &'a [X],
    dropped: &'a [u8],
    kept: f32,
    y: &'a mut [X],
}

impl<X: Element> WithSimd for Product<'_, X> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const BITS: [u32; WORD] = {
            let mut bits = [0; WORD];
            let mut i = 0;
            while i < WORD {
                bits[i] = 1 << i;
                i += 1;
            }
            bits
        };
        let bits = S::as_simd_u32s(&BITS).0;
        let (kept, zero) = (simd.splat_f32s(self.kept), simd.splat_f32s(0.0));
        let (x_words, x_rest) = self.x.as_chunks::<WORD>();
        let (y_words, y_rest) = self.y.as_chunks_mut::<WORD>();
        let dropped = self.dropped.as_chunks::<{ WORD / 8 }>().0;
        for ((x, y), dropped) in x_words.iter().zip(y_words.iter_mut()).zip(dropped) {
            let dropped = simd.splat_u32s(u32::from_le_bytes(*dropped));
            let mut values = x.map(X::widen);
            for (value, bit) in S::as_mut_simd_f32s(&mut values).0.iter_mut().zip(bits) {
                let is_kept = simd.equal_u32s(simd.and_u32s(dropped, *bit), simd.splat_u32s(0));
                *value = simd.mul_f32s(*value, simd.select_f32s(is_kept, kept, zero));
            }
            *y = values.map(X::round);
        }
        let rest = &self.dropped[x_words.len() * WORD / 8..];
        for (i, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
            *y = X::round(x.widen() * factor(rest, i, self.kept));
        }
    }
}
