//! The loss of a step and its gradient in one pass: the numbers of `diffusion`, the kernel of `nn`.

use candle_core::Tensor;
use p2_diffusion::{ImageBound, ImageLoss, ImageMeans, ImageTerm, LossTerms, Objective};
use p2_nn::Node;
use p2_nn::op::loss::{self, Bound, Image, Means, Term};

use super::noise::{Images, Noise};

/// The loss of a network's output for noised images, and its gradient.
///
/// The same as [`Objective::loss`], which the tests hold it to, without a tensor for each operation.
///
/// # Shapes and units
/// - `output`: `[N, H, W, C]`, or `[N, H, W, 2C]` with learned variance
/// - `d_weighted`: `[N]`, the derivative of what is minimized by each image's weighted loss
/// - returns: each term `[N]`, and the derivative of what is minimized, like `output`
///
/// # Errors
/// As for [`Objective::loss`].
pub(super) fn loss_and_gradient(
    objective: &Objective,
    output: &Node,
    images: &Images,
    noise: &Noise,
    d_weighted: &[f64],
) -> anyhow::Result<(LossTerms, Tensor)> {
    let plan = objective.plan(&noise.t, d_weighted)?;
    let numbers: Vec<Image> = plan.images().iter().map(image).collect();
    let found = loss::loss(output, &images.x0, &noise.eps, &numbers)?;
    let means: Vec<ImageMeans> = found.means.iter().map(means).collect();
    Ok((plan.terms(&means)?, found.d_output))
}

fn image(image: &ImageLoss) -> Image {
    Image {
        target_x0: image.target_x0,
        target_eps: image.target_eps,
        d_mse: image.d_mse,
        bound: image.bound.as_ref().map(bound),
    }
}

fn bound(bound: &ImageBound) -> Bound {
    Bound {
        ratio_slope: bound.ratio_slope,
        ratio_shift: bound.ratio_shift,
        term: match bound.term {
            ImageTerm::Divergence { distance } => Term::Divergence { distance },
            ImageTerm::Likelihood {
                x0_error,
                log_variance,
            } => Term::Likelihood {
                x0_error,
                log_variance,
            },
        },
        d_prediction: bound.d_prediction,
        d_variance: bound.d_variance,
    }
}

