//! What went wrong, where, and the way out: the error type that a user reads.

use std::error::Error;
use std::fmt;
use std::ops::Range;

/// An error with the place in a text where it lies and a hint how to go on.
///
/// It travels inside an [`anyhow::Error`]; [`crate::print::Printer::error`] shows all its parts.
#[derive(Debug)]
pub struct Problem(Box<Parts>);

/// Apart and boxed, so that results stay small.
#[derive(Debug, Default)]
struct Parts {
    message: String,
    place: Option<Place>,
    because: Option<String>,
    hint: Option<String>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Problem {
    /// What went wrong, with the values: lower case, no period at the end.
    pub fn new(message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            message: message.into(),
            ..Parts::default()
        }))
    }

    /// Adds where it went wrong.
    #[must_use]
    pub fn at(mut self, place: impl Into<Option<Place>>) -> Self {
        self.0.place = place.into();
        self
    }

    /// Adds the reason for a rule.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.0.because = Some(reason.into());
        self
    }

    /// Adds what to do now.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the error beneath this one.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The problem inside an error, if there is one.
    pub fn inside(error: &anyhow::Error) -> Option<&Self> {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref())
            .or_else(|| error.downcast_ref())
    }

    /// Where it went wrong.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.0.place.as_ref()
    }

    /// The reason of the broken rule.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.0.because.as_deref()
    }

    /// What to do now.
    pub fn way_out(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for Problem {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as _)
    }
}

/// A place in a text: shown as `file:line:column` with the line itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    source: String,
    line: usize,
    column: usize,
    text: String,
}

impl Place {
    /// The place of a byte range in the text of a file or of a flag, called `source`.
    pub fn in_text(source: &str, text: &str, range: &Range<usize>) -> Self {
        let start = floor_char_boundary(text, range.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        Self {
            source: source.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            text: line.replace('\t', " "),
        }
    }
}

/// The last character boundary at or before `index`.
fn floor_char_boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len()))
        .rev()
        .find(|&i| text.is_char_boundary(i))
        .unwrap_or(0)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(
            f,
            "{gutter}--> {}:{}:{}",
            self.source, self.line, self.column
        )?;
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {}", self.text)?;
        write!(f, "{gutter} |")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_names_line_and_column_and_shows_the_line() {
        let text = "[a]\nä = 1\nb = 2\n";
        let place = Place::in_text("x.toml", text, &(4..6));
        assert_eq!(place.to_string(), " --> x.toml:2:1\n  |\n2 | ä = 1\n  |");
        let value = Place::in_text("x.toml", text, &(9..10));
        assert_eq!((value.line, value.column), (2, 5));
    }

    #[test]
    fn a_place_outside_the_text_or_inside_a_character_is_survived() {
        for range in [5..6, 1000..1001] {
            let place = Place::in_text("x", "[a]\nä", &range);
            assert_eq!(place.text, "ä");
        }
    }

    #[test]
    fn a_problem_is_found_at_the_root_and_as_a_context() {
        let root = anyhow::Error::new(Problem::new("root").hint("a")).context("outer");
        assert_eq!(Problem::inside(&root).and_then(Problem::way_out), Some("a"));
        let context = anyhow::anyhow!("root").context(Problem::new("outer").hint("b"));
        assert_eq!(
            Problem::inside(&context).and_then(Problem::way_out),
            Some("b")
        );
        assert!(Problem::inside(&anyhow::anyhow!("plain")).is_none());
    }
}
