//! What P2 weighting buys and what it costs, where the truth is known: in the plane.
//!
//! ```sh
//! cargo run --release --example toy_2d -- [PICTURE.png]
//! ```
//!
//! The data is a Gaussian mixture, so the best possible guess of the noise has a closed form at every
//! noise level. Two equal networks learn from the same points and noise, one with L_simple and one with
//! P2. The error of each splits into the part that nobody can avoid and its excess over it; the excess
//! shows at which levels each network spent its effort.
#![expect(clippy::print_stdout, reason = "an example speaks to its user")]

mod mixture;
mod network;
mod picture;

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use p2::rng::{Draws, Stream};
use p2_diffusion::sampler::{Clip, DdimOptions, ddim};
use p2_diffusion::{Levels, NoiseSchedule, Objective, Prediction, Stage, Variance, Weighting};

use mixture::Mixture;
use network::Network;

/// Long enough that the networks run into the limits of their size: at a third of it, which of the two errs
/// less at clean-up levels still depends on the seed.
const N_STEPS: u64 = 12_000;
/// Every so many noise levels are looked at.
const LEVEL_STRIDE: usize = 10;
const N_POINTS: usize = 1000;
const N_SAMPLES: usize = 1500;
const N_SAMPLING_STEPS: &str = "100";
/// Seed of what the networks are judged on; their training has another.
const JUDGE_SEED: u64 = 1;
/// Further from the nearest bead than 98.9 % of the data.
const STRAY_STDS: f64 = 3.0;

/// One noise level, seen by the best denoiser and by the two networks: simple, P2.
#[derive(Debug)]
struct LevelErrors {
    t: u32,
    log_snr: f64,
    /// Squared error on the noise of the best denoiser: the part that nobody can avoid.
    optimum: f64,
    /// Squared errors on the noise.
    errors: [f64; 2],
    /// Squared distances to what the best denoiser says: `errors - optimum`, without its statistical noise.
    excess: [f64; 2],
}

fn main() -> anyhow::Result<()> {
    let path = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .unwrap_or_else(|| "toy_2d.png".into()),
    );
    p2::engine::with_threads(None, |cpu| {
        let data = Mixture::sunflower();
        let schedule = NoiseSchedule::linear(1000)?;
        let p2 = Weighting::P2 { k: 1.0, gamma: 1.0 };
        let objective =
            |weighting| Objective::new(&schedule, Prediction::Eps, Variance::FixedSmall, weighting);
        let objectives = [objective(Weighting::Simple {})?, objective(p2)?];
        println!("training two networks for {N_STEPS} steps each: simple, then P2");
        let networks = [
            network::train(&objectives[0], &data, N_STEPS, cpu)?,
            network::train(&objectives[1], &data, N_STEPS, cpu)?,
        ];
        let levels = level_errors(&networks, &objectives[0], &data)?;
        print_stages(&levels, &schedule);
        let samples = [
            draw_samples(&networks[0], &objectives[0])?,
            draw_samples(&networks[1], &objectives[1])?,
        ];
        print_strays(&samples, &data);
        picture::save(&path, &data, &schedule, &samples, &levels)?;
        println!();
        print!("{}", picture::LEGEND);
        println!("picture: {}", path.display());
        Ok(())
    })
}

