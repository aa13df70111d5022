//! Learned uncertainty: the small network that is trained beside the large one, and its optimizer.

use candle_core::{Device, Tensor};
use p2_diffusion::{Adjustment, Error, NoiseLevel, Result, StateTensor, StatefulWeighting};
use p2_nn::params::Param;
use p2_nn::{AdamW, Cpu, Init, Recompute, Tape, Uncertainty, adamw};

use crate::model::initialize;
use crate::rng::{Draws, Stream};

/// Moments of EDM2's optimizer (Karras et al. 2024, arXiv 2312.02696, table 6).
const BETA1: f64 = 0.9;
const BETA2: f64 = 0.99;

/// Learns u for `error / e^u + u`, which is least where `e^u` is the mean error of a level.
#[derive(Debug)]
pub(super) struct LearnedUncertainty {
    network: Uncertainty,
    optimizer: AdamW,
    lr: f64,
    step: u64,
}

impl LearnedUncertainty {
    /// An uncertainty that knows nothing yet; its features are a function of the seed.
    pub(super) fn new(n_features: usize, lr: f64, seed: u64, cpu: Cpu) -> p2_nn::Result<Self> {
        let mut initializer = |index: usize, init: Init, values: &mut [f32]| {
            let draws = Draws::at(seed, Stream::Uncertainty, index as u64);
            initialize(draws, init, values);
        };
        let network = Uncertainty::new(n_features, &mut initializer)?;
        Ok(Self {
            optimizer: AdamW::new(network.params(), cpu)?,
            network,
            lr,
            step: 0,
        })
    }

    /// One step down the gradient of `error / e^u + u`, the mean over images.
    fn descend(&mut self, log_snr: &[f64], errors: &[f64], cpu: Cpu) -> anyhow::Result<()> {
        let tape = Tape::recording(cpu, Recompute::Nothing);
        let u = self.network.forward(&tape, log_snr)?;
        let leaf = u.leaf()?;
        let errors = Tensor::from_slice(errors, u.value().shape(), &Device::Cpu)?;
        let errors = errors.to_dtype(leaf.dtype())?;
        let loss = ((errors * leaf.neg()?.exp()?)? + leaf.as_tensor())?.mean_all()?;
        let gradients = u.backward_from(&leaf, &loss)?;
        let gradients = gradients.into_tensors(self.network.params())?;
        self.step += 1;
        let step = adamw::Step {
            lr: self.lr,
            beta1: BETA1,
            beta2: BETA2,
            eps: 1e-8,
            weight_decay: 0.0,
            step: self.step,
            grad_scale: 1.0,
            ema_decay: 0.0,
        };
        Ok(self.optimizer.step(&gradients, step)?)
    }

    fn parts(&self) -> p2_nn::Result<Vec<StateTensor>> {
        let named = |prefix: &str, param: &Param, values: &[f32]| StateTensor {
            name: format!("{prefix}{}", param.name()),
            values: values.to_vec(),
        };
        let mut parts = vec![StateTensor {
            name: STEP.into(),
            values: vec![self.step as f32],
        }];
        for (param, state) in self.network.params().iter().zip(self.optimizer.states()) {
            parts.push(named("", param, &param.values()?));
            parts.push(named(EXP_AVG, param, &state.exp_avg));
            parts.push(named(EXP_AVG_SQ, param, &state.exp_avg_sq));
        }
        Ok(parts)
    }
}

/// How often it has learned; exact up to 2^24, where the moments have long forgotten their start.
const STEP: &str = "step";
const EXP_AVG: &str = "exp_avg.";
const EXP_AVG_SQ: &str = "exp_avg_sq.";

impl StatefulWeighting for LearnedUncertainty {
    fn adjust(&self, levels: &[NoiseLevel]) -> Result<Vec<Adjustment>> {
        let tape = Tape::inference(self.optimizer.cpu());
        let u = self.network.forward(&tape, &log_snr(levels));
        let u: Vec<f32> = u.map_err(caller)?.value().flatten_all()?.to_vec1()?;
        let adjustments = u.into_iter().map(|u| Adjustment {
            log_factor: -f64::from(u),
            penalty: f64::from(u),
        });
        Ok(adjustments.collect())
    }

    fn learn(&mut self, levels: &[NoiseLevel], errors: &[f64]) -> Result<()> {
        if levels.is_empty() {
            return Ok(());
        }
        let cpu = self.optimizer.cpu();
        self.descend(&log_snr(levels), errors, cpu)
            .map_err(|error| Error::Caller(error.into()))
    }

