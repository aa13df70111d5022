//! The marks that a network must beat: the best linear denoisers of the bundled images, per stage.
//!
//! A linear denoiser guesses the noise as a linear function of the noised image. The best one for
//! single pixels knows each pixel's variance, the best one of all the whole covariance. In the
//! directions of its eigenvalues s² the mean squared error on the noise is
//! `alpha_bar s² / (alpha_bar s² + 1 - alpha_bar)`.

#![expect(clippy::print_stdout, reason = "an example prints its result")]

use nalgebra::DMatrix;
use p2::config::{Base, resolve};
use p2::data::{Dataset, Split};
use p2::model::schedule;
use p2::train::LinearDenoiser;
use p2_diffusion::Stage;

fn main() -> anyhow::Result<()> {
    let run = resolve(&Base::Preset("emoji-32".into()), &[])?;
    let dataset = Dataset::open(&run.data)?;
    let schedule = schedule(&run.diffusion)?;
    let single_pixels = LinearDenoiser::fit(&dataset)?;
    let whole_images = LinearDenoiser::from_variances(eigenvalues(&dataset)?);
    println!("mean squared error on the noise   single pixels   full covariance");
    for stage in Stage::ALL {
        let [pixels, images] =
            [&single_pixels, &whole_images].map(|denoiser| denoiser.mse_eps(&schedule, stage));
        println!(
            "{:<32}  {pixels:>13.5}   {images:>15.5}",
            format!("{stage:?}")
        );
    }
    Ok(())
}

/// The eigenvalues of the training images' covariance.
///
/// With fewer images than pixels, those of the images' scalar products are the same and cheaper;
/// all others are 0.
fn eigenvalues(dataset: &Dataset) -> anyhow::Result<Vec<f64>> {
    let n_images = dataset.n_images(Split::Training);
    let n_pixels = dataset.image_size().pow(2) * 3;
    let mut images = DMatrix::<f64>::zeros(n_pixels, n_images);
    for (i, mut column) in images.column_iter_mut().enumerate() {
        let image = dataset.image(Split::Training, i)?;
        for (x, &byte) in column.iter_mut().zip(&image.pixels) {
            *x = f64::from(byte) / 127.5 - 1.0;
        }
    }
    let mean = images.column_mean();
    for mut column in images.column_iter_mut() {
        column -= &mean;
    }
    let covariance = if n_images < n_pixels {
        images.tr_mul(&images)
    } else {
        &images * images.transpose()
    };
    let mut eigenvalues: Vec<f64> = (covariance / n_images as f64)
        .symmetric_eigenvalues()
        .iter()
        .copied()
        .collect();
    eigenvalues.resize(n_pixels, 0.0);
    Ok(eigenvalues)
}
