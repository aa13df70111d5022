//! A model as samplers and likelihoods see it: guesses of the clean image, and how they move with what is seen.

use candle_core::{Tensor, Var};
use p2_diffusion::{Denoised, Denoiser, DifferentiableDenoiser, Error, NetworkOutput, Result};
use p2_nn::{Node, Tape};

use super::{Condition, Model, Noised};

/// A model's guesses for images of given classes, or enlarged from given ones.
#[derive(Debug, Clone, Copy)]
pub struct ModelDenoiser<'a> {
    model: &'a Model,
    condition: Condition<'a>,
}

impl<'a> ModelDenoiser<'a> {
    pub(super) fn new(model: &'a Model, condition: Condition<'a>) -> Self {
        Self { model, condition }
    }

    fn guess(&self, values: &Tensor, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        let output = NetworkOutput {
            values,
            prediction: self.model.prediction,
            variance: self.model.variance,
        };
        output.denoised(&self.model.schedule, x_t, t)
    }

    /// The network's output, and its input on the tape.
    fn record(&self, x_t: &Tensor, t: &[f64]) -> anyhow::Result<(Node, Node)> {
        let tape = Tape::recording_inputs(self.model.cpu);
        let (input, condition) = (tape.input(x_t), self.condition);
        let noised = Noised { x_t, t, condition };
        Ok((self.model.forward(&input, noised, None)?, input))
    }
}

impl Denoiser for ModelDenoiser<'_> {
    fn denoise(&self, x_t: &Tensor, t: &[f64]) -> Result<Denoised> {
        let condition = self.condition;
        let values = self.model.predict(Noised { x_t, t, condition });
        self.guess(&values.map_err(foreign)?, x_t, t)
    }
}

impl DifferentiableDenoiser for ModelDenoiser<'_> {
    fn denoise_with_vjp(&self, x_t: &Tensor, t: &[f64], v: &Tensor) -> Result<(Denoised, Tensor)> {
        let (output, input) = self.record(x_t, t).map_err(foreign)?;
        // From the output on, candle's graph knows: the guess depends on it, and on what was seen directly.
        let seen = Var::from_tensor(x_t)?;
        let leaf = output.leaf().map_err(|error| foreign(error.into()))?;
        let denoised = self.guess(&leaf, &seen, t)?;
        let gradients = (&denoised.x0_hat * v)?.sum_all()?.backward()?;
        let d_output = gradients.get(&leaf).ok_or(Error::NoDerivative)?;
        let through = output.backward(d_output);
        let through = through.map_err(|error| foreign(error.into()))?;
        let through = through.of(&input).ok_or(Error::NoDerivative)?;
        let product = match gradients.get(&seen) {
            Some(directly) => (directly + through)?,
            None => through.clone(),
        };
        Ok((denoised.detach(), product))
    }
}

fn foreign(error: anyhow::Error) -> Error {
    Error::Caller(error.into())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use p2_nn::{Cpu, Threads};

    use super::*;
    use crate::config::{Base, Override, resolve};

    /// A tiny network that is not at its beginning, where it says nothing.
    fn model(set: &[&str]) -> Model {
        let tiny = [
            "data.image_size=8",
            "model.attention_resolutions=[4]",
            "model.n_classes=3",
        ];
        let set: Vec<_> = [&tiny[..], set].concat();
        let set: Vec<_> = set.iter().map(|set| Override::set(set)).collect();
        let config = resolve(&Base::Preset("smoke".into()), &set).unwrap();
        let model = Model::new(&config, Cpu::best(Threads::new(2))).unwrap();
        for (index, param) in model.params().iter().enumerate() {
            let wave = |i: usize| 0.1 * (0.7 * index as f64 + 0.31 * i as f64).sin();
            let values = param.values().unwrap().into_iter().enumerate();
            let values: Vec<f32> = values.map(|(i, value)| value + wave(i) as f32).collect();
            param.set_values(&values).unwrap();
        }
        model
    }

    fn waves(n: usize, frequency: f64) -> Tensor {
        let values = (0..n * 192).map(|i| (frequency * i as f64).sin() as f32);
        let values = Tensor::from_iter(values, &Device::Cpu).unwrap();
        values.reshape((n, 8, 8, 3)).unwrap()
    }

    fn sum(a: &Tensor, b: &Tensor) -> f64 {
        let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let pairs = values(a).into_iter().zip(values(b));
        pairs.map(|(a, b)| f64::from(a) * f64::from(b)).sum()
    }

    #[test]
    fn the_product_is_the_slope_of_the_guess() {
        for prediction in ["eps", "x0", "v"] {
            for variance in ["fixed-small", "learned-range"] {
                let prediction = format!("diffusion.prediction={prediction}");
                let variance = format!("diffusion.variance={variance}");
                let model = model(&[&prediction, &variance]);
                let denoiser = model.denoiser(Condition::of_classes(&[0, 2]));
                let (x_t, v, t) = (waves(2, 0.11), waves(2, 0.37), [30.0, 512.5]);
                let (denoised, product) = denoiser.denoise_with_vjp(&x_t, &t, &v).unwrap();
                let alone = denoiser.denoise(&x_t, &t).unwrap();
                assert_eq!(bits(&denoised.x0_hat), bits(&alone.x0_hat));
                for frequency in [0.7, 1.9] {
                    let direction = waves(2, frequency);
                    let at = |step: f64| {
                        let x_t = (&x_t + (&direction * step).unwrap()).unwrap();
                        sum(&denoiser.denoise(&x_t, &t).unwrap().x0_hat, &v)
                    };
                    // Three steps, so that their errors of second and fourth order cancel; what
                    // is left is rounding.
                    let slope = |step: f64| (at(step) - at(-step)) / (2.0 * step);
                    let slope = 1.5 * slope(1e-3) - 0.6 * slope(2e-3) + 0.1 * slope(3e-3);
                    let got = sum(&product, &direction);
                    assert!(
                        (got - slope).abs() < 1e-3 * slope.abs() + 0.08,
                        "{prediction} {variance}: {got} is not {slope}"
                    );
                }
            }
        }
    }

    fn bits(x: &Tensor) -> Vec<u32> {
        let values: Vec<f32> = x.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    #[test]
    fn a_product_has_the_same_bits_in_any_batch() {
        let model = model(&[]);
        let (x_t, v) = (waves(5, 0.11), waves(5, 0.37));
        let (t, labels) = ([0.0, 30.0, 512.5, 700.0, 999.0], [0, 2, 1, 1, 0]);
        let product = |first: usize, n: usize| {
            let rows = first..first + n;
            let [x_t, v] = [&x_t, &v].map(|all| all.narrow(0, first, n).unwrap());
            let denoiser = model.denoiser(Condition::of_classes(&labels[rows.clone()]));
            let product = denoiser.denoise_with_vjp(&x_t, &t[rows], &v);
            bits(&product.unwrap().1)
        };
        let whole = product(0, 5);
        for n in [1, 2, 3] {
            let parts = (0..5).step_by(n);
            let joined: Vec<u32> = parts
                .flat_map(|first| product(first, n.min(5 - first)))
                .collect();
            assert_eq!(joined, whole, "batches of {n}");
        }
    }
}