    fn state(&self) -> Result<Vec<StateTensor>> {
        self.parts().map_err(caller)
    }

    fn restore(&mut self, state: &[StateTensor]) -> Result<()> {
        self.step = StateTensor::find(state, STEP, 1)?[0] as u64;
        for (param, moments) in self
            .network
            .params()
            .iter()
            .zip(self.optimizer.states_mut())
        {
            let find = |prefix: &str| {
                let name = format!("{prefix}{}", param.name());
                StateTensor::find(state, &name, moments.ema.len()).map(<[f32]>::to_vec)
            };
            let (values, exp_avg, exp_avg_sq) = (find("")?, find(EXP_AVG)?, find(EXP_AVG_SQ)?);
            param.set_values(&values).map_err(caller)?;
            moments.exp_avg = exp_avg;
            moments.exp_avg_sq = exp_avg_sq;
            moments.ema = values;
        }
        Ok(())
    }
}

fn log_snr(levels: &[NoiseLevel]) -> Vec<f64> {
    levels.iter().map(|level| level.log_snr()).collect()
}

fn caller(error: p2_nn::Error) -> Error {
    Error::Caller(Box::new(error))
}

#[cfg(test)]
mod tests {
    use p2_diffusion::{NoiseLevel, StatefulWeighting as _};
    use p2_nn::{Cpu, Threads};

    use super::LearnedUncertainty;

    fn new(seed: u64) -> LearnedUncertainty {
        let cpu = Cpu::best(Threads::new(1));
        LearnedUncertainty::new(64, 0.003, seed, cpu).unwrap()
    }

    fn levels(log_snr: &[f64]) -> Vec<NoiseLevel> {
        let levels = log_snr.iter().map(|&l| NoiseLevel::from_log_snr(l));
        levels.collect()
    }

    #[test]
    fn it_learns_the_logarithm_of_the_error() {
        let mut learned = new(1);
        let log_snr: Vec<f64> = (0..32).map(|i| -8.0 + 0.5 * f64::from(i)).collect();
        let levels = levels(&log_snr);
        let adjust = |learned: &LearnedUncertainty| learned.adjust(&levels).unwrap();
        assert!(
            adjust(&learned)
                .iter()
                .all(|a| a.log_factor == 0.0 && a.penalty == 0.0)
        );
        // Errors as a denoiser has them: small where there is little to know.
        let expected: Vec<f64> = log_snr.iter().map(|l| 0.4 * l - 1.0).collect();
        let errors: Vec<f64> = expected.iter().map(|log_error| log_error.exp()).collect();
        for _ in 0..2000 {
            learned.learn(&levels, &errors).unwrap();
        }
        for (adjustment, expected) in adjust(&learned).iter().zip(expected) {
            assert!(
                (adjustment.penalty - expected).abs() < 0.3,
                "{adjustment:?}, {expected}"
            );
            assert_eq!(adjustment.log_factor, -adjustment.penalty);
        }
    }

    #[test]
    fn it_goes_on_from_its_state() {
        let (mut whole, mut resumed, levels) = (new(2), new(2), levels(&[-3.0, 0.5]));
        whole.learn(&levels, &[0.1, 0.7]).unwrap();
        resumed.restore(&whole.state().unwrap()).unwrap();
        for learned in [&mut whole, &mut resumed] {
            learned.learn(&levels, &[0.2, 0.6]).unwrap();
        }
        assert_eq!(whole.state().unwrap(), resumed.state().unwrap());
        // A part that is missing is refused.
        assert!(resumed.restore(&whole.state().unwrap()[1..]).is_err());
    }

    #[test]
    fn a_level_is_adjusted_alike_in_any_company() {
        let mut learned = new(4);
        let all = levels(&[f64::NEG_INFINITY, -9.0, -1.0, 0.0, 2.5, f64::INFINITY]);
        learned
            .learn(&all, &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
            .unwrap();
        let together = learned.adjust(&all).unwrap();
        assert!(
            together
                .iter()
                .all(|adjustment| adjustment.penalty.is_finite())
        );
        for (level, adjustment) in all.iter().zip(&together) {
            assert_eq!(learned.adjust(&[*level]).unwrap(), [*adjustment]);
        }
    }
}
