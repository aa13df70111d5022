//! The sections of a configuration file, exactly as a user writes them.
//!
//! There are no defaults: every value stands in the file, so that it can be read, saved and compared.

mod classifier;
mod sample;

use serde::{Deserialize, Serialize};

pub use classifier::{Classifier, ClassifierDiffusion, ClassifierTrain, Pool};
pub use sample::{Sample, Sampler, Spacing};

use super::Count;

/// `[data]`: which images, and how they become pixels.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// A folder (searched recursively), a `.zip` of images, or `bundled:emoji-32`.
    pub path: String,
    /// Height and width after crop and resize, in pixels.
    pub image_size: usize,
    /// Where the square is cut out.
    pub crop: Crop,
    /// Mirror every second image at random. Wrong for text, arrows and faces of clocks.
    pub horizontal_flip: bool,
    /// Share of the images kept out of training for the held-out loss, in `[0, 1)`.
    pub held_out: f64,
    /// Which images count as one drawing: they are never on both sides of the held-out split.
    pub group_by: GroupBy,
    /// Which of the images that differ in skin tone alone are used.
    pub skin_tones: SkinTones,
}

/// Where the square is cut out of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The middle, as large as fits.
    Center,
    /// Anywhere, with a side of 80 to 100 % of the shorter one.
    Random,
}

/// Which images count as one drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupBy {
    /// Every file is its own.
    File,
    /// Files whose names share the text before the first `-`, such as the code point of an emoji.
    FirstCodePoint,
}

/// Which of the images that differ in skin tone alone are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkinTones {
    /// All files, whatever their names.
    All,
    /// Files with a skin-tone code point (`1f3fb` to `1f3ff`) in the name are left out.
    One,
}

/// `[model]`: the ADM U-Net (Dhariwal and Nichol 2021, arXiv 2105.05233).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Channels of the first level; a multiple of 32.
    pub channels: usize,
    /// Channels of each level, from fine to coarse, as multiples of `channels`.
    pub channel_mult: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub n_res_blocks: usize,
    /// Heights (in pixels) of the feature maps that get self-attention.
    pub attention_resolutions: Vec<usize>,
    /// How many attention heads.
    pub heads: Heads,
    /// How the channels of queries, keys and values are laid out.
    pub attention_order: AttentionOrder,
    /// How feature maps change their size.
    pub resample: Resample,
    /// How the noise level enters a residual block.
    pub time_conditioning: TimeConditioning,
    /// Share of activations dropped in each residual block, in `[0, 1)`.
    pub dropout: f64,
    /// Number of classes of a class-conditional model; 0 for an unconditional one.
    pub n_classes: usize,
    /// Share of images trained without their class, in `[0, 1)`; above 0 for classifier-free guidance.
    pub label_dropout: f64,
    /// Height and width (in pixels) of the images that a super-resolution model enlarges; 0 for a model that draws from
    /// noise alone.
    pub low_res_size: usize,
    /// Most noise that is added to these in training (its standard deviation; each image has a random share of it), so
    /// that what another model drew can be enlarged too; 0 for none.
    pub low_res_noise: f64,
}

/// How many attention heads: `{ channels = 64 }` or `{ count = 4 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Heads {
    /// Channels per head.
    Channels(usize),
    /// Heads per attention block.
    Count(usize),
}

/// How the channels of queries, keys and values are laid out in the attention's projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionOrder {
    /// Head by head, each with its query, key and value.
    Legacy,
    /// All queries, all keys, all values, each head by head.
    New,
}

/// How feature maps change their size between levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resample {
    /// Inside residual blocks (BigGAN).
    ResBlock,
    /// By a convolution of stride 2, or one after nearest-neighbour upsampling.
    Conv,
}

/// How the noise level enters a residual block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeConditioning {
    /// It scales and shifts the normalized features.
    ScaleShift,
    /// It is added to the features before the norm.
    Additive,
}

/// `[diffusion]`: the noise process and what the network predicts.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Diffusion {
    /// How the noise grows with t.
    pub schedule: Schedule,
    /// Number of timesteps T.
    pub n_timesteps: usize,
    /// Whether there are noise levels between timesteps.
    pub time: Time,
    /// Tell the network times as if there were 1000 timesteps: t times 1000 / T.
    pub rescale_timesteps: bool,
    /// What the network predicts.
    pub prediction: Prediction,
    /// The variance of the reverse process.
    pub variance: Variance,
}

