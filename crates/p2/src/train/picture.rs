//! Pictures of a run: what the averaged weights make of the same noise every time.

use std::ops::Range;
use std::time::Instant;

use candle_core::Tensor;

use super::Trainer;
use super::observer::{Observer, go_on};
use crate::data::Split;
use crate::model::Condition;
use crate::monitor::grid::{Images, Size};
use crate::sample::{SampleOptions, draw, labels};

impl Observer<'_> {
    /// Draws the same noise as always with the averaged weights.
    pub(super) fn draw_grid(&mut self, trainer: &Trainer) -> anyhow::Result<()> {
        let started = Instant::now();
        self.average(trainer)?;
        let pixels = match self.grid_pixels(trainer) {
            Err(_) if self.stop.requested().is_some() => return Ok(()),
            pixels => pixels?,
        };
        let size = self.averaged.image_size();
        let name = format!("images-{:010}.png", trainer.clock.images_seen);
        let path = self.run_dir.samples().join(name);
        let size = Size {
            height: size,
            width: size,
        };
        Images::new(size, &pixels)?.save_grid(&path)?;
        self.printer
            .note(format_args!("samples: {}", path.display()));
        self.grid_secs = Some(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// The pictures of a grid, `[N, H, W, 3]`.
    fn grid_pixels(&self, trainer: &Trainer) -> anyhow::Result<Vec<f32>> {
        let sample = &trainer.run.sample;
        let options = SampleOptions::of(sample);
        let mut pixels = Vec::new();
        let (n, batch_size) = (
            sample.n_images as u64,
            trainer.run.train.micro_batch_size as u64,
        );
        for first in (0..n).step_by(batch_size as usize) {
            let images = first..(first + batch_size).min(n);
            let (labels, low_res) = self.grid_condition(images.clone())?;
            let condition = Condition {
                labels: &labels,
                low_res: low_res.as_ref(),
            };
            let drawn = draw(&self.averaged, images, condition, &options, || {
                go_on(&self.stop)
            })?;
            pixels.extend(drawn.pixels.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(pixels)
    }

    /// Classes in turn, or what a super-resolution model enlarges: held-out images, or those of training if there are
    /// none.
    fn grid_condition(&self, images: Range<u64>) -> anyhow::Result<(Vec<u32>, Option<Tensor>)> {
        if self.averaged.low_res_size().is_none() {
            return Ok((labels(self.averaged.n_classes(), images, None), None));
        }
        let n_images = |split| self.dataset.n_images(split);
        let split = match n_images(Split::HeldOut) {
            0 => Split::Training,
            _ => Split::HeldOut,
        };
        let indices = images.map(|image| image as usize % n_images(split).max(1));
        let (x0, labels) = self.dataset.images(split, indices)?;
        Ok((labels, self.averaged.low_res(&x0)?))
    }
}
