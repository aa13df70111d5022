//! From the tree of values to typed sections, with errors that name the key, the place and the way out.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, MapAccess, Unexpected,
    Visitor, value,
};

use super::tree::{Entry, Node, Origin, Value};
use crate::problem::Problem;

/// Fills a type from a tree; every key must be known and present.
pub(super) fn read<T: DeserializeOwned>(root: &Node) -> Result<T, Problem> {
    T::deserialize(root).map_err(|error| error.into_problem(root))
}

/// What serde reports, kept apart so that it can be said in our words.
#[derive(Debug)]
pub(super) struct Error {
    kind: Kind,
    /// The keys to the table or value at fault, innermost first.
    path: Vec<String>,
    origin: Option<Origin>,
}

#[derive(Debug)]
enum Kind {
    UnknownKey {
        key: String,
        allowed: &'static [&'static str],
    },
    UnknownValue {
        value: String,
        allowed: &'static [&'static str],
    },
    MissingKey(&'static str),
    Other(String),
}

impl Error {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            path: Vec::new(),
            origin: None,
        }
    }

    /// Notes that the error arose in the value of `entry`.
    fn under(mut self, entry: &Entry) -> Self {
        if self.origin.is_none() {
            self.origin = Some(self.origin_in(entry).clone());
        }
        self.path.push(entry.key.clone());
        self
    }

    /// The best place for an error in `entry` whose own place got lost (serde buffers tagged enums).
    fn origin_in<'a>(&self, entry: &'a Entry) -> &'a Origin {
        let entries = match &entry.node.value {
            Value::Table(entries) => entries.as_slice(),
            _ => &[],
        };
        let inner = entries
            .iter()
            .find_map(|inner| match (&self.kind, &inner.node.value) {
                (Kind::UnknownKey { key, .. }, _) if inner.key == *key => Some(&inner.key_origin),
                (Kind::UnknownValue { value, .. }, Value::String(text)) if text == value => {
                    Some(&inner.node.origin)
                }
                _ => None,
            });
        match self.kind {
            Kind::MissingKey(_) => inner.unwrap_or(&entry.key_origin),
            _ => inner.unwrap_or(&entry.node.origin),
        }
    }

    fn into_problem(self, root: &Node) -> Problem {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        let table = match path.as_slice() {
            [] => "the configuration".to_owned(),
            [section] => format!("[{section}]"),
            path => format!("`{}`", path.join(".")),
        };
        let problem = match &self.kind {
            Kind::UnknownKey { key, allowed } => {
                unknown(&format!("unknown key `{key}` in {table}"), key, allowed)
            }
            Kind::UnknownValue { value, allowed } => unknown(
                &format!("unknown value `{value}` for `{}`", path.join(".")),
                value,
                allowed,
            ),
            Kind::MissingKey(key) if path.is_empty() => Problem::new(format!(
                "missing section [{key}] in {}",
                root.origin.source_name()
            ))
            .hint("every value stands in the file; `p2 train --preset smoke --dry-run` shows all"),
            Kind::MissingKey(key) => Problem::new(format!("missing key `{key}` in {table}")).hint(
                "every value stands in the file; `p2 train --preset smoke --dry-run` shows all",
            ),
            Kind::Other(message) => Problem::new(format!("`{}`: {message}", path.join("."))),
        };
        problem.at(self.origin.map(|origin| origin.place()))
    }
}

/// A problem with the nearest allowed name, or all of them, as the hint.
fn unknown(message: &str, name: &str, allowed: &'static [&'static str]) -> Problem {
    let quoted: Vec<_> = allowed.iter().map(|name| format!("`{name}`")).collect();
    let problem = Problem::new(message);
    match (nearest(name, allowed), allowed) {
        (Some(nearest), _) => problem.hint(format!("did you mean `{nearest}`?")),
        (None, []) => problem.hint(
            "remove it; on the command line set the whole table, as in \
             --set 'loss.weighting={ kind = \"simple\" }'",
        ),
        (None, _) => problem.hint(format!("allowed here: {}", quoted.join(", "))),
    }
}

/// The name that was probably meant.
pub(crate) fn nearest<'a>(name: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|&candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format!(
            "expected {}, found {}",
            plain(expected),
            found_value(found)
        ))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey {
            key: field.to_owned(),
            allowed: expected,
        })
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownValue {
            value: variant.to_owned(),
            allowed: expected,
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::MissingKey(field))
    }
}

/// serde's and Rust's words for types in the user's words.
fn plain(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u64" | "u32" | "usize" => "a whole number, 0 or more".to_owned(),
        "f64" => "a number".to_owned(),
        "a sequence" => "an array".to_owned(),
        "a boolean" => "true or false".to_owned(),
        other if other.starts_with("struct ") || other == "map" => "a table".to_owned(),
        other if other.contains("tagged enum ") => {
            "a table with a kind, as in { kind = \"simple\" }".to_owned()
        }
        other if other.starts_with("enum ") => "a name or a table".to_owned(),
        other if other.starts_with("struct variant ") => {
            "a table with its constants, as in { NAME = { CONSTANT = 1.0 } }".to_owned()
        }
        _ => text,
    }
}

fn found_value(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("`{value}`"),
        Unexpected::Signed(value) => format!("`{value}`"),
        Unexpected::Float(value) => format!("`{value}`"),
        Unexpected::Str(value) => format!("the text {value:?}"),
        Unexpected::Map => "a table".to_owned(),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::UnitVariant => "a name alone".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Error {}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.value {
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) | Value::Datetime(text) => visitor.visit_borrowed_str(text),
            Value::Array(nodes) => visitor.visit_seq(Elements(nodes.iter())),
            Value::Table(entries) => visitor.visit_map(Fields {
                entries: entries.iter(),
                value: None,
            }),
        }
        .map_err(|mut error| {
            // The fields of a table know better; an unknown or missing key is the table's business.
            if error.path.is_empty() && !matches!(self.value, Value::Table(_)) {
                error.origin.get_or_insert_with(|| self.origin.clone());
            }
            error
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            Value::Table(entries) if entries.len() == 1 => {
                let fields = Fields {
                    entries: entries.iter(),
                    value: None,
                };
                visitor.visit_enum(value::MapAccessDeserializer::new(fields))
            }
            Value::Table(_) => Err(de::Error::custom(format!(
                "expected exactly one of the keys {}",
                variants.join(", ")
            ))),
            _ => Err(de::Error::custom(format!(
                "expected one of {}",
                variants.join(", ")
            ))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The elements of an array.
struct Elements<'de>(std::slice::Iter<'de, Node>);

impl<'de> de::SeqAccess<'de> for Elements<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|node| seed.deserialize(node)).transpose()
    }
}

/// The keys and values of a table.
struct Fields<'de> {
    entries: std::slice::Iter<'de, Entry>,
    value: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.value = self.entries.next();
        let Some(entry) = self.value else {
            return Ok(None);
        };
        let key = seed
            .deserialize(value::BorrowedStrDeserializer::new(&entry.key))
            .map_err(|mut error: Error| {
                error.origin.get_or_insert_with(|| entry.key_origin.clone());
                error
            })?;
        Ok(Some(key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let entry = self
            .value
            .take()
            .ok_or_else(|| de::Error::custom("a value was read twice"))?;
        seed.deserialize(&entry.node)
            .map_err(|error| error.under(entry))
    }
}
