//! A number of images, as people write it.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A number of images, written as `12800`, `"200k"`, `"2M"` or `"1.5M"`; saved as an integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Count(pub u64);

const EXPECTED: &str = "a whole number of images such as 12800, \"200k\" or \"1.5M\"";

/// TOML has no larger integers, and every count must be writable.
const MAX: u64 = i64::MAX as u64;

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text)
            .map(Self)
            .ok_or_else(|| format!("expected {EXPECTED}"))
    }
}

/// Exact arithmetic on the digits: `"1.5M"` is 15 times 100,000, and `"1.5"` is refused.
fn parse(text: &str) -> Option<u64> {
    let (number, zeros) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 3),
        b'M' => (&text[..text.len() - 1], 6),
        _ => (text, 0),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (number, ""),
    };
    let fraction = fraction.trim_end_matches('0');
    let is_number = !whole.is_empty()
        && [whole, fraction]
            .concat()
            .bytes()
            .all(|b| b.is_ascii_digit());
    let scale = 10u64.checked_pow(u32::checked_sub(zeros, fraction.len().try_into().ok()?)?)?;
    let digits: u64 = is_number.then(|| [whole, fraction].concat().parse().ok())??;
    digits.checked_mul(scale).filter(|&count| count <= MAX)
}

impl fmt::Display for Count {
    /// The shortest exact form: `2M`, `12800`, `200k`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(f, "0"),
            n if n.is_multiple_of(1_000_000) => write!(f, "{}M", n / 1_000_000),
            n if n.is_multiple_of(1_000) => write!(f, "{}k", n / 1_000),
            n => write!(f, "{n}"),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_i64<E: de::Error>(self, count: i64) -> Result<Count, E> {
        u64::try_from(count)
            .map(Count)
            .map_err(|_| E::invalid_value(Unexpected::Signed(count), &self))
    }

    fn visit_u64<E: de::Error>(self, count: u64) -> Result<Count, E> {
        if count > MAX {
            return Err(E::invalid_value(Unexpected::Unsigned(count), &self));
        }
        Ok(Count(count))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
        parse(text)
            .map(Count)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_whole_numbers() {
        let rows = [
            ("0", Some(0)),
            ("12800", Some(12_800)),
            ("200k", Some(200_000)),
            ("2M", Some(2_000_000)),
            ("1.5M", Some(1_500_000)),
            ("0.25k", Some(250)),
            ("1.50M", Some(1_500_000)),
            ("1.000k", Some(1_000)),
            ("9223372036854775807", Some(i64::MAX as u64)),
            ("9223372036854775808", None),
            ("99999999999999M", None),
            ("0.0001k", None),
            ("1.5", None),
            ("1.M", None),
            (".5M", None),
            ("-1", None),
            ("+1", None),
            ("2m", None),
            ("2 M", None),
            ("M", None),
            ("1e6", None),
            ("", None),
            ("٣", None),
        ];
        for (text, count) in rows {
            assert_eq!(parse(text), count, "{text:?}");
        }
    }

    #[test]
    fn the_display_form_reads_back() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (12_800, "12800"),
            (200_000, "200k"),
            (2_000_000, "2M"),
        ] {
            assert_eq!(Count(count).to_string(), text);
            assert_eq!(text.parse(), Ok(Count(count)));
        }
    }
}
