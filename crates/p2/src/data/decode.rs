//! Bytes of an image file to RGB pixels, the same whatever the format.

use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::jpeg;

/// A larger image is refused: a small file can ask for any amount of memory.
pub(super) const MAX_PIXELS: u64 = 1 << 27;

/// Memory that a decoder may use, for [`MAX_PIXELS`] of 16-bit RGBA.
const MAX_DECODER_BYTES: u64 = 8 * MAX_PIXELS;

/// Height and width of an image, before its orientation is applied, from the start of its file.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    let (width, height) = match format_of(bytes)? {
        ImageFormat::Jpeg => jpeg::dimensions(bytes)?,
        format => reader(bytes, format).into_dimensions()?,
    };
    check_size((width, height))?;
    Ok((height, width))
}

/// The first image in a file, upright, as `[H, W, 3]` bytes.
///
/// The content decides on the format, not the name. 16 bits become 8 with rounding. What is
/// transparent shows white. Color profiles are ignored, as the reference does.
///
/// # Errors
/// Bytes that are no image of a known format, or a damaged one; also if only the end is missing,
/// where other programs paint the rest grey.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let image = match format_of(bytes)? {
        ImageFormat::Jpeg => jpeg::decode(bytes)?,
        format => {
            let mut decoder = reader(bytes, format).into_decoder()?;
            let (width, height) = decoder.dimensions();
            check_size((width, height))?;
            let orientation = decoder.orientation()?;
            let mut image = DynamicImage::from_decoder(decoder)?;
            image.apply_orientation(orientation);
            image
        }
    };
    Ok(over_white(image))
}

/// The format by the first bytes.
fn format_of(bytes: &[u8]) -> Result<ImageFormat> {
    let format = image::guess_format(bytes)
        .ok()
        .filter(ImageFormat::reading_enabled);
    format.context("not a jpeg, png, gif, bmp or webp image")
}

fn reader(bytes: &[u8], format: ImageFormat) -> ImageReader<Cursor<&[u8]>> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    reader
}

/// Refuses empty and enormous images.
pub(super) fn check_size((width, height): (u32, u32)) -> Result<()> {
    let n_pixels = u64::from(width) * u64::from(height);
    ensure!(
        n_pixels <= MAX_PIXELS,
        "{width}x{height} pixels are more than the limit of {MAX_PIXELS}"
    );
    if n_pixels == 0 {
        bail!("the image has no pixels");
    }
    Ok(())
}