/// The errors of all three denoisers on the same points and noise.
fn level_errors(
    networks: &[Network; 2],
    objective: &Objective,
    data: &Mixture,
) -> anyhow::Result<Vec<LevelErrors>> {
    let schedule = objective.schedule();
    let levels = (0..schedule.n_timesteps()).step_by(LEVEL_STRIDE);
    levels
        .map(|level| {
            let alpha_bar = schedule.alpha_bar()[level];
            let t = vec![level as u32; N_POINTS];
            let x0 = data.points(
                N_POINTS,
                &mut Draws::at(JUDGE_SEED, Stream::HeldOut, level as u64),
            );
            let x0 = Tensor::from_vec(x0, (N_POINTS, 2), &Device::Cpu)?;
            let eps = network::normal(
                N_POINTS,
                &mut Draws::at(JUDGE_SEED, Stream::Noise, level as u64),
            )?;
            let x_t = schedule.add_noise(&x0, &eps, &t)?; // [N, 2]
            let times: Vec<f64> = t.iter().map(|&t| f64::from(t)).collect();
            let best = points(&x_t)?.into_iter();
            let best = best.flat_map(|x_t| data.eps_hat(x_t, alpha_bar).map(|eps| eps as f32));
            let best = Tensor::from_iter(best, &Device::Cpu)?.reshape((N_POINTS, 2))?; // [N, 2]
            // With the best guess in place of the noise, the loss is the excess.
            let error = |output: &Tensor, truth: &Tensor| -> anyhow::Result<f64> {
                let mse = objective.loss(output, &x0, truth, &t)?.mse_eps; // [N]
                Ok(f64::from(mse.mean_all()?.to_scalar::<f32>()?))
            };
            let outputs = [
                networks[0].eps_hat(&x_t, &times)?,
                networks[1].eps_hat(&x_t, &times)?,
            ];
            Ok(LevelErrors {
                t: level as u32,
                log_snr: schedule.log_snr()[level],
                optimum: error(&best, &eps)?,
                errors: [error(&outputs[0], &eps)?, error(&outputs[1], &eps)?],
                excess: [error(&outputs[0], &best)?, error(&outputs[1], &best)?],
            })
        })
        .collect()
}

/// The table of errors: one row per stage, mean over its noise levels.
fn print_stages(levels: &[LevelErrors], schedule: &NoiseSchedule) {
    println!("\nmean squared error on the noise, and its excess over the best denoiser");
    println!("stage      best     simple   P2       excess of simple  excess of P2");
    for stage in Stage::ALL {
        let timesteps = stage.timesteps(schedule);
        let here: Vec<_> = levels
            .iter()
            .filter(|level| timesteps.contains(&level.t))
            .collect();
        let mean = |of: fn(&LevelErrors) -> f64| {
            here.iter().map(|level| of(level)).sum::<f64>() / here.len() as f64
        };
        println!(
            "{:<9}  {:.5}  {:.5}  {:.5}  {:.6}          {:.6}",
            match stage {
                Stage::CleanUp => "clean-up",
                Stage::Content => "content",
                Stage::Coarse => "coarse",
            },
            mean(|level| level.optimum),
            mean(|level| level.errors[0]),
            mean(|level| level.errors[1]),
            mean(|level| level.excess[0]),
            mean(|level| level.excess[1]),
        );
    }
}

/// How many samples lie where hardly any data is.
fn print_strays(samples: &[Vec<[f64; 2]>; 2], data: &Mixture) {
    let share = |points: &[[f64; 2]]| {
        let strays = points
            .iter()
            .filter(|&&x| data.distance_in_stds(x) > STRAY_STDS);
        100.0 * strays.count() as f64 / points.len() as f64
    };
    println!(
        "\nstray samples, over {STRAY_STDS} standard deviations from all beads (1.1 % of the data): \
         simple {:.1} %, P2 {:.1} %",
        share(&samples[0]),
        share(&samples[1])
    );
}

/// Points from a network by DDIM, both networks from the same noise.
fn draw_samples(network: &Network, objective: &Objective) -> anyhow::Result<Vec<[f64; 2]>> {
    let x_t = network::normal(N_SAMPLES, &mut Draws::at(JUDGE_SEED, Stream::Sample, 0))?;
    let levels = Levels::from_spec(objective.schedule(), N_SAMPLING_STEPS)?;
    let options = DdimOptions {
        clip: Clip::Off,
        eta: 0.0,
    };
    // Without eta no noise is asked for.
    let mut noise = |_| Ok(x_t.clone());
    let denoiser = network.denoiser(objective);
    let x0 = ddim(
        &denoiser,
        x_t.clone(),
        &levels,
        options,
        &mut noise,
        &mut |_| Ok(()),
    )?;
    points(&x0)
}

/// The points of `[N, 2]`.
fn points(x: &Tensor) -> anyhow::Result<Vec<[f64; 2]>> {
    let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    let (pairs, _) = values.as_chunks::<2>();
    Ok(pairs.iter().map(|pair| pair.map(f64::from)).collect())
}
