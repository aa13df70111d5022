//! How far a run is: a bar on a terminal, plain lines elsewhere, nothing for the quiet.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar, ProgressStyle};

use crate::print::Printer;

const TEMPLATE: &str = "{bar:16} {percent:>3}%  {msg}";

/// From where to where this process trains, in images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Images seen at its start.
    pub from: u64,
    /// Images seen at its end.
    pub to: u64,
    /// When it ends at the latest.
    pub deadline: Option<Instant>,
}

/// The losses of the last interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Readings {
    /// The weighted loss, which is minimized.
    pub weighted: f64,
    /// The unweighted error at levels with SNR over 1; `None` if none was drawn.
    pub clean_up: Option<f64>,
    /// The unweighted error at levels with SNR from 1e-2 to 1.
    pub content: Option<f64>,
    /// The unweighted error at levels with SNR under 1e-2.
    pub coarse: Option<f64>,
}

/// Tells people how far the run is.
#[derive(Debug)]
pub struct Progress {
    printer: Printer,
    bar: Option<ProgressBar>,
    course: Course,
    started: Instant,
    rate: Rate,
    /// The losses of the last interval, as text.
    readings: Option<String>,
}

impl Progress {
    /// Begins to tell.
    pub fn new(printer: &Printer, course: Course) -> Self {
        let bar = printer.bars().map(|bars| {
            let bar = bars.add(ProgressBar::new(course.to).with_position(course.from));
            // A template that does not parse would leave indicatif's own, which is as good.
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            bar
        });
        let mut rate = Rate::default();
        rate.record(Duration::ZERO, course.from);
        Self {
            printer: printer.clone(),
            bar,
            course,
            started: Instant::now(),
            rate,
            readings: None,
        }
    }

    /// After each step: moves the bar.
    pub fn advance(&mut self, images_seen: u64) {
        self.rate.record(self.started.elapsed(), images_seen);
        if let Some(bar) = &self.bar {
            bar.set_position(images_seen);
            bar.set_message(self.line(images_seen));
        }
    }

    /// After each interval: new losses in the bar, or a line without one.
    pub fn report(&mut self, images_seen: u64, readings: String) {
        self.readings = Some(readings);
        match &self.bar {
            Some(bar) => bar.set_message(self.line(images_seen)),
            None => self.printer.note(self.line(images_seen)),
        }
    }

    /// Takes the bar away; lines stay.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, images_seen: u64) -> String {
        let mut line = format!("{images_seen}/{} images", self.course.to);
        if let Some(readings) = &self.readings {
            let _ = write!(line, "  {readings}");
        }
        if let Some(per_sec) = self.rate.images_per_sec() {
            let left = self.course.to.saturating_sub(images_seen) as f64 / per_sec;
            let left = Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX);
            let until_deadline = |at: Instant| at.saturating_duration_since(Instant::now());
            let left = self
                .course
                .deadline
                .map_or(left, |at| left.min(until_deadline(at)));
            let left = FormattedDuration(left);
            let _ = write!(line, "  {per_sec:.1} images/s  {left} left");
        }
        line
    }
}

impl Readings {
    /// As people read them.
    pub fn line(&self) -> String {
        let number = |error: Option<f64>| {
            error.map_or_else(|| "-".to_owned(), |error| format!("{error:.4}"))
        };
        format!(
            "weighted {:.4}  mse clean-up {} content {} coarse {}",
            self.weighted,
            number(self.clean_up),
            number(self.content),
            number(self.coarse)
        )
    }
}

/// Images per second over the last half minute, so that a pause for samples is soon forgotten.
#[derive(Debug, Default)]
struct Rate {
    /// Time since the start, and images then; oldest first.
    points: VecDeque<(Duration, u64)>,
}

const RATE_WINDOW: Duration = Duration::from_secs(30);

impl Rate {
    fn record(&mut self, elapsed: Duration, images_seen: u64) {
        self.points.push_back((elapsed, images_seen));
        // One point before the window stays: slow steps need two to have a rate.
        while self
            .points
            .get(1)
            .is_some_and(|(at, _)| elapsed - *at >= RATE_WINDOW)
        {
            self.points.pop_front();
        }
    }

    fn images_per_sec(&self) -> Option<f64> {
        let ((first, from), (last, to)) = (self.points.front()?, self.points.back()?);
        let secs = last.checked_sub(*first)?.as_secs_f64();
        (secs > 0.0 && to > from).then(|| (to - from) as f64 / secs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::print::{ColorChoice, Verbosity};

    #[test]
    fn a_rate_forgets_what_is_long_ago() {
        let mut rate = Rate::default();
        assert_eq!(rate.images_per_sec(), None);
        rate.record(Duration::ZERO, 1000);
        assert_eq!(rate.images_per_sec(), None);
        rate.record(Duration::from_secs(10), 1100);
        assert_eq!(rate.images_per_sec(), Some(10.0));
        for secs in 11..=60 {
            rate.record(Duration::from_secs(secs), 1100 + (secs - 10) * 50);
        }
        assert_eq!(rate.images_per_sec(), Some(50.0));
        assert!(rate.points.len() < 40);
        // Steps longer than the window still have a rate.
        rate.record(Duration::from_secs(160), 3700);
        assert_eq!(rate.images_per_sec(), Some(1.0));
    }

    #[test]
    fn the_template_of_the_bar_parses() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }

    #[test]
    fn a_line_says_where_the_run_is() {
        let printer = Printer::new(Verbosity::Quiet, ColorChoice::Never);
        let mut progress = Progress::new(
            &printer,
            Course {
                from: 0,
                to: 2000,
                deadline: None,
            },
        );
        assert_eq!(progress.line(0), "0/2000 images");
        progress.rate.record(Duration::from_secs(10), 500);
        let readings = Readings {
            weighted: 0.123_45,
            clean_up: Some(0.5),
            content: None,
            coarse: Some(f64::NAN),
        };
        progress.report(500, readings.line());
        assert_eq!(
            progress.line(500),
            "500/2000 images  weighted 0.1235  mse clean-up 0.5000 content - coarse NaN  \
             50.0 images/s  00:00:30 left"
        );
    }
}