/// Lays an image on white and drops its alpha channel.
fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let (width, height) = rgba.dimensions();
    let mut rgb = RgbImage::new(width, height);
    for (pixel, out) in rgba.pixels().zip(rgb.pixels_mut()) {
        let [color @ .., alpha] = pixel.0.map(u32::from);
        out.0 = color.map(|value| ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    rgb
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    use super::*;

    fn fixtures(folder: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(folder)
    }

    /// Names and bytes of all files in `tests/fixtures/images`.
    fn images() -> Vec<(String, Vec<u8>)> {
        let mut images: Vec<_> = fs::read_dir(fixtures("images"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                (
                    path.file_name().unwrap().to_str().unwrap().to_owned(),
                    fs::read(path).unwrap(),
                )
            })
            .collect();
        images.sort();
        assert_eq!(images.len(), 24);
        images
    }

    #[test]
    fn every_fixture_looks_as_in_pillow() {
        for (name, bytes) in images() {
            let expected = fixtures("expected").join(format!("{name}.png"));
            let expected = image::open(expected).unwrap().into_rgb8();
            let decoded = decode(&bytes).unwrap();
            assert_eq!(decoded.dimensions(), expected.dimensions(), "{name}");
            let differences = decoded
                .iter()
                .zip(expected.iter())
                .map(|(a, b)| a.abs_diff(*b));
            let largest = differences.max().unwrap();
            // Inverse transforms of lossy formats round differently; colors that were swapped,
            // inverted or turned would differ by far more.
            let tolerance = match name.as_str() {
                "lossy.webp" => 2,
                "subsampled.jpg" => 4,
                _ if name.ends_with("jpg") => 3,
                _ => 0,
            };
            assert!(largest <= tolerance, "{name}: {largest}");
        }
    }

    #[test]
    fn dimensions_are_those_of_the_stored_image() {
        for (name, bytes) in images() {
            assert_eq!(dimensions(&bytes).unwrap(), (24, 40), "{name}");
        }
    }

    #[test]
    fn an_image_without_its_end_is_refused() {
        for (name, bytes) in images() {
            let whole = decode(&bytes).unwrap();
            for n_bytes in 0..bytes.len() {
                // A few last bytes may be padding or closing marks that carry no pixels.
                if let Ok(decoded) = decode(&bytes[..n_bytes]) {
                    assert_eq!(
                        decoded,
                        whole,
                        "{name}, first {n_bytes} of {} bytes",
                        bytes.len()
                    );
                    assert!(!name.ends_with("jpg"), "{name}, first {n_bytes} bytes");
                }
            }
        }
    }

    #[test]
    fn bytes_after_a_jpeg_do_no_harm() {
        let bytes = fs::read(fixtures("images/exif-1.jpg")).unwrap();
        let longer = [&bytes[..], &[0, 1, 2, 0xff]].concat();
        assert_eq!(decode(&longer).unwrap(), decode(&bytes).unwrap());
    }

    #[test]
    fn impossible_codes_among_jpeg_pixels_are_refused() {
        let mut bytes = fs::read(fixtures("images/exif-1.jpg")).unwrap();
        let middle = bytes.len() - 200;
        for pair in bytes[middle..middle + 40].chunks_mut(2) {
            pair.copy_from_slice(&[0xff, 0]); // no code consists of ones alone
        }
        let error = decode(&bytes).unwrap_err().to_string();
        assert!(error.starts_with("damaged jpeg: "), "{error}");
    }

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn check_pixel(image: impl Into<DynamicImage>, format: ImageFormat, expected: [u8; 3]) {
        let decoded = decode(&encoded(image, format)).unwrap();
        assert_eq!(decoded.dimensions(), (5, 3), "{format:?}");
        let odd_one = decoded.pixels().find(|pixel| pixel.0 != expected);
        assert_eq!(odd_one, None, "{format:?} {expected:?}");
    }

    fn filled<P: image::Pixel>(pixel: P) -> ImageBuffer<P, Vec<P::Subpixel>> {
        ImageBuffer::from_pixel(5, 3, pixel)
    }

    #[test]
    fn every_pixel_format_becomes_rgb_on_white() {
        use ImageFormat::{Bmp, Gif, Png, WebP};
        for format in [Png, Bmp, WebP] {
            check_pixel(filled(Rgb([10u8, 20, 200])), format, [10, 20, 200]);
            check_pixel(filled(Rgba([0u8, 0, 0, 255])), format, [0, 0, 0]);
            check_pixel(filled(Rgba([10u8, 20, 200, 0])), format, [255, 255, 255]);
            // 10 * 51/255 + 255 * 204/255 = 206
            check_pixel(filled(Rgba([10u8, 20, 200, 51])), format, [206, 208, 244]);
        }
        check_pixel(filled(Rgba([10u8, 20, 200, 0])), Gif, [255, 255, 255]);
        check_pixel(filled(Luma([77u8])), Png, [77; 3]);
        check_pixel(filled(LumaA([77u8, 0])), Png, [255; 3]);
        // 0x8100 / 257 = 128.498 and 0x8101 / 257 = 128.502
        check_pixel(filled(Luma([0x8101u16])), Png, [129; 3]);
        check_pixel(
            filled(Rgb([0x8100u16, 0x8101, 0xffff])),
            Png,
            [128, 129, 255],
        );
        check_pixel(filled(Rgba([0u16, 0, 0, 0])), Png, [255; 3]);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for (bytes, expected) in [
            (&b""[..], "not a jpeg, png, gif, bmp or webp image"),
            (
                b"hello, I am text",
                "not a jpeg, png, gif, bmp or webp image",
            ),
            (
                b"II*\0\x08\0\0\0tiff",
                "not a jpeg, png, gif, bmp or webp image",
            ),
        ] {
            assert_eq!(decode(bytes).unwrap_err().to_string(), expected);
            assert_eq!(dimensions(bytes).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_small_file_cannot_ask_for_much_memory() {
        // A GIF states its size in the first ten bytes: 65,535 x 65,535, then 0 x 7.
        let mut gif = encoded(filled(Rgba([1u8, 2, 3, 255])), ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[0xff; 4]);
        let expected = "65535x65535 pixels are more than the limit of 134217728";
        assert_eq!(dimensions(&gif).unwrap_err().to_string(), expected);
        assert_eq!(decode(&gif).unwrap_err().to_string(), expected);
        gif[6..10].copy_from_slice(&[0, 0, 7, 0]);
        assert_eq!(
            dimensions(&gif).unwrap_err().to_string(),
            "the image has no pixels"
        );
    }
}