/// How the noise grows with t.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// Betas on a line (Ho et al. 2020).
    Linear,
    /// alpha_bar as a squared cosine (Nichol and Dhariwal 2021).
    Cosine,
    /// alpha_bar along a sigmoid (Jabri et al. 2022).
    Sigmoid {
        /// Where the sigmoid begins; -3 there.
        start: f64,
        /// Where it ends, above `start`; 3 there.
        end: f64,
        /// What its argument is divided by, above 0.
        temperature: f64,
    },
    /// Noise spaced evenly in `sigma^(1 / rho)` (Karras et al. 2022).
    Karras {
        /// Least noise per unit of data, above 0; 0.002 there.
        sigma_min: f64,
        /// Most noise, above `sigma_min`; 80 there.
        sigma_max: f64,
        /// Above 0; 7 there.
        rho: f64,
    },
    /// Quantiles of a normal ln sigma (Karras et al. 2022).
    LogNormal {
        /// Mean of ln sigma; -1.2 there.
        mean: f64,
        /// Standard deviation of ln sigma, above 0; 1.2 there.
        std: f64,
    },
    /// Another schedule with a number added to each log-SNR.
    Shifted {
        /// Which.
        of: Box<Self>,
        /// `2 ln(64 / d)` for images of d×d pixels (Hoogeboom et al. 2023).
        log_snr: f64,
    },
    /// Another schedule, scaled to end in pure noise (Lin et al. 2023).
    ZeroTerminalSnr {
        /// Which.
        of: Box<Self>,
    },
}

/// Whether there are noise levels between timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Time {
    /// No: the network is trained at timesteps alone (Ho et al. 2020).
    Discrete,
    /// Yes: it is trained at any time, 100 levels for each timestep (Kingma et al. 2021).
    Continuous,
}

/// What the network predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prediction {
    /// The noise.
    Eps,
    /// The clean image.
    X0,
    /// `sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans and Ho 2022).
    V,
    /// The mean of the step to the timestep before (Ho et al. 2020).
    XPrev,
}

/// The variance of the reverse process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variance {
    /// That of the posterior q(x_{t-1} | x_t, x_0).
    FixedSmall,
    /// beta_t.
    FixedLarge,
    /// Learned, between the two (Nichol and Dhariwal 2021).
    LearnedRange,
    /// Learned, its logarithm as it is; a new network says 1.
    Learned,
}

/// `[loss]`: how errors at different noise levels are weighed against each other.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// What the loss is made of: the weighted error, or the variational bound, which takes no weighting but simple.
    pub objective: p2_diffusion::LossType,
    /// The weight on the eps error as a function of the noise level.
    pub weighting: p2_diffusion::Weighting,
    /// How often each noise level is drawn.
    pub density: p2_diffusion::Density,
    /// Images of the run per block in which noise levels are spread evenly; with 1 each is drawn alone.
    pub strata: u64,
    /// Draw every second image's level as far from one end as the level before it is from the other.
    pub antithetic: bool,
}

/// `[optim]`: AdamW (Loshchilov and Hutter 2019) and its learning rate.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Optim {
    /// Peak learning rate.
    pub lr: f64,
    /// Images over which the learning rate grows linearly from 0; 0 for none.
    pub warmup_images: Count,
    /// How the learning rate falls between warm-up and `train.total_images`.
    pub decay: Decay,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, on all parameters.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global L2 norm; 0 for no clipping.
    pub max_grad_norm: f64,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decay {
    /// Not at all.
    None,
    /// On a line to 0.
    Linear,
    /// On half a cosine to 0.
    Cosine,
}

/// `[ema]`: the moving average of the weights that is sampled from.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Ema {
    /// Images after which a weight's influence has halved.
    pub halflife_images: Count,
    /// The half-life is at most this share of the images seen so far (warm-up); 0 for no limit.
    pub rampup_ratio: f64,
}

/// `[train]`: the run. All intervals count images.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Seed of every random draw.
    pub seed: u64,
    /// Images per optimizer step.
    pub batch_size: usize,
    /// Images per backward pass; gradients of a batch are accumulated over them.
    pub micro_batch_size: usize,
    /// How products are rounded, in training and in use.
    pub precision: Precision,
    /// What is computed again for its gradients instead of being kept.
    pub recompute: Recompute,
    /// The run is finished after this many images.
    pub total_images: Count,
    /// Interval of records in `metrics.jsonl`.
    pub log_every: Count,
    /// Interval of held-out losses; 0 for none.
    pub held_out_every: Count,
    /// Interval of sample grids; 0 for none.
    pub sample_every: Count,
    /// Interval of checkpoints.
    pub checkpoint_every: Count,
    /// The newest so many checkpoints are kept.
    pub keep_last: usize,
    /// Of the older ones, the first at or after each multiple of so many images is kept; 0 for none.
    pub keep_every: Count,
}

/// How products of matrices are rounded; sums, moments of norms and weights are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Convolutions by Winograd's algorithm, whose rounding is a few times that of plain sums.
    F32,
    /// Plain sums alone: slower, for comparing numbers.
    Exact,
    /// As `f32`, with what linear layers and attention multiply rounded to bf16. Where the processor
    /// has tile registers (Intel AMX) so is what convolutions multiply, and what only such products
    /// read is kept as bf16, its gradient too.
    Bf16,
}

/// What is computed again for its gradients; it changes memory and time, no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing: fastest.
    Nothing,
    /// Norms and resampling, which are cheap.
    Norms,
    /// Whole blocks: least memory.
    Blocks,
}
