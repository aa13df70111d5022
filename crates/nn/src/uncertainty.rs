//! A small network beside the large one: how large an error is to be expected at a noise level.

use candle_core::{Device, Tensor};

use crate::layer::{Linear, Start};
use crate::params::{Builder, Init, Initializer, Params};
use crate::tape::{Node, Tape};
use crate::{Error, Result};

/// Noise beyond a log-SNR of this size is all alike.
const MAX_LOG_SNR: f64 = 40.0;

/// `u(log_snr)`, a linear function of Fourier features of the noise level.
///
/// The features are `sqrt(2) cos(2 pi (f c + p))` with `c = ln(sigma) / 4`, normal f and uniform p. The linear
/// function starts at 0.
///
/// # Source
/// Karras et al. 2024, arXiv 2312.02696, section 2.2 and appendix B.
///
/// # Example
/// ```
/// # use p2_nn::{Init, Tape, Uncertainty};
/// # let cpu = p2_nn::Cpu::best(p2_nn::Threads::new(1));
/// let mut initializer = |_: usize, init: Init, values: &mut [f32]| {
///     let value = if init == Init::Zeros { 0.0 } else { 0.3 };
///     values.fill(value);
/// };
/// let network = Uncertainty::new(128, &mut initializer)?;
/// let u = network.forward(&Tape::inference(cpu), &[-2.0, 5.0])?; // [2, 1]
/// assert_eq!(u.value().flatten_all()?.to_vec1::<f32>()?, [0.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Uncertainty {
    frequencies: Vec<f32>,
    phases: Vec<f32>,
    linear: Linear,
    params: Params,
}

impl Uncertainty {
    /// A network whose frequencies (the initializer's parameter 0), phases (1) and weights `initializer` fills.
    ///
    /// # Errors
    /// If there are no features.
    pub fn new(n_features: usize, initializer: &mut Initializer<'_>) -> Result<Self> {
        if n_features == 0 {
            return Err(Error::Config(
                "an uncertainty needs 1 feature or more".into(),
            ));
        }
        let (mut frequencies, mut phases) = (vec![0.0; n_features], vec![0.0; n_features]);
        initializer(0, Init::Normal { std: 1.0 }, &mut frequencies);
        initializer(1, Init::Uniform { bound: 0.5 }, &mut phases);
        let mut params = Params::default();
        let mut shifted =
            |index: usize, init: Init, values: &mut [f32]| initializer(2 + index, init, values);
        let mut root = Builder::new(&mut params, &mut shifted, &Device::Cpu);
        let linear = Linear::new(&mut root, [n_features, 1], Start::Zero)?;
        Ok(Self {
            frequencies,
            phases,
            linear,
            params,
        })
    }

    /// What is trained.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// `u` at noise levels, given by their log-SNR: `[N]` to `[N, 1]`.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn forward(&self, tape: &Tape, log_snr: &[f64]) -> Result<Node> {
        let n_features = self.frequencies.len();
        let mut features = Vec::with_capacity(log_snr.len() * n_features);
        for log_snr in log_snr {
            // sigma^2 is one over the SNR.
            let c = -0.125 * log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR);
            let waves = self.frequencies.iter().zip(&self.phases);
            features.extend(waves.map(|(&frequency, &phase)| {
                let turns = f64::from(frequency) * c + f64::from(phase);
                (std::f64::consts::SQRT_2 * (std::f64::consts::TAU * turns).cos()) as f32
            }));
        }
        let features = Tensor::from_vec(features, (log_snr.len(), n_features), &Device::Cpu)?;
        self.linear.forward(&tape.constant(&features)) // [N, C] to [N, 1]
    }
}
