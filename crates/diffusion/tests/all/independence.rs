//! The bits of one image depend neither on the batch size nor on its place in the batch.

use candle_core::{DType, Tensor, Var};
use p2_diffusion::sampler::{AncestralOptions, Clip, DdimOptions};
use p2_diffusion::{
    Error, LossType, NetworkOutput, NoiseSchedule, Objective, Prediction, Result, Variance,
    Weighting, sampler,
};

use crate::support::{bits, fill};

const T: [u32; 6] = [0, 731, 0, 1, 999, 258];

struct Batch {
    x0: Tensor,
    eps: Tensor,
    output: Tensor,
    t: Vec<u32>,
}

impl Batch {
    fn new() -> Result<Self> {
        // Sizes off every vector width.
        Ok(Self {
            x0: fill(&[6, 5, 7, 3], DType::F32, |i| (0.7 * i).sin())?,
            eps: fill(&[6, 5, 7, 3], DType::F32, |i| 1.4 * (1.3 * i).cos())?,
            output: fill(&[6, 5, 7, 6], DType::F32, |i| 0.9 * (2.1 * i).sin())?,
            t: T.to_vec(),
        })
    }

    fn select(&self, rows: &[u32]) -> Result<Self> {
        let index = Tensor::new(rows, self.x0.device())?;
        Ok(Self {
            x0: self.x0.index_select(&index, 0)?,
            eps: self.eps.index_select(&index, 0)?,
            output: self.output.index_select(&index, 0)?,
            t: rows.iter().map(|&row| self.t[row as usize]).collect(),
        })
    }

    /// Everything the crate computes about the batch; each tensor has one row per image.
    fn results(&self, prediction: Prediction, variance: Variance) -> Result<Vec<Tensor>> {
        let schedule = NoiseSchedule::linear(1000)?;
        let t = &self.t;
        let mut results = Vec::new();
        for (loss_type, weighting) in [
            (LossType::RescaledMse, Weighting::P2 { k: 1.0, gamma: 0.5 }),
            (LossType::Kl, Weighting::Simple {}),
        ] {
            let objective =
                Objective::of_type(loss_type, &schedule, prediction, variance, weighting)?;
            let output = Var::from_tensor(&self.output)?;
            let loss = objective.loss(&output, &self.x0, &self.eps, t)?;
            let grads = loss.weighted.sum_all()?.backward()?;
            results.extend([
                grads.get(&output).ok_or(Error::MissingVarianceMix)?.clone(),
                loss.mse,
                loss.mse_eps,
                loss.vb.ok_or(Error::MissingVarianceMix)?,
                loss.weighted,
            ]);
        }
        let x_t = schedule.add_noise(&self.x0, &self.eps, t)?;
        let output = NetworkOutput {
            values: &self.output,
            prediction,
            variance,
        };
        let denoised = output.denoised(&schedule, &x_t, t)?;
        let clip = Clip::Pixels;
        let ancestral = AncestralOptions { clip, variance };
        let ancestral = sampler::p_mean_variance(&schedule, &x_t, &denoised, t, ancestral)?;
        let ddim = DdimOptions { clip, eta: 0.5 };
        let ddim = sampler::ddim_step(&schedule, &x_t, &denoised, t, ddim)?;
        results.extend([
            ancestral.sample(&self.eps)?,
            ddim.sample(&self.eps)?,
            sampler::ddim_reverse_step(&schedule, &x_t, &denoised, t, clip)?,
            x_t,
        ]);
        Ok(results)
    }
}

#[test]
fn of_size_and_place() -> Result<()> {
    let batch = Batch::new()?;
    let predictions = Prediction::ALL.map(|prediction| (prediction, Variance::LearnedRange));
    for (prediction, variance) in predictions
        .into_iter()
        .chain([(Prediction::V, Variance::Learned)])
    {
        let expected = batch.results(prediction, variance)?;
        for rows in [
            &[0][..],
            &[1],
            &[5],
            &[2, 0],
            &[5, 4, 3, 2, 1, 0],
            &[4, 0, 4],
        ] {
            let got = batch.select(rows)?.results(prediction, variance)?;
            for (which, (got, expected)) in got.iter().zip(&expected).enumerate() {
                for (place, &row) in rows.iter().enumerate() {
                    let got = bits(&got.narrow(0, place, 1)?)?;
                    let expected = bits(&expected.narrow(0, row as usize, 1)?)?;
                    assert_eq!(got, expected, "{prediction}: result {which}, rows {rows:?}");
                }
            }
        }
    }
    Ok(())
}
