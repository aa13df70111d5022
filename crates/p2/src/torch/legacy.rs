//! The file that PyTorch wrote before 1.6, and still writes on request: pickles, and numbers behind them.
//!
//! ```text
//! magic number  version  system  the object  [keys of the storages]     five pickles
//! count numbers  count numbers  ...                                     a storage for each key
//! ```

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

use super::pickle::{Outcome, interpret};
use super::tensor::Storage;
use super::value::Value;
use super::{MAX_PICKLE, quoted};

const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const VERSION: i128 = 1001;

/// The numbers behind the pickles.
#[derive(Debug)]
pub(super) struct Legacy<R> {
    source: R,
    /// Of each storage, by its key: what it is, and the place of its first byte.
    storages: BTreeMap<String, (Storage, u64)>,
}

impl<R: Read + Seek> Legacy<R> {
    /// What the pickle of the object leaves, and the numbers behind it, in a file of so many bytes.
    pub(super) fn read(mut source: R, n_bytes: u64) -> Result<(Value, Self)> {
        let mut head = Vec::new();
        source.by_ref().take(MAX_PICKLE).read_to_end(&mut head)?;
        let mut pickles = Pickles { head: &head, at: 0 };
        let is_magic = matches!(pickles.next()?.value, Value::Int(MAGIC));
        ensure!(is_magic, "it does not begin as PyTorch's files do");
        match pickles.next()?.value {
            Value::Int(VERSION) => {}
            Value::Int(version) => bail!("version {version} is not {VERSION}"),
            _ => bail!("its version is no number"),
        }
        let is_little = pickles.next()?.value.get("little_endian");
        ensure!(
            matches!(is_little, Some(Value::Bool(true))),
            "the numbers are not little-endian"
        );
        let object = pickles.next()?;
        let keys = keys(&pickles.next()?.value)?;
        let at = pickles.at as u64;
        let storages = locate(&mut source, at..n_bytes, &keys, &object.persistent)?;
        Ok((object.value, Self { source, storages }))
    }

    /// The bytes of a storage.
    pub(super) fn numbers(&mut self, storage: &Storage) -> Result<Vec<u8>> {
        let found = self.storages.get(&storage.key);
        let (_, start) = found.with_context(|| format!("no storage {}", storage.key))?;
        self.source.seek(SeekFrom::Start(*start))?;
        let mut bytes = Vec::new();
        let source = self.source.by_ref();
        source.take(storage.n_bytes()?).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Pickles one behind the other.
struct Pickles<'a> {
    head: &'a [u8],
    at: usize,
}

impl Pickles<'_> {
    fn next(&mut self) -> Result<Outcome> {
        let outcome = interpret(&self.head[self.at..]);
        let is_cut = self.head.len() as u64 == MAX_PICKLE;
        let outcome = match outcome {
            Err(error) if is_cut => {
                return Err(
                    error.context(format!("its first {MAX_PICKLE} bytes are read as pickles"))
                );
            }
            outcome => outcome?,
        };
        self.at += outcome.n_bytes;
        Ok(outcome)
    }
}

fn keys(value: &Value) -> Result<Vec<Rc<str>>> {
    let Value::List(list) = value else {
        bail!("the keys of the storages are no list");
    };
    let keys = list.items.borrow();
    let keys = keys.iter().map(|key| match key {
        Value::Text(key) => Ok(Rc::clone(key)),
        _ => bail!("the key of a storage is no text"),
    });
    keys.collect()
}

/// Finds where the numbers of each storage begin, in the order of the keys.
fn locate<R: Read + Seek>(
    source: &mut R,
    numbers: Range<u64>,
    keys: &[Rc<str>],
    ids: &[Rc<[Value]>],
) -> Result<BTreeMap<String, (Storage, u64)>> {
    let mut named = BTreeMap::new();
    for id in ids {
        let storage = Storage::from_id(id)?;
        if let Some(other) = named.get(&storage.key) {
            ensure!(storage == *other, "storage {} is of two kinds", storage.key);
        } else {
            named.insert(storage.key.clone(), storage);
        }
    }
    let mut storages = BTreeMap::new();
    let mut at = numbers.start;
    for key in keys {
        let storage = named.remove(&**key);
        let storage = storage
            .with_context(|| format!("the key {} is of no storage, or twice", quoted(key)))?;
        let cut = || format!("the file ends within storage {key}");
        source.seek(SeekFrom::Start(at))?;
        let mut count = [0; 8];
        source.read_exact(&mut count).with_context(cut)?;
        let (n_counted, n_stored) = (u64::from_le_bytes(count), storage.n_stored);
        ensure!(
            n_counted == n_stored as u64,
            "storage {key} has {n_counted} numbers instead of {n_stored}"
        );
        let start = at + 8;
        let end = start
            .checked_add(storage.n_bytes()?)
            .filter(|&end| end <= numbers.end);
        at = end.with_context(cut)?;
        storages.insert(key.to_string(), (storage, start));
    }
    ensure!(named.is_empty(), "{} storages have no key", named.len());
    Ok(storages)
}
