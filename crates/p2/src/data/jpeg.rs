//! JPEG files, decoded strictly: a damaged one is an error, not a picture with grey bars.

use anyhow::{Result, anyhow, bail};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::decode::check_size;

/// Width and height, before the orientation is applied.
pub(super) fn dimensions(bytes: &[u8]) -> Result<(u32, u32)> {
    Header::read(bytes).map(|header| (header.width, header.height))
}

/// The image, upright. CMYK becomes RGB as if inverted, as Adobe writes it (and Pillow reads it).
pub(super) fn decode(bytes: &[u8]) -> Result<DynamicImage> {
    check_end(bytes)?;
    let Header {
        mut decoder,
        width,
        height,
    } = Header::read(bytes)?;
    check_size((width, height))?;
    let color = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(
        options()
            .set_strict_mode(true)
            .jpeg_set_out_colorspace(color),
    );
    let pixels = decoder.decode().map_err(|error| describe(&error))?;
    let image = match color {
        ColorSpace::Luma => GrayImage::from_raw(width, height, pixels).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::from),
    };
    let Some(mut image) = image else {
        bail!("fewer pixels than the header states")
    };
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif));
    image.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    Ok(image)
}

struct Header<'a> {
    decoder: JpegDecoder<ZCursor<&'a [u8]>>,
    width: u32,
    height: u32,
}

impl<'a> Header<'a> {
    /// Reads all up to the pixels, with patience: bytes between segments do no harm.
    fn read(bytes: &'a [u8]) -> Result<Self> {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options());
        decoder.decode_headers().map_err(|error| describe(&error))?;
        let Some(info) = decoder.info() else {
            bail!("no header")
        };
        Ok(Self {
            decoder,
            width: u32::from(info.width),
            height: u32::from(info.height),
        })
    }
}

fn options() -> DecoderOptions {
    // The format allows 65,535 pixels a side; `check_size` limits their product.
    let side = usize::from(u16::MAX);
    DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(side)
        .set_max_height(side)
}

fn describe(error: &DecodeErrors) -> anyhow::Error {
    anyhow!("damaged jpeg: {error}")
}

/// Finds the marker that ends an image. The decoder does without it, even in its strict mode.
fn check_end(bytes: &[u8]) -> Result<()> {
    const END_OF_IMAGE: u8 = 0xd9;
    let mut at = 2; // behind the start-of-image marker
    while let Some(&[prefix, code]) = bytes.get(at..at + 2) {
        match (prefix, code) {
            (0xff, END_OF_IMAGE) => return Ok(()),
            // A marker that stands alone, or a 0xff among the pixels, which is followed by 0.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => at += 2,
            // The second byte may begin a marker.
            (0xff, 0xff) => at += 1,
            (0xff, _) => match bytes.get(at + 2..at + 4) {
                // Any other segment, with its length; thumbnails with ends of their own hide in some.
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => break,
            },
            _ => at += 1,
        }
    }
    bail!("damaged jpeg: the end of the image is missing")
}
