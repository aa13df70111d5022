//! Trains a tiny network on the bundled images and saves all that another program needs to repeat it.
//!
//! ```sh
//! cargo run --release --example parity_trace -- TRACE.safetensors [KEY=VALUE ...]
//! ```
//!
//! The run is the preset `smoke` with the values given. `tools/parity` repeats it in PyTorch.
//!
//! TRACE holds, all as f32: `x0` and `eps` `[S, N, H, W, 3]`, `t` and `weighted` (the loss of each
//! image) `[S, N]` for the S steps, and every weight before and after them and its average by the
//! reference's name and layout, as `initial.NAME`, `final.NAME` and `ema.NAME`. Its metadata are the
//! configuration.
#![expect(clippy::print_stdout, reason = "an example speaks to its user")]

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use p2::checkpoint::{NamedTensor, TensorFile, save_file};
use p2::config::{Base, Override, Run, resolve};
use p2::train::{TracedRun, TracedStep};
use p2_nn::{Cpu, Params};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().map(PathBuf::from);
    let path = path.context("usage: parity_trace TRACE.safetensors [KEY=VALUE ...]")?;
    let set: Vec<_> = args.map(|assignment| Override::set(&assignment)).collect();
    let run = resolve(&Base::Preset("smoke".into()), &set)?;
    p2::engine::with_threads(None, |cpu| trace(run, &path, cpu))
}

/// Trains the whole run, saves its trace, and prints on what it was computed.
fn trace(run: Run, path: &Path, cpu: Cpu) -> anyhow::Result<()> {
    let (metadata, size) = (run.to_metadata()?, run.data.image_size);
    let mut traced = TracedRun::new(run, cpu)?;
    let params = traced.model().params().clone();
    let mut tensors = named("initial.", &params, &values(&params)?)?;
    let steps = std::iter::from_fn(|| traced.step().transpose());
    let steps = steps.collect::<anyhow::Result<Vec<_>>>()?;
    tensors.extend(named("final.", &params, &values(&params)?)?);
    tensors.extend(named("ema.", &params, &traced.averages())?);
    tensors.extend(stacked(&steps, size)?);
    let file = TensorFile {
        name: path.display().to_string(),
        metadata: Some(metadata),
        tensors,
    };
    save_file(path, &file)?;
    println!(
        "{}",
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instruction_set": cpu.isa.name(),
            "n_threads": cpu.threads.count(),
            "n_steps": steps.len(),
        })
    );
    Ok(())
}

/// The weights in the engine's layout.
fn values(params: &Params) -> anyhow::Result<Vec<Vec<f32>>> {
    let values = params.iter().map(p2_nn::params::Param::values);
    Ok(values.collect::<Result<_, _>>()?)
}

/// Numbers of each parameter by its name, as the reference lays them out.
fn named(
    prefix: &str,
    params: &Params,
    values: &[Vec<f32>],
) -> anyhow::Result<Vec<NamedTensor<'static>>> {
    let tensors = params.iter().zip(values).map(|(param, values)| {
        Ok(NamedTensor {
            name: format!("{prefix}{}", param.name()),
            shape: param.reference_shape(),
            values: param.to_reference(values)?.into(),
        })
    });
    tensors.collect()
}

/// All steps on top of each other.
fn stacked(steps: &[TracedStep], size: usize) -> anyhow::Result<Vec<NamedTensor<'static>>> {
    let n = steps.first().context("the run has no step")?.t.len();
    ensure!(
        steps.iter().all(|step| step.t.len() == n),
        "train.total_images must be a multiple of train.batch_size = {n}"
    );
    let join = |name: &str, image: &[usize], of: &dyn Fn(&TracedStep) -> Vec<f32>| NamedTensor {
        name: name.to_owned(),
        shape: [&[steps.len(), n], image].concat(),
        values: steps.iter().flat_map(of).collect(),
    };
    let image = [size, size, 3];
    Ok(vec![
        join("x0", &image, &|step| step.x0.clone()),
        join("eps", &image, &|step| step.eps.clone()),
        join("t", &[], &|step| step.t.iter().map(|&t| t as f32).collect()),
        join("weighted", &[], &|step| step.weighted.clone()),
    ])
}
