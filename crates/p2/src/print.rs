//! The one way to the terminal: stdout is data, stderr is for people.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use serde::Serialize;

use crate::problem::Problem;

/// How much people are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors.
    Quiet,
    /// What happens.
    Normal,
    /// What happens, in detail.
    Verbose,
}

/// When text for people is colored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// If stderr is a terminal and `NO_COLOR` is not set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Writes data to stdout and text for people to stderr, above a progress bar if there is one.
#[derive(Debug, Clone)]
pub struct Printer {
    verbosity: Verbosity,
    colors: Colors,
    bars: Option<MultiProgress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colors {
    On,
    Off,
}

#[derive(Debug, Clone, Copy)]
enum Style {
    Red,
    Yellow,
    Cyan,
}

impl Printer {
    /// A printer for this process; looks at `NO_COLOR` and at whether stderr is a terminal.
    pub fn new(verbosity: Verbosity, color: ColorChoice) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colors = match color {
            ColorChoice::Always => Colors::On,
            ColorChoice::Auto if is_terminal && !refused => Colors::On,
            ColorChoice::Auto | ColorChoice::Never => Colors::Off,
        };
        let bars = (is_terminal && verbosity > Verbosity::Quiet)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self {
            verbosity,
            colors,
            bars,
        }
    }

    /// Writes a piece of data and a line break to stdout.
    ///
    /// # Errors
    /// If stdout cannot be written; see [`is_broken_pipe`].
    pub fn data(&self, text: impl Display) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }

    /// Writes a result as one line of JSON to stdout.
    ///
    /// # Errors
    /// If the value cannot be JSON or stdout cannot be written.
    pub fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        Ok(self.data(serde_json::to_string(value)?)?)
    }

    /// Tells people what happens.
    pub fn note(&self, text: impl Display) {
        if self.verbosity >= Verbosity::Normal {
            self.to_people(&harmless(text));
        }
    }

    /// Tells people who asked for details (`-v`).
    pub fn detail(&self, text: impl Display) {
        if self.verbosity >= Verbosity::Verbose {
            self.to_people(&harmless(text));
        }
    }

    /// Tells people, even quiet ones, that something may be wrong.
    pub fn warn(&self, text: impl Display) {
        let text = harmless(text);
        self.to_people(&format!("{} {text}", self.paint(Style::Yellow, "warning:")));
    }

    /// Tells people why the program gives up.
    pub fn error(&self, error: &anyhow::Error) {
        self.to_people(&self.render(error));
    }

    /// The bars of this process; `None` if stderr is not a terminal or people want it quiet.
    pub fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }

    /// `error:` with the place, the causes and, after an empty line, the hint.
    pub(crate) fn render(&self, error: &anyhow::Error) -> String {
        let mut text = format!("{} {}", self.paint(Style::Red, "error:"), harmless(error));
        let problem = Problem::inside(error);
        if let Some(place) = problem.and_then(Problem::place) {
            let _ = write!(text, "\n{}", harmless(place));
        }
        if let Some(reason) = problem.and_then(Problem::reason) {
            let _ = write!(text, "\n  because {}", harmless(reason));
        }
        for cause in error.chain().skip(1) {
            let _ = write!(text, "\n  cause: {}", harmless(cause));
        }
        if let Some(hint) = problem.and_then(Problem::way_out) {
            let hint = harmless(hint);
            let _ = write!(text, "\n\n{} {hint}", self.paint(Style::Cyan, "hint:"));
        }
        text
    }

    fn paint(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Red => 31,
            Style::Yellow => 33,
            Style::Cyan => 36,
        };
        match self.colors {
            Colors::On => format!("\x1b[1;{code}m{text}\x1b[0m"),
            Colors::Off => text.to_owned(),
        }
    }

    fn to_people(&self, text: &str) {
        // Nobody is left to be told when stderr is gone.
        let write = || drop(writeln!(io::stderr().lock(), "{text}"));
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

/// Names out of files and folders may hold what steers a terminal; of it only line breaks get through.
fn harmless(text: impl Display) -> String {
    let text = text.to_string();
    if !text.contains(|c: char| c.is_control() && c != '\n') {
        return text;
    }
    let escape = |c: char| match c {
        '\n' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Whether the reader of our stdout went away, as `head` does: no error.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Place;

    fn error() -> anyhow::Error {
        let problem = Problem::new("cannot read checkpoint: runs/07")
            .at(Place::in_text("x.toml", "a = 1", &(4..5)))
            .because("it is short")
            .caused_by(io::Error::other("12 of 48 bytes are missing"))
            .hint("take the previous one");
        anyhow::Error::new(problem)
    }

    fn printer(color: ColorChoice) -> Printer {
        Printer::new(Verbosity::Normal, color)
    }

    #[test]
    fn what_steers_a_terminal_is_shown_and_not_done() {
        let steering = "a\x1b[2Jb\u{9b}c\rd";
        let problem = Problem::new(steering).because(steering).hint(steering);
        let problem = anyhow::Error::new(problem.caused_by(io::Error::other(steering)));
        let said = printer(ColorChoice::Never).render(&problem);
        let shown = r"a\u{1b}[2Jb\u{9b}c\rd";
        assert_eq!(said.matches(shown).count(), 4, "{said}");
        assert!(!said.contains(['\x1b', '\u{9b}', '\r']));
    }

    #[test]
    fn an_error_shows_place_reason_causes_and_hint() {
        expect_test::expect![[r"
            error: cannot read checkpoint: runs/07
             --> x.toml:1:5
              |
            1 | a = 1
              |
              because it is short
              cause: 12 of 48 bytes are missing

            hint: take the previous one"]]
        .assert_eq(&printer(ColorChoice::Never).render(&error()));
    }

    #[test]
    fn color_adds_nothing_but_escapes() {
        let colored = printer(ColorChoice::Always).render(&error());
        assert!(colored.starts_with("\x1b[1;31merror:\x1b[0m "));
        let mut plain = colored;
        for escape in ["\x1b[1;31m", "\x1b[1;36m", "\x1b[0m"] {
            plain = plain.replace(escape, "");
        }
        assert_eq!(plain, printer(ColorChoice::Never).render(&error()));
    }

    #[test]
    fn a_broken_pipe_is_recognized_under_a_context() {
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&anyhow::Error::new(pipe).context("writing")));
        assert!(!is_broken_pipe(&error()));
    }
}
