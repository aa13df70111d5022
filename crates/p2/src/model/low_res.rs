//! The small images that a super-resolution model enlarges, made from the large ones that it learns from.

use anyhow::{Context as _, ensure};
use candle_core::Tensor;

use super::Model;

/// Shrinks images by the mean over the area of each new pixel: `[N, H, W, C]` to `[N, size, size, C]`.
///
/// Where the sizes do not divide, areas of neighbours overlap: from the floor of their first edge to the ceiling of
/// their last.
///
/// # Errors
/// If there are fewer pixels than asked for.
///
/// # Source
/// The reference's training data for super-resolution (PyTorch's `area` interpolation).
fn shrink(images: &Tensor, size: usize) -> anyhow::Result<Tensor> {
    let (_, h, w, _) = images.dims4()?;
    ensure!(
        size > 0 && size <= h.min(w),
        "cannot shrink {h}x{w} pixels to {size}"
    );
    let rows = shrink_axis(images, 1, size)?;
    shrink_axis(&rows, 2, size)
}

fn shrink_axis(images: &Tensor, axis: usize, size: usize) -> anyhow::Result<Tensor> {
    let n = images.dim(axis)?;
    let means = (0..size).map(|i| {
        let (start, end) = (i * n / size, ((i + 1) * n).div_ceil(size));
        images.narrow(axis, start, end - start)?.mean_keepdim(axis)
    });
    let means = means.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&means, axis)?)
}

impl Model {
    /// Height and width of the images that it enlarges; `None` if it draws them from noise alone.
    pub fn low_res_size(&self) -> Option<usize> {
        self.low_res_size
    }

    /// What it would have to enlarge to these images, `[N, H, W, 3]`, if it enlarges any.
    ///
    /// # Errors
    /// If they are smaller than that.
    pub fn low_res(&self, x0: &Tensor) -> anyhow::Result<Option<Tensor>> {
        self.low_res_size.map(|size| shrink(x0, size)).transpose()
    }

    /// The small images that it is told, if it needs any.
    pub(super) fn check_low_res<'a>(
        &self,
        low_res: Option<&'a Tensor>,
    ) -> anyhow::Result<Option<&'a Tensor>> {
        let Some(size) = self.low_res_size else {
            ensure!(low_res.is_none(), "the model enlarges no images");
            return Ok(None);
        };
        let low_res = low_res.context("the model enlarges images, and was given none")?;
        let (_, h, w, _) = low_res.dims4()?;
        ensure!(
            (h, w) == (size, size),
            "the model enlarges images of {size}x{size} pixels, not {h}x{w}"
        );
        Ok(Some(low_res))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn pixels_are_means_of_areas() {
        let x = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap();
        let x = x.reshape((1, 4, 4, 1)).unwrap();
        let half = shrink(&x, 2).unwrap().flatten_all().unwrap();
        assert_eq!(half.to_vec1::<f32>().unwrap(), [2.5, 4.5, 10.5, 12.5]);
        // Areas of 0..2, 1..3 and 2..4 rows.
        let third = shrink(&x, 3).unwrap().flatten_all().unwrap();
        let expected = [2.5, 3.5, 4.5, 6.5, 7.5, 8.5, 10.5, 11.5, 12.5];
        assert_eq!(third.to_vec1::<f32>().unwrap(), expected);
        assert!(shrink(&x, 5).is_err() && shrink(&x, 0).is_err());
    }
}
