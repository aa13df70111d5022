//! Images of a dataset as networks see them.

use candle_core::{Device, Tensor};

use super::{Dataset, Split, pixel_from_byte};

impl Dataset {
    /// Some images of a list, `[N, H, W, 3]` in `[-1, 1]`, and their classes, `[N]`: neither cropped nor mirrored at
    /// random.
    ///
    /// # Errors
    /// Like [`Dataset::image`].
    pub fn images(
        &self,
        split: Split,
        indices: impl IntoIterator<Item = usize>,
    ) -> anyhow::Result<(Tensor, Vec<u32>)> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for index in indices {
            let image = self.image(split, index)?;
            pixels.extend(image.pixels.iter().map(|&byte| pixel_from_byte(byte)));
            labels.push(image.label);
        }
        let (n, size) = (labels.len(), self.image_size());
        let images = Tensor::from_vec(pixels, (n, size, size, 3), &Device::Cpu)?; // [N, H, W, 3]
        Ok((images, labels))
    }
}
