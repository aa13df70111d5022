//! Change of image size, equal to Pillow's to the last bit.
//!
//! Published results depend on the resampler (Parmar et al. 2022, arXiv 2104.11222), and the
//! reference uses Pillow's. `fast_image_resize` was tried: it rounds its weights more coarsely.

use std::ops::Range;

use image::RgbImage;

/// Weights are whole multiples of `2^-22`, which leaves 10 bits for pixels and overshoot.
const PRECISION_BITS: u32 = 22;

/// How input pixels are weighed by their distance from an output pixel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Filter {
    /// The mean of the pixels covered.
    Box,
    /// Keys' cubic with a = -0.5, stretched over the pixels covered.
    Bicubic,
}

impl Filter {
    /// Distance, in output pixels (in input pixels when enlarging), beyond which weights are 0.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        match (self, distance.abs()) {
            // Half open, so that a pixel on the edge of two counts for one of them.
            (Self::Box, _) if distance > -0.5 && distance <= 0.5 => 1.0,
            (Self::Bicubic, x) if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            (Self::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Lengths along one axis: all of the input, all of the output, and the part of it that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    pub(super) wanted: Range<usize>,
}

impl Axis {
    /// An axis that is halved, of which all of the output is wanted.
    pub(super) fn halved(n_in: usize) -> Self {
        let n_out = n_in / 2;
        let wanted = 0..n_out;
        Self {
            n_in,
            n_out,
            wanted,
        }
    }
}

/// Resizes to `y.n_out` by `x.n_out` pixels and returns the wanted part.
///
/// Only what that part needs is computed, so that a very long image does not become enormous.
pub(super) fn resize(image: &RgbImage, filter: Filter, y: &Axis, x: &Axis) -> RgbImage {
    let rows = taps(filter, y);
    let columns = taps(filter, x);
    let first_row = rows.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end_row = rows
        .iter()
        .map(|taps| taps.first + taps.weights.len())
        .max()
        .unwrap_or(0);
    let narrow = resize_rows(image, &columns, first_row..end_row); // [end_row - first_row, wanted x, 3]
    let pixels = resize_columns(&narrow, 3 * columns.len(), &rows, first_row);
    RgbImage::from_raw(columns.len() as u32, rows.len() as u32, pixels).unwrap_or_default()
}

/// The input pixels of one output pixel.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Pillow 13, `precompute_coeffs` and `normalize_coeffs_8bpc`.
fn taps(filter: Filter, axis: &Axis) -> Vec<Taps> {
    let scale = axis.n_in as f64 / axis.n_out as f64;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one_output = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        // Both casts cut off the fraction, and negative numbers to 0.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(axis.n_in);
        let weigh = |j: usize| filter.weight((j as f64 - center + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (first..end).map(weigh).collect();
        let sum: f64 = weights.iter().sum();
        Taps {
            first,
            weights: weights
                .iter()
                .map(|weight| fixed_point(weight / sum))
                .collect(),
        }
    };
    axis.wanted.clone().map(one_output).collect()
}

/// Rounds half away from zero.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION_BITS)).round() as i32
}

/// The horizontal pass, over some rows: `[H, W, 3]` to `[rows, columns, 3]`.
fn resize_rows(image: &RgbImage, columns: &[Taps], rows: Range<usize>) -> Vec<u8> {
    let row_bytes = 3 * image.width() as usize;
    let rows = &image.as_raw()[rows.start * row_bytes..rows.end * row_bytes];
    let mut out = Vec::with_capacity(rows.len() / row_bytes.max(1) * columns.len() * 3);
    for row in rows.chunks_exact(row_bytes) {
        for taps in columns {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[3 * taps.first..].chunks_exact(3).zip(&taps.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(to_byte));
        }
    }
    out
}

/// The vertical pass: rows of `row_bytes`, of which the first is number `first_row`.
fn resize_columns(narrow: &[u8], row_bytes: usize, rows: &[Taps], first_row: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * row_bytes);
    let mut sums = vec![0; row_bytes];
    for taps in rows {
        sums.fill(HALF);
        let needed = &narrow[(taps.first - first_row) * row_bytes..];
        for (row, weight) in needed.chunks_exact(row_bytes).zip(&taps.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|sum| to_byte(*sum)));
    }
    out
}

/// Where sums start, so that the final shift rounds.
const HALF: i32 = 1 << (PRECISION_BITS - 1);

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}
