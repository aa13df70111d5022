//! Which noise levels to sample at: few of the many that a network was trained on.

use crate::{Error, NoiseSchedule, Result};

/// The levels that a sampler visits: indices of the training schedule, and the schedule that they form.
///
/// # Example
/// ```
/// # use p2_diffusion::{Levels, NoiseSchedule};
/// let training = NoiseSchedule::linear(1000)?;
/// let levels = Levels::from_spec(&training, "250")?;
/// assert_eq!(levels.timesteps()[..4], [0, 4, 8, 12]);
/// assert_eq!(levels.schedule().alpha_bar()[1], training.alpha_bar()[4]);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    timesteps: Vec<u32>,
    schedule: NoiseSchedule,
}

impl Levels {
    /// All levels of training.
    #[must_use]
    pub fn all(training: &NoiseSchedule) -> Self {
        Self {
            timesteps: (0..training.n_timesteps() as u32).collect(),
            schedule: training.clone(),
        }
    }

    /// The levels that a specification selects, see [`space_timesteps`].
    ///
    /// # Errors
    /// [`Error::Respacing`] if the specification cannot be met.
    pub fn from_spec(training: &NoiseSchedule, spec: &str) -> Result<Self> {
        let timesteps = space_timesteps(spec, training)?;
        Self::from_timesteps(training, timesteps)
    }

    /// The levels at these timesteps, which must rise.
    ///
    /// # Errors
    /// [`Error::Timestep`] if one is too large; [`Error::Respacing`] if they do not rise or there are none.
    pub fn from_timesteps(training: &NoiseSchedule, timesteps: Vec<u32>) -> Result<Self> {
        training.check_timesteps(&timesteps, timesteps.len())?;
        let rises = timesteps.windows(2).all(|pair| pair[0] < pair[1]);
        if timesteps.is_empty() || !rises {
            return Err(Error::Respacing {
                spec: format!("{timesteps:?}"),
                n_timesteps: training.n_timesteps(),
                reason: "timesteps must rise, and there must be at least one".into(),
            });
        }
        let alpha_bar = timesteps.iter().map(|&t| training.alpha_bar()[t as usize]);
        Ok(Self {
            schedule: NoiseSchedule::from_alpha_bars(alpha_bar.collect())?,
            timesteps,
        })
    }

    /// Indices of the training schedule, rising: what the network is told.
    #[must_use]
    pub fn timesteps(&self) -> &[u32] {
        &self.timesteps
    }

    /// The schedule that these levels form: what the sampler computes with, index i for `timesteps()[i]`.
    #[must_use]
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Number of levels, and of network evaluations per image.
    #[must_use]
    pub fn n_steps(&self) -> usize {
        self.timesteps.len()
    }
}

/// Selects timesteps of a schedule with T levels, rising.
///
/// - `"250"`: so many, evenly from 0 to T - 1, rounded half to even
/// - `"10,10,20"`: the same within each of so many sections of (almost) equal length
/// - `"ddim50"`: every stride-th from 0 on, for the first stride that gives exactly 50; may stop far short of
///   T - 1 (`ddim25` of 1000 at 960)
/// - `"leading50"`: every `T / 50`-th from 0 on, rounded down; ends short of T - 1
/// - `"trailing50"`: every `T / 50`-th from T - 1 downwards, rounded (Lin et al. 2023, arXiv 2305.08891, table 2)
/// - `""`: all
///
/// # Errors
/// [`Error::Respacing`] if a section is shorter than its count, a count is 0 or not a number, or no stride
/// gives so many.
///
/// # Source
/// Nichol and Dhariwal 2021, arXiv 2102.09672 (sections), Song et al. 2021, arXiv 2010.02502 (strides), as in
/// the code of guided-diffusion.
pub fn space_timesteps(spec: &str, training: &NoiseSchedule) -> Result<Vec<u32>> {
    let n_timesteps = training.n_timesteps();
    let selected = if let Some(count) = spec.strip_prefix("ddim") {
        strided(count, n_timesteps)
    } else if let Some(count) = spec.strip_prefix("leading") {
        count_of(count, n_timesteps).map(|n| {
            let stride = n_timesteps / n;
            (0..n).map(|i| (i * stride) as u32).collect()
        })
    } else if let Some(count) = spec.strip_prefix("trailing") {
        count_of(count, n_timesteps).map(|n| {
            let stride = n_timesteps as f64 / n as f64;
            let end = |i: usize| ((i + 1) as f64 * stride).round_ties_even() as u32;
            (0..n).map(|i| end(i) - 1).collect()
        })
    } else if spec.is_empty() {
        Ok((0..n_timesteps as u32).collect())
    } else {
        sections(spec, n_timesteps)
    };
    selected.map_err(|reason| Error::Respacing {
        spec: spec.into(),
        n_timesteps,
        reason,
    })
}

/// A number of timesteps of which there are as many.
fn count_of(count: &str, n_timesteps: usize) -> std::result::Result<usize, String> {
    match count.parse::<usize>() {
        Ok(n) if (1..=n_timesteps).contains(&n) => Ok(n),
        Ok(n) => Err(format!("there are 1 to {n_timesteps} steps, not {n}")),
        Err(_) => Err(format!("`{count}` is no number of steps")),
    }
}

type Selected = std::result::Result<Vec<u32>, String>;

fn parse_count(text: &str) -> std::result::Result<usize, String> {
    match text.trim().parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a number of steps")),
        Ok(count) => Ok(count),
    }
}

fn strided(count: &str, n_timesteps: usize) -> Selected {
    let count = parse_count(count)?;
    let stride = (1..n_timesteps.max(2)).find(|&stride| n_timesteps.div_ceil(stride) == count);
    match stride {
        Some(stride) => Ok((0..n_timesteps as u32).step_by(stride).collect()),
        None => Err(format!("no stride gives exactly {count} steps")),
    }
}

fn sections(spec: &str, n_timesteps: usize) -> Selected {
    let counts: Vec<usize> = spec
        .split(',')
        .map(parse_count)
        .collect::<std::result::Result<_, _>>()?;
    let (size, n_longer) = (n_timesteps / counts.len(), n_timesteps % counts.len());
    let mut selected = Vec::new();
    let mut start = 0;
    for (section, &count) in counts.iter().enumerate() {
        let size = size + usize::from(section < n_longer);
        if count > size {
            return Err(format!("a section of {size} cannot give {count} steps"));
        }
        let stride = (size - 1) as f64 / (count - 1).max(1) as f64;
        let mut offset = 0.0_f64;
        for _ in 0..count {
            selected.push((start + offset.round_ties_even() as usize) as u32);
            offset += stride; // Added up as the reference does: its rounding decides ties.
        }
        start += size;
    }
    Ok(selected)
}
