//! Which noise levels are drawn: by a density, spread over blocks of images, and by what was learned.

use p2_diffusion::{LossHistory, Result, TimestepDensity};

use crate::config::RunConfig;
use crate::model::{levels_per_timestep, training_density, training_schedule};
use crate::rng::{Draws, Stream};

/// Draws noise levels.
#[derive(Debug)]
pub(super) struct LevelDraws {
    seed: u64,
    /// Images per block in which levels are spread evenly.
    strata: u64,
    /// Whether every second image has the mirrored level of the one before it.
    antithetic: bool,
    /// Levels for each timestep.
    per_timestep: f64,
    density: TimestepDensity,
    /// What the density is learned from, if it is.
    history: Option<LossHistory>,
}

impl LevelDraws {
    pub(super) fn new(config: &RunConfig) -> Result<Self> {
        let (loss, diffusion) = (&config.loss, &config.diffusion);
        let schedule = training_schedule(diffusion)?;
        let density = training_density(loss, diffusion);
        Ok(Self {
            seed: config.train.seed,
            strata: loss.strata,
            antithetic: loss.antithetic,
            per_timestep: levels_per_timestep(diffusion) as f64,
            density: TimestepDensity::new(density, &schedule)?,
            history: LossHistory::new(density, schedule.n_timesteps()),
        })
    }

    /// The timesteps of levels, or times between these, as a network is told them.
    pub(super) fn times(&self, t: &[u32]) -> Vec<f64> {
        t.iter()
            .map(|&t| f64::from(t) / self.per_timestep)
            .collect()
    }

    /// The level of an image of the run.
    ///
    /// Blocks and pairs are of images of the run, not of a batch, so that the batch size changes no draw (Kingma et
    /// al. 2021, arXiv 2107.00630, appendix I.1, spreads the levels of a batch). A density that learns changes from
    /// step to step, though.
    pub(super) fn t(&self, image_idx: u64) -> Result<u32> {
        if !self.antithetic {
            return self.density.timestep(self.u(image_idx, self.strata));
        }
        let u = self.u(image_idx / 2, (self.strata / 2).max(1));
        match image_idx % 2 {
            0 => self.density.timestep(u),
            _ => self.density.timestep((1.0 - u).min(1.0_f64.next_down())),
        }
    }

    /// A uniform draw out of a block of `n`, spread evenly.
    fn u(&self, index: u64, n: u64) -> f64 {
        let (block, place) = (index / n, index % n);
        let u = Draws::at(self.seed, Stream::Timestep, block).uniform();
        (u + place as f64 / n as f64).fract()
    }

    /// What the loss of each image is multiplied by, `[N]`, where drawing by losses shall not change the objective.
    pub(super) fn importance(&self, t: &[u32]) -> Result<Option<Vec<f64>>> {
        let importance = self.history.as_ref().map(|_| self.density.importance(t));
        importance.transpose()
    }

    /// Learns from the images of a step, in their order, if the density learns.
    pub(super) fn learn(&mut self, t: &[u32], losses: &[f32]) -> Result<()> {
        if let Some(history) = &mut self.history {
            history.learn(t, losses)?;
            self.density = history.density()?;
        }
        Ok(())
    }

    /// What was learned, to be saved.
    pub(super) fn history(&self) -> Option<&LossHistory> {
        self.history.as_ref()
    }

    /// Goes on from what [`LossHistory::state`] returned.
    pub(super) fn restore(&mut self, state: &[p2_diffusion::StateTensor]) -> Result<()> {
        if let Some(history) = &mut self.history {
            history.restore(state)?;
            self.density = history.density()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::LevelDraws;
    use crate::config::{Base, Override, TEST_CONFIG, resolve};

    fn levels(strata: u64, antithetic: bool) -> LevelDraws {
        let set = [
            format!("loss.strata={strata}"),
            format!("loss.antithetic={antithetic}"),
        ];
        let set: Vec<_> = set.iter().map(|text| Override::set(text)).collect();
        let run = resolve(&Base::File(TEST_CONFIG.into()), &set).unwrap();
        LevelDraws::new(&run).unwrap()
    }

    fn block(levels: &LevelDraws, block: u64, n: u64) -> Vec<u32> {
        let images = n * block..n * (block + 1);
        images
            .map(|image_idx| levels.t(image_idx).unwrap())
            .collect()
    }

    #[test]
    fn a_block_of_images_has_a_level_in_each_stratum() {
        let levels = levels(8, false);
        let mut first_of_blocks = Vec::new();
        for index in 0..50 {
            let mut t = block(&levels, index, 8);
            first_of_blocks.push(t[0]);
            t.sort_unstable();
            let strata: Vec<u32> = t.iter().map(|t| t / 125).collect();
            assert_eq!(strata, [0, 1, 2, 3, 4, 5, 6, 7], "{t:?}");
        }
        // Blocks are drawn apart.
        first_of_blocks.sort_unstable();
        first_of_blocks.dedup();
        assert!(first_of_blocks.len() > 40);
    }

    #[test]
    fn antithetic_images_have_mirrored_levels() {
        let levels = levels(8, true);
        for index in 0..50 {
            let t = block(&levels, index, 8);
            for pair in t.chunks_exact(2) {
                assert!((998..=1000).contains(&(pair[0] + pair[1])), "{pair:?}");
            }
            // Four strata, with the first of each pair in another one.
            let mut strata: Vec<u32> = t.iter().step_by(2).map(|t| t / 250).collect();
            strata.sort_unstable();
            assert_eq!(strata, [0, 1, 2, 3], "{t:?}");
        }
    }
}
