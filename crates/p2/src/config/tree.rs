//! TOML as a tree of values that know where they were written, in the file or on the command line.

use std::ops::Range;
use std::sync::Arc;

use toml_edit::{Document, Item};

use crate::problem::{Place, Problem};

/// A text that values come from: a file, or one flag.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) text: String,
}

/// Where something was written.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    source: Arc<Source>,
    range: Range<usize>,
}

impl Origin {
    pub(super) fn place(&self) -> Place {
        Place::in_text(&self.source.name, &self.source.text, &self.range)
    }

    pub(super) fn source_name(&self) -> &str {
        &self.source.name
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// A key, where it stands, and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) node: Node,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    String(String),
    Datetime(String),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

impl Node {
    /// Reads a whole TOML file.
    pub(super) fn parse(source: Source) -> Result<Self, Problem> {
        let source = Arc::new(source);
        let document = Document::parse(source.text.as_str()).map_err(|error| {
            let place = Place::in_text(&source.name, &source.text, &error.span().unwrap_or(0..0));
            Problem::new(format!("not TOML: {}", one_line(error.message()))).at(place)
        })?;
        let root = Reader {
            source: Arc::clone(&source),
            shift: 0,
        };
        Ok(root.node(document.as_item(), 0..0))
    }

    /// Reads `section.key=value`. What is no TOML value is a string, so that quotes may be left out.
    pub(super) fn parse_assignment(source: Source) -> Result<(Vec<Entry>, Self), Problem> {
        let source = Arc::new(source);
        let text = source.text.as_str();
        let no_key = || {
            Problem::new(format!("`{text}` is not of the form section.key=value"))
                .hint("write it like --set optim.lr=1e-4")
        };
        let (path, value) = text.split_once('=').ok_or_else(no_key)?;
        let at = |range: Range<usize>| Origin {
            source: Arc::clone(&source),
            range,
        };
        let mut keys = Vec::new();
        let mut start = 0;
        for key in path.split('.') {
            let range = start..start + key.len();
            start = range.end + 1;
            let key = key.trim();
            if key.is_empty() {
                return Err(no_key());
            }
            let node = Self {
                value: Value::Table(Vec::new()),
                origin: at(range.clone()),
            };
            keys.push(Entry {
                key: key.to_owned(),
                key_origin: at(range),
                node,
            });
        }
        let node = Self::parse_value(&source, path.len() + 1..text.len(), value)?;
        Ok((keys, node))
    }

    fn parse_value(source: &Arc<Source>, range: Range<usize>, text: &str) -> Result<Self, Problem> {
        // `v=` in front makes it a document; spans are shifted back.
        let shift = range.start as isize - 2;
        let document = format!("v={text}");
        let parsed = Document::parse(document.as_str());
        match parsed
            .as_ref()
            .map(|parsed| (parsed.len(), parsed.get("v")))
        {
            Ok((1, Some(item))) => Ok(Reader {
                source: Arc::clone(source),
                shift,
            }
            .node(item, 2..document.len())),
            Err(error) if text.trim_start().starts_with(['[', '{', '"', '\'']) => {
                let place = Place::in_text(&source.name, &source.text, &range);
                Err(
                    Problem::new(format!("not a TOML value: {}", one_line(error.message())))
                        .at(place),
                )
            }
            _ => Ok(Self {
                value: Value::String(text.trim().to_owned()),
                origin: Origin {
                    source: Arc::clone(source),
                    range,
                },
            }),
        }
    }

    /// Puts `node` at the path `keys`; missing tables are made, so that unknown ones are refused later.
    pub(super) fn set(&mut self, keys: &[Entry], node: Self) -> Result<(), Problem> {
        let Some((first, rest)) = keys.split_first() else {
            *self = node;
            return Ok(());
        };
        let Value::Table(entries) = &mut self.value else {
            let message = format!("`{}` lies inside a value that is no table", first.key);
            return Err(Problem::new(message).at(first.key_origin.place()));
        };
        let index = entries
            .iter()
            .position(|entry| entry.key == first.key)
            .unwrap_or_else(|| {
                entries.push(first.clone());
                entries.len() - 1
            });
        entries[index].node.set(rest, node)
    }

    /// The entry at a dotted path such as `loss.weighting.gamma`.
    pub(super) fn entry(&self, path: &str) -> Option<&Entry> {
        let (first, rest) = path
            .split_once('.')
            .map_or((path, None), |(a, b)| (a, Some(b)));
        let Value::Table(entries) = &self.value else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == first)?;
        rest.map_or(Some(entry), |rest| entry.node.entry(rest))
    }
}

/// Several lines of an explanation as one.
fn one_line(message: &str) -> String {
    message.trim().replace('\n', ", ")
}

struct Reader {
    source: Arc<Source>,
    shift: isize,
}

impl Reader {
    fn origin(&self, span: Range<usize>) -> Origin {
        let shifted = |index: usize| index.saturating_add_signed(self.shift);
        Origin {
            source: Arc::clone(&self.source),
            range: shifted(span.start)..shifted(span.end),
        }
    }

    fn node(&self, item: &Item, fallback: Range<usize>) -> Node {
        let span = item.span().unwrap_or(fallback);
        let value = match item {
            Item::Value(value) => self.value(value),
            Item::Table(table) => self.table(table, &span),
            Item::ArrayOfTables(tables) => Value::Array(
                tables
                    .iter()
                    .map(|table| {
                        let span = table.span().unwrap_or(span.clone());
                        Node {
                            value: self.table(table, &span),
                            origin: self.origin(span),
                        }
                    })
                    .collect(),
            ),
            Item::None => Value::Table(Vec::new()),
        };
        Node {
            value,
            origin: self.origin(span),
        }
    }

    fn value(&self, value: &toml_edit::Value) -> Value {
        use toml_edit::Value as Toml;
        match value {
            Toml::String(text) => Value::String(text.value().clone()),
            Toml::Integer(number) => Value::Integer(*number.value()),
            Toml::Float(number) => Value::Float(*number.value()),
            Toml::Boolean(value) => Value::Boolean(*value.value()),
            Toml::Datetime(time) => Value::Datetime(time.value().to_string()),
            Toml::Array(array) => {
                let node = |value: &Toml| Node {
                    value: self.value(value),
                    origin: self.origin(value.span().unwrap_or(0..0)),
                };
                Value::Array(array.iter().map(node).collect())
            }
            Toml::InlineTable(table) => self.table(table, &table.span().unwrap_or(0..0)),
        }
    }

    fn table(&self, table: &dyn toml_edit::TableLike, span: &Range<usize>) -> Value {
        let entry = |(key, item): (&str, &Item)| {
            let key_span = table
                .key(key)
                .and_then(toml_edit::Key::span)
                .unwrap_or(span.clone());
            Entry {
                key: key.to_owned(),
                key_origin: self.origin(key_span.clone()),
                node: self.node(item, key_span),
            }
        };
        Value::Table(table.iter().map(entry).collect())
    }
}
