//! Squares out of images, as the reference cuts them (guided-diffusion, `image_datasets.py`).

use image::RgbImage;

use super::resample::{Axis, Filter, resize};
use crate::rng::Draws;

/// Shares of the shorter side that a random crop may have.
const RANDOM_CROP_SHARE: [f64; 2] = [0.8, 1.0];

/// The middle square, `image_size` pixels a side (`center_crop_arr`).
pub(super) fn center_crop(image: &RgbImage, image_size: usize) -> RgbImage {
    let halved = halve_to(image, image_size);
    let scaled = Scaled::new(halved.as_ref().unwrap_or(image), image_size);
    let (y, x) = (
        (scaled.height - image_size) / 2,
        (scaled.width - image_size) / 2,
    );
    scaled.square([y, x], image_size)
}

/// A random square, `image_size` pixels a side (`random_crop_arr`).
///
/// It takes three draws, whatever the image.
pub(super) fn random_crop(image: &RgbImage, image_size: usize, draws: &mut Draws) -> RgbImage {
    let [shortest, longest] = random_short_sides(image_size);
    let short_side = shortest + draws.below((longest - shortest + 1) as u64) as usize;
    let halved = halve_to(image, short_side);
    let scaled = Scaled::new(halved.as_ref().unwrap_or(image), short_side);
    let y = draws.below((scaled.height - image_size + 1) as u64) as usize;
    let x = draws.below((scaled.width - image_size + 1) as u64) as usize;
    scaled.square([y, x], image_size)
}

/// As much smaller as an image may get before random crops are taken from it; `None` for as it is.
///
/// Any crop of the result equals that of the image: its first halvings are the same.
pub(super) fn shrink_for_random_crops(image: &RgbImage, image_size: usize) -> Option<RgbImage> {
    let [_, longest] = random_short_sides(image_size);
    halve_to(image, longest)
}

/// Smallest and largest short side that an image is resized to before a random crop.
fn random_short_sides(image_size: usize) -> [usize; 2] {
    let [least, most] = RANDOM_CROP_SHARE;
    [most, least].map(|share| (image_size as f64 / share).ceil() as usize)
}

/// Halves an image while its short side stays at least `short_side`; `None` if it never is.
fn halve_to(image: &RgbImage, short_side: usize) -> Option<RgbImage> {
    let mut halved: Option<RgbImage> = None;
    loop {
        let (width, height) = halved.as_ref().unwrap_or(image).dimensions();
        let (width, height) = (width as usize, height as usize);
        if width.min(height) < 2 * short_side {
            return halved;
        }
        let (y, x) = (Axis::halved(height), Axis::halved(width));
        halved = Some(resize(
            halved.as_ref().unwrap_or(image),
            Filter::Box,
            &y,
            &x,
        ));
    }
}

/// An image that will be resized so that its short side has some length.
struct Scaled<'a> {
    image: &'a RgbImage,
    height: usize,
    width: usize,
}

impl<'a> Scaled<'a> {
    fn new(image: &'a RgbImage, short_side: usize) -> Self {
        let (width, height) = image.dimensions();
        let scale = short_side as f64 / f64::from(width.min(height));
        let scaled = |side: u32| (f64::from(side) * scale).round_ties_even() as usize;
        Self {
            image,
            height: scaled(height),
            width: scaled(width),
        }
    }