fn means(means: &Means) -> ImageMeans {
    ImageMeans {
        mse: means.squared,
        nats: means.nats,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use p2_diffusion::{
        Adjustment, LossType, NoiseLevel, NoiseSchedule, Prediction, StateTensor,
        StatefulWeighting, Variance, Weighting,
    };
    use p2_nn::{Cpu, Tape, Threads};

    use super::*;

    /// Two images at t = 0, where pixels are looked at, and two between levels.
    const T: [u32; 4] = [6, 0, 1, 0];
    /// Images, pixels, channels.
    const SIZES: [[usize; 3]; 4] = [[0, 1, 3], [1, 1, 1], [3, 35, 3], [4, 19, 2]];

    /// A weighting that has learned something already.
    #[derive(Debug)]
    struct Learned;

    impl StatefulWeighting for Learned {
        fn adjust(&self, levels: &[NoiseLevel]) -> p2_diffusion::Result<Vec<Adjustment>> {
            let adjustment = |level: &NoiseLevel| Adjustment {
                log_factor: 0.1 * level.log_snr(),
                penalty: 0.02 * level.log_snr(),
            };
            Ok(levels.iter().map(adjustment).collect())
        }

        fn learn(&mut self, _: &[NoiseLevel], _: &[f64]) -> p2_diffusion::Result<()> {
            Ok(())
        }

        fn state(&self) -> p2_diffusion::Result<Vec<StateTensor>> {
            Ok(vec![])
        }

        fn restore(&mut self, _: &[StateTensor]) -> p2_diffusion::Result<()> {
            Ok(())
        }
    }

    /// Every kind of loss with every prediction and variance; weightings where they apply.
    fn objectives() -> Vec<(String, Objective)> {
        // Few levels, so that the range of the learned variance is wide.
        let schedule = NoiseSchedule::linear(40).unwrap();
        let p2 = Weighting::P2 { k: 1.0, gamma: 0.5 };
        let min_snr = Weighting::MinSnr { gamma: 5.0 };
        let weighted = [Weighting::Simple {}, p2, min_snr, Weighting::Vlb {}];
        let mut objectives = vec![];
        for (prediction, variance) in Prediction::ALL
            .into_iter()
            .flat_map(|prediction| Variance::ALL.map(|variance| (prediction, variance)))
        {
            for loss_type in LossType::ALL {
                let of = |weighting| {
                    Objective::of_type(loss_type, &schedule, prediction, variance, weighting)
                        .unwrap()
                };
                let mut push = |weighting, objective| {
                    let name = format!("{loss_type:?}, {prediction}, {variance:?}, {weighting}");
                    objectives.push((name, objective));
                };
                if loss_type.is_bound() {
                    push("bound".to_owned(), of(Weighting::Simple {}));
                    continue;
                }
                for weighting in weighted {
                    push(format!("{weighting:?}"), of(weighting));
                }
                let learned = of(p2).with_stateful(Box::new(Learned));
                push("learned".to_owned(), learned);
            }
        }
        objectives
    }

    fn numbers(shape: [usize; 3], f: impl Fn(f64) -> f64) -> Tensor {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|i| f(i as f64) as f32).collect();
        Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()
    }

    /// Images, some of whose pixels belong to the first and the last bin, and their noise.
    fn batch(size: [usize; 3]) -> (Images, Noise) {
        let images = Images {
            x0: numbers(size, |i| (1.5 * (1.1 * i).sin()).clamp(-1.0, 1.0)),
            x_t: numbers(size, |_| f64::NAN),
        };
        let noise = Noise {
            t: T[..size[0]].to_vec(),
            eps: numbers(size, |i| 1.2 * (1.7 * i).cos()),
        };
        (images, noise)
    }

    /// What a network may say that is not quite right, with a variance between those that are usual.
    fn output(objective: &Objective, images: &Images, noise: &Noise) -> Tensor {
        let (schedule, prediction) = (objective.schedule(), objective.prediction());
        let size = images.x0.dims3().unwrap().into();
        // Half a standard deviation or more in x0 at t = 0, since less would be lost in the rounding of targets.
        let off = match prediction {
            Prediction::Eps | Prediction::V => 0.6,
            Prediction::X0 | Prediction::XPrev => 0.06,
        };
        let target = prediction.target(schedule, &images.x0, &noise.eps, &noise.t);
        let off = numbers(size, |i| off * (2.9 * i + 1.2).sin());
        let prediction = (target.unwrap() + off).unwrap();
        let said = numbers(size, |i| 0.8 * (3.1 * i + 0.7).sin());
        let said = match objective.variance() {
            Variance::FixedSmall | Variance::FixedLarge => return prediction,
            Variance::LearnedRange => said,
            Variance::Learned => {
                let log_variance = schedule.posterior_log_variance_clipped();
                let of_images = noise.t.iter().map(|&t| log_variance[t as usize] as f32);
                let shape = (noise.t.len(), 1, 1);
                let posterior = Tensor::from_vec(of_images.collect(), shape, &Device::Cpu);
                said.broadcast_add(&posterior.unwrap()).unwrap()
            }
        };
        Tensor::cat(&[prediction, said], 2).unwrap()
    }

    /// The loss and its gradient by candle, in f64: the gradient is `None` without images.
    fn composition(
        objective: &Objective,
        output: &Tensor,
        (images, noise): (&Images, &Noise),
        d_weighted: &[f64],
    ) -> (LossTerms, Option<Tensor>) {
        let exact = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let leaf = Var::from_tensor(&exact(output)).unwrap();
        let (x0, eps) = (exact(&images.x0), exact(&noise.eps));
        let loss = objective.loss(&leaf, &x0, &eps, &noise.t).unwrap();
        if d_weighted.is_empty() {
            return (loss, None);
        }
        let factors = Tensor::new(d_weighted, &Device::Cpu).unwrap();
        let minimized = (&loss.weighted * factors).unwrap().sum_all().unwrap();
        let gradient = minimized.backward().unwrap().get(&leaf).unwrap().clone();
        (loss, Some(gradient))
    }

    /// Each image alone, since images differ by orders of magnitude.
    fn check(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
        assert_eq!(got.dims(), expected.dims(), "{what}");
        let n = got.dims()[0];
        let values = |x: &Tensor| -> Vec<f64> {
            let x = x.to_dtype(DType::F64).unwrap();
            x.flatten_all().unwrap().to_vec1().unwrap()
        };
        let (got, expected) = (values(got), values(expected));
        let len = (got.len() / n.max(1)).max(1);
        for (n, (got, expected)) in got.chunks(len).zip(expected.chunks(len)).enumerate() {
            let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            for (got, expected) in got.iter().zip(expected) {
                assert!(
                    (got - expected).abs() <= tolerance * largest,
                    "{what}, image {n}: {got:e} instead of {expected:e}, largest {largest:e}"
                );
            }
        }
    }

    #[test]
    fn the_pass_repeats_the_composition() {
        let cpu = Cpu::best(Threads::new(2));
        for ((name, objective), size) in objectives()
            .iter()
            .flat_map(|objective| SIZES.map(|size| (objective, size)))
        {
            let (images, noise) = batch(size);
            let output = output(objective, &images, &noise);
            let d_weighted: Vec<f64> = (0..size[0]).map(|i| 0.3 + 0.1 * i as f64).collect();
            let (slow, gradient) = composition(objective, &output, (&images, &noise), &d_weighted);
            let node = Tape::inference(cpu).constant(&output);
            let (fast, d_output) =
                loss_and_gradient(objective, &node, &images, &noise, &d_weighted).unwrap();
            let what = format!("{name}, {size:?}");
            check(&what, &fast.mse, &slow.mse, 5e-6);
            check(&what, &fast.mse_eps, &slow.mse_eps, 5e-6);
            check(&what, &fast.weighted, &slow.weighted, 5e-6);
            assert_eq!(fast.vb.is_some(), slow.vb.is_some(), "{what}");
            for (fast, slow) in fast.vb.iter().zip(&slow.vb) {
                check(&what, fast, slow, 5e-6);
            }
            assert_eq!(d_output.dims(), output.dims(), "{what}");
            let half = |x: &Tensor, first| x.narrow(2, first, size[2]).unwrap();
            for first in (0..output.dims()[2]).step_by(size[2]) {
                if let Some(gradient) = &gradient {
                    check(&what, &half(&d_output, first), &half(gradient, first), 1e-5);
                }
            }
        }
    }
}
