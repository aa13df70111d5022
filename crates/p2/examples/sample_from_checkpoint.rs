//! Draws 16 images from a model file, with the library alone.
//!
//! ```sh
//! cargo run --release --example sample_from_checkpoint -- [MODEL [PICTURE.png]]
//! ```
//!
//! MODEL is the folder of a run, one of its checkpoints, or a `.safetensors` file. Without it, an
//! untrained model of the preset `smoke` is made, whose images are noise.
#![expect(clippy::print_stdout, reason = "an example speaks to its user")]

use std::path::{Path, PathBuf};

use p2::config::{Base, resolve};
use p2::model::{Condition, Model, file};
use p2::monitor::grid::{Images, Size};
use p2::sample::{SampleOptions, draw, labels};
use p2_nn::Cpu;

const N_IMAGES: u64 = 16;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (model, picture) = (args.next(), args.next());
    let picture = picture.unwrap_or_else(|| "samples.png".into());
    p2::engine::with_threads(None, |cpu| match &model {
        Some(model) => sample(model, &picture, cpu),
        None => {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("untrained.safetensors");
            save_untrained(&path, cpu)?;
            sample(&path, &picture, cpu)
        }
    })
}

/// Draws images as the model's configuration says, and saves them side by side.
fn sample(model: &Path, picture: &Path, cpu: Cpu) -> anyhow::Result<()> {
    let loaded = file::load(model, cpu)?;
    println!("model: {}", loaded.path.display());
    let settings = &loaded.run.sample;
    let options = SampleOptions::of(settings);
    let labels = labels(loaded.model.n_classes(), 0..N_IMAGES, None); // all classes in turn
    let condition = Condition::of_classes(&labels);
    let drawn = draw(&loaded.model, 0..N_IMAGES, condition, &options, || Ok(()))?;
    let size = loaded.model.image_size();
    let pixels: Vec<f32> = drawn.pixels.flatten_all()?.to_vec1()?;
    Images::new(
        Size {
            height: size,
            width: size,
        },
        &pixels,
    )?
    .save_grid(picture)?;
    println!(
        "{N_IMAGES} images of {size} x {size} pixels in {} steps: {}",
        options.n_steps,
        picture.display()
    );
    Ok(())
}

/// A model as it is before training.
fn save_untrained(path: &Path, cpu: Cpu) -> anyhow::Result<()> {
    let run = resolve(&Base::Preset("smoke".into()), &[])?;
    file::save(path, &Model::new(&run, cpu)?, &run)
}