    /// The square of `size` pixels a side whose first pixel is at `[y, x]`.
    fn square(&self, [y, x]: [usize; 2], size: usize) -> RgbImage {
        let (n_columns, n_rows) = self.image.dimensions();
        let y = Axis {
            n_in: n_rows as usize,
            n_out: self.height,
            wanted: y..y + size,
        };
        let x = Axis {
            n_in: n_columns as usize,
            n_out: self.width,
            wanted: x..x + size,
        };
        resize(self.image, Filter::Bicubic, &y, &x)
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::rng::Stream;

    /// The image of the reference's goldens, 53 by 97 pixels.
    fn golden_input() -> RgbImage {
        RgbImage::from_fn(97, 53, |x, y| {
            let blue = 255.0 * ((0.3 * f64::from(x)).sin() + 1.0) / 2.0;
            Rgb([
                ((7 * y + 3 * x) % 256) as u8,
                ((y * y + 5 * x) % 256) as u8,
                blue as u8,
            ])
        })
    }

    struct Golden {
        image_size: usize,
        /// Width and height after the last resize, before the middle is cut out.
        resized: (usize, usize),
        sums: [u64; 3],
        pixels: [(u32, u32, [u8; 3]); 3],
        sha256_start: &'static str,
    }

    /// `center_crop_arr` of guided-diffusion, by `tests/fixtures/center_crop.py`.
    const GOLDENS: [Golden; 4] = [
        Golden {
            image_size: 16,
            resized: (30, 16),
            sums: [35_271, 32_955, 36_128],
            pixels: [
                (0, 0, [80, 120, 215]),
                (15, 15, [62, 153, 157]),
                (8, 5, [58, 102, 44]),
            ],
            sha256_start: "f8b37624c1e39819",
        },
        Golden {
            image_size: 32,
            resized: (59, 32),
            sums: [139_171, 131_070, 146_880],
            pixels: [
                (0, 0, [67, 109, 156]),
                (31, 31, [68, 200, 152]),
                (16, 10, [46, 152, 12]),
            ],
            sha256_start: "82fd34d52af73d48",
        },
        Golden {
            image_size: 48,
            resized: (88, 48),
            sums: [312_703, 294_434, 328_560],
            pixels: [
                (0, 0, [66, 110, 170]),
                (47, 47, [74, 41, 104]),
                (24, 16, [49, 136, 51]),
            ],
            sha256_start: "d55e4e63a719a5a7",
        },
        Golden {
            image_size: 80,
            resized: (146, 80),
            sums: [868_179, 818_087, 911_600],
            pixels: [
                (0, 0, [65, 109, 158]),
                (79, 79, [75, 0, 92]),
                (40, 26, [45, 120, 31]),
            ],
            sha256_start: "051323f9fa923e19",
        },
    ];

    fn sums(image: &RgbImage) -> [u64; 3] {
        let mut sums = [0; 3];
        for pixel in image.pixels() {
            for (sum, value) in sums.iter_mut().zip(pixel.0) {
                *sum += u64::from(value);
            }
        }
        sums
    }

    #[test]
    fn center_crops_equal_the_reference_to_the_last_bit() {
        let input = golden_input();
        for Golden {
            image_size,
            resized,
            sums: expected,
            pixels,
            sha256_start,
        } in GOLDENS
        {
            let halved = halve_to(&input, image_size);
            let scaled = Scaled::new(halved.as_ref().unwrap_or(&input), image_size);
            assert_eq!((scaled.width, scaled.height), resized, "size {image_size}");
            let square = center_crop(&input, image_size);
            assert_eq!(square.dimensions(), (image_size as u32, image_size as u32));
            assert_eq!(sums(&square), expected, "size {image_size}");
            for (y, x, expected) in pixels {
                assert_eq!(
                    square.get_pixel(x, y).0,
                    expected,
                    "size {image_size} [{y}, {x}]"
                );
            }
            let digest = Sha256::digest(square.as_raw());
            let start: String = digest[..8]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(start, sha256_start, "size {image_size}");
        }
    }

    #[test]
    fn an_image_of_the_right_size_stays_as_it_is() {
        let square = center_crop(&golden_input(), 53);
        let expected = image::imageops::crop_imm(&golden_input(), 22, 0, 53, 53).to_image();
        assert_eq!(square, expected);
        assert_eq!(center_crop(&square, 53), square);
    }

    #[test]
    fn sides_round_half_to_even() {
        // 5/2 = 2.5 becomes 2 and 7/2 = 3.5 becomes 4.
        for (long_side, expected) in [(5, 2), (7, 4)] {
            let scaled = Scaled::new(&RgbImage::new(long_side, 2), 1).width;
            assert_eq!(scaled, expected, "{long_side}");
        }
    }

    #[test]
    fn a_very_long_image_needs_little_memory() {
        // Enlarged as a whole it would have 256 x 15,360,000 pixels in 12 GB.
        let image = RgbImage::from_pixel(1, 60_000, Rgb([9, 8, 7]));
        let square = center_crop(&image, 256);
        assert!(square.pixels().all(|pixel| pixel.0 == [9, 8, 7]));
        assert_eq!(square.dimensions(), (256, 256));
    }

    fn random(image: &RgbImage, image_size: usize, image_idx: u64) -> RgbImage {
        random_crop(
            image,
            image_size,
            &mut Draws::at(1, Stream::Augment, image_idx),
        )
    }

    /// `random_crop_arr` with its three draws given: the same steps on whole images.
    fn random_crop_by_hand(
        image: &RgbImage,
        short: usize,
        [y, x]: [usize; 2],
        size: usize,
    ) -> RgbImage {
        let (mut width, mut height) = (image.width() as usize, image.height() as usize);
        let mut image = image.clone();
        while width.min(height) >= 2 * short {
            let (to_y, to_x) = (Axis::halved(height), Axis::halved(width));
            image = resize(&image, Filter::Box, &to_y, &to_x);
            (width, height) = (width / 2, height / 2);
        }
        let scale = short as f64 / width.min(height) as f64;
        let to = |n_in: usize| {
            let n_out = (n_in as f64 * scale).round_ties_even() as usize;
            let wanted = 0..n_out;
            Axis {
                n_in,
                n_out,
                wanted,
            }
        };
        let image = resize(&image, Filter::Bicubic, &to(height), &to(width));
        let (y, x, size) = (y as u32, x as u32, size as u32);
        image::imageops::crop_imm(&image, x, y, size, size).to_image()
    }

    #[test]
    fn a_random_crop_is_a_part_of_the_resized_image() {
        let image = golden_input();
        let mut short_sides = Vec::new();
        for image_idx in 0..100 {
            let size = 16;
            let mut draws = Draws::at(1, Stream::Augment, image_idx);
            let short = 16 + draws.below(5) as usize; // 16/1.0 to 16/0.8
            let halvings = if 53 >= 2 * short { 2.0 } else { 1.0 };
            let (height, width) = ((53.0f64 / halvings).floor(), (97.0f64 / halvings).floor());
            let scale = short as f64 / height;
            let width = (width * scale).round_ties_even() as u64;
            let y = draws.below(short as u64 - size as u64 + 1) as usize;
            let x = draws.below(width - size as u64 + 1) as usize;
            let expected = random_crop_by_hand(&image, short, [y, x], size);
            assert_eq!(
                random(&image, size, image_idx),
                expected,
                "image {image_idx}"
            );
            short_sides.push(short);
        }
        short_sides.sort_unstable();
        short_sides.dedup();
        assert_eq!(short_sides, [16, 17, 18, 19, 20]);
    }

    #[test]
    fn shrinking_beforehand_changes_no_random_crop() {
        let small = golden_input();
        let image = RgbImage::from_fn(400, 300, |x, y| *small.get_pixel(x % 97, (y * 7) % 53));
        let shrunk = shrink_for_random_crops(&image, 16).unwrap();
        assert!(shrunk.width() < 100, "{}", shrunk.width());
        for image_idx in 0..50 {
            assert_eq!(
                random(&shrunk, 16, image_idx),
                random(&image, 16, image_idx)
            );
        }
        assert_eq!(center_crop(&shrunk, 16), center_crop(&image, 16));
    }

    #[test]
    fn a_random_crop_of_the_smallest_size_is_possible() {
        let image = golden_input();
        for image_idx in 0..20 {
            assert_eq!(random(&image, 1, image_idx).dimensions(), (1, 1));
            assert_eq!(random(&image, 80, image_idx).dimensions(), (80, 80));
        }
    }
}
