//! Which timestep to train on.

use crate::{Error, NoiseSchedule, Result};

/// The timestep that a uniform draw falls on: `floor(u T)`, each of the T with the same probability.
///
/// The caller draws `u`, so that a resumed run sees the same noise levels. Shifted copies
/// `u + i / B mod 1` of one draw give stratified timesteps.
///
/// # Units
/// - `u`: in `[0, 1)`
/// - returns: t, below `schedule.n_timesteps()`; 0 is the least noisy level
///
/// # Errors
/// [`Error::Uniform`] if `u` is not in `[0, 1)`.
///
/// # Example
/// ```
/// # use p2_diffusion::{NoiseSchedule, timestep_from_uniform};
/// let schedule = NoiseSchedule::linear(1000)?;
/// assert_eq!(timestep_from_uniform(0.25, &schedule)?, 250);
/// # Ok::<(), p2_diffusion::Error>(())
/// ```
pub fn timestep_from_uniform(u: f64, schedule: &NoiseSchedule) -> Result<u32> {
    if !(0.0..1.0).contains(&u) {
        return Err(Error::Uniform { u });
    }
    let n_timesteps = schedule.n_timesteps();
    // u T can round up to T when u is the number just under 1.
    let t = ((u * n_timesteps as f64) as usize).min(n_timesteps - 1);
    Ok(t as u32)
}
