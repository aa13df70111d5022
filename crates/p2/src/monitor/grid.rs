//! Pictures: pixels in [-1, 1] as PNG files, one by one or side by side.

use std::path::Path;

use anyhow::Context as _;

use crate::durable;

/// Color images of one size, in a row in memory.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a> {
    height: usize,
    width: usize,
    values: &'a [f32], // [N, H, W, 3]
}

/// Height and width of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// In pixels.
    pub height: usize,
    /// In pixels.
    pub width: usize,
}

const CHANNELS: usize = 3;
/// Black pixels between the images of a grid, as torchvision's `make_grid` has.
const GAP: usize = 2;

impl<'a> Images<'a> {
    /// Images of `size`; `values` are `[N, H, W, 3]`.
    ///
    /// # Errors
    /// If the number of values is not that of whole images, or the size is 0.
    pub fn new(size: Size, values: &'a [f32]) -> anyhow::Result<Self> {
        let Size { height, width } = size;
        let n_per_image = height
            .checked_mul(width)
            .and_then(|n| n.checked_mul(CHANNELS));
        let fits = n_per_image.is_some_and(|n| n > 0 && values.len().is_multiple_of(n));
        anyhow::ensure!(
            fits,
            "{} values are no images of {height} x {width} x {CHANNELS}",
            values.len()
        );
        Ok(Self {
            height,
            width,
            values,
        })
    }

    /// How many images there are.
    pub fn n_images(&self) -> usize {
        self.values.len() / (self.height * self.width * CHANNELS)
    }

    /// Saves all images in one PNG, row by row, as square as possible.
    ///
    /// # Errors
    /// If there are none, or the file cannot be written.
    pub fn save_grid(&self, path: &Path) -> anyhow::Result<()> {
        let n_columns = (1..).find(|n| n * n >= self.n_images()).unwrap_or(1);
        self.save_rows(n_columns, path)
    }

    /// Saves all images in one PNG, so many in a row.
    ///
    /// # Errors
    /// As for [`Self::save_grid`].
    pub fn save_rows(&self, n_columns: usize, path: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.n_images() > 0 && n_columns > 0,
            "no images for the grid {}",
            path.display()
        );
        let (size, bytes) = self.grid(n_columns);
        save_png(path, size, &bytes)
    }

    /// Saves image `image_idx` as a PNG.
    ///
    /// # Errors
    /// If there is no such image, or the file cannot be written.
    pub fn save_one(&self, image_idx: usize, path: &Path) -> anyhow::Result<()> {
        let n_values = self.height * self.width * CHANNELS;
        let image = self.values.chunks_exact(n_values).nth(image_idx);
        let image = image.with_context(|| format!("there is no image {image_idx}"))?;
        let bytes: Vec<u8> = image.iter().map(|&x| byte_from_pixel(x)).collect();
        save_png(
            path,
            Size {
                height: self.height,
                width: self.width,
            },
            &bytes,
        )
    }

    fn grid(&self, n_columns: usize) -> (Size, Vec<u8>) {
        let n_rows = self.n_images().div_ceil(n_columns);
        let size = Size {
            height: n_rows * (self.height + GAP) - GAP,
            width: n_columns * (self.width + GAP) - GAP,
        };
        let mut bytes = vec![0; size.height * size.width * CHANNELS];
        let rows = self.values.chunks_exact(self.width * CHANNELS); // [N * H] rows of [W * 3]
        for (row_idx, row) in rows.enumerate() {
            let (image_idx, y) = (row_idx / self.height, row_idx % self.height);
            let (grid_row, grid_column) = (image_idx / n_columns, image_idx % n_columns);
            let start = ((grid_row * (self.height + GAP) + y) * size.width
                + grid_column * (self.width + GAP))
                * CHANNELS;
            for (byte, &x) in bytes[start..start + row.len()].iter_mut().zip(row) {
                *byte = byte_from_pixel(x);
            }
        }
        (size, bytes)
    }
}

