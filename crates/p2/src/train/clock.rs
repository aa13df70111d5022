//! Where a run stands: images seen, steps, and the limits that end a process.

use std::time::{Duration, Instant};

use crate::signal::Stop;

/// Where a run stands. Images are the clock; steps count optimizer updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Images seen so far.
    pub images_seen: u64,
    /// Optimizer steps so far.
    pub step: u64,
    /// Images of the last step.
    last_batch: u64,
}

impl Clock {
    /// The clock of a run that has come so far.
    pub fn at(images_seen: u64, step: u64) -> Self {
        Self {
            images_seen,
            step,
            last_batch: 0,
        }
    }

    pub(super) fn advance(&mut self, n_images: usize) {
        self.images_seen += n_images as u64;
        self.step += 1;
        self.last_batch = n_images as u64;
    }

    /// Whether the last step reached or passed a multiple of the interval.
    pub fn passed(&self, interval: Interval) -> bool {
        let before = self.images_seen - self.last_batch;
        interval.0 > 0 && self.images_seen / interval.0 > before / interval.0
    }
}

/// A number of images between two events; 0 for never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval(pub u64);

/// What ends a process before its run is finished.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Images of the run.
    pub max_images: Option<u64>,
    /// Steps of the run.
    pub max_step: Option<u64>,
    /// The time at which everything must be done.
    pub deadline: Option<Instant>,
    /// The user's wish.
    pub stop: Stop,
}

impl Limits {
    /// Whether the process must end now, if finishing (pictures, checkpoint) takes so long.
    pub(super) fn reached(&self, clock: &Clock, finishing_secs: f64) -> bool {
        let finishing = Duration::try_from_secs_f64(finishing_secs).unwrap_or(Duration::MAX);
        self.stop.requested().is_some()
            || self.max_images.is_some_and(|max| clock.images_seen >= max)
            || self.max_step.is_some_and(|max| clock.step >= max)
            || self.deadline.is_some_and(|deadline| {
                let finished = Instant::now().checked_add(finishing);
                finished.is_none_or(|finished| finished >= deadline)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_passed_once_whatever_the_batch_size() {
        for batch_size in [1, 7, 32, 150] {
            let mut clock = Clock::at(0, 0);
            let mut n_passed = 0;
            while clock.images_seen < 1000 {
                clock.advance(batch_size);
                n_passed += u64::from(clock.passed(Interval(100)));
                assert!(!clock.passed(Interval(0)));
            }
            // A batch larger than the interval passes several multiples at once.
            assert_eq!(n_passed, if batch_size > 100 { 7 } else { 10 });
        }
    }

    #[test]
    fn a_deadline_is_reached_when_what_is_left_to_do_takes_for_ever() {
        let limits = Limits {
            max_images: None,
            max_step: None,
            deadline: Instant::now().checked_add(Duration::from_secs(3600)),
            stop: Stop::never(),
        };
        let reached = |finishing_secs| limits.reached(&Clock::at(0, 0), finishing_secs);
        assert!(!reached(0.0) && !reached(60.0));
        assert!(reached(3600.0) && reached(1e18) && reached(1e300));
    }

    #[test]
    fn a_resumed_clock_has_passed_nothing_yet() {
        assert!(!Clock::at(6400, 200).passed(Interval(6400)));
    }
}