/// `floor(clamp((x + 1) / 2) 255 + 0.5)`: the nearest of 256 levels; NaN is black.
pub fn byte_from_pixel(x: f32) -> u8 {
    (((x + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

/// Saves bytes, `[H, W, 3]`, as a PNG.
pub(crate) fn save_png(path: &Path, size: Size, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut file = Vec::new();
    let (width, height) = (u32::try_from(size.width), u32::try_from(size.height));
    let mut encoder = png::Encoder::new(
        &mut file,
        width.with_context(context)?,
        height.with_context(context)?,
    );
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().with_context(context)?;
    writer.write_image_data(bytes).with_context(context)?;
    writer.finish().with_context(context)?;
    durable::write(path, &file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(path: &Path) -> (Size, Vec<u8>) {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!(
            (info.color_type, info.bit_depth),
            (png::ColorType::Rgb, png::BitDepth::Eight)
        );
        (
            Size {
                height: info.height as usize,
                width: info.width as usize,
            },
            bytes,
        )
    }

    #[test]
    fn pixels_are_rounded_to_the_nearest_level() {
        for (x, byte) in [
            (-1.0, 0),
            (1.0, 255),
            (0.0, 128), // 127.5 goes up
            (-2.0, 0),
            (7.0, 255),
            (f32::NAN, 0),
            (f32::INFINITY, 255),
            (1.0 / 255.0 - 1.0, 1), // 0.5 goes up
            (0.999 / 255.0 - 1.0, 0),
        ] {
            assert_eq!(byte_from_pixel(x), byte, "{x}");
        }
        for byte in 0..=255 {
            assert_eq!(byte_from_pixel(f32::from(byte) / 127.5 - 1.0), byte);
        }
    }

    #[test]
    fn a_grid_has_every_image_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grid.png");
        // Five images of 1 x 2; every value of image i is level 10 (i + 1).
        let values: Vec<f32> = (0..5)
            .flat_map(|i| [(i + 1) as f32 * 10.0 / 127.5 - 1.0; 6])
            .collect();
        let images = Images::new(
            Size {
                height: 1,
                width: 2,
            },
            &values,
        )
        .unwrap();
        images.save_grid(&path).unwrap();
        let (size, bytes) = load(&path);
        assert_eq!(
            size,
            Size {
                height: 1 + GAP + 1,
                width: 3 * 2 + 2 * GAP
            }
        );
        let red: Vec<u8> = bytes.iter().step_by(3).copied().collect();
        let gap = [0; 10];
        let rows: [[u8; 10]; 4] = [
            [10, 10, 0, 0, 20, 20, 0, 0, 30, 30],
            gap,
            gap,
            [40, 40, 0, 0, 50, 50, 0, 0, 0, 0],
        ];
        assert_eq!(red, rows.concat());
    }

    #[test]
    fn one_image_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.png");
        let levels: Vec<u8> = (0..24).map(|i| i * 10).collect();
        let values: Vec<f32> = levels
            .iter()
            .map(|&level| f32::from(level) / 127.5 - 1.0)
            .collect();
        let images = Images::new(
            Size {
                height: 2,
                width: 2,
            },
            &values,
        )
        .unwrap();
        images.save_one(1, &path).unwrap();
        assert_eq!(
            load(&path),
            (
                Size {
                    height: 2,
                    width: 2
                },
                levels[12..].to_vec()
            )
        );
        assert!(images.save_one(2, &path).is_err());
    }

    #[test]
    fn values_that_are_no_images_are_refused() {
        let refuse =
            |height, width, n: usize| Images::new(Size { height, width }, &vec![0.0; n]).is_err();
        assert!(refuse(2, 2, 13));
        assert!(refuse(0, 2, 0));
        assert!(refuse(usize::MAX, 2, 12));
        let none = Images::new(
            Size {
                height: 2,
                width: 2,
            },
            &[],
        )
        .unwrap();
        assert!(none.save_grid(Path::new("never.png")).is_err());
    }
}
