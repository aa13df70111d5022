//! Tensors as a pickle describes them, and their values among the numbers beside it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::value::{Name, Value};
use super::{Number, quoted};

/// Values that are looked at: a pickle of the allowed length holds fewer, unless some are shared.
const MAX_VALUES: usize = 1 << 18;
/// An optimizer of the largest published network has 1,700.
const MAX_TENSORS: usize = 1 << 14;
/// Names are put together from keys that may be shared: a short pickle could make them very long.
const MAX_NAME_BYTES: usize = 256;
/// Extents are copied from tuples that may be shared, too. The kernel of a convolution has four.
const MAX_AXES: usize = 8;
/// PyTorch counts storages, or names them by their address.
const MAX_KEY_BYTES: usize = 20;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// Its extents.
    pub shape: Vec<usize>,
    pub(super) storage: Storage,
    /// Place of the first number.
    offset: usize,
    strides: Vec<usize>,
}

/// Numbers beside the pickle; several tensors may lie in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) number: Number,
    /// How many.
    pub(super) n_stored: usize,
}

impl Storage {
    /// From its id, `("storage", type, key, location, numbers)`; older files end with a view, which is nothing.
    pub(super) fn from_id(id: &[Value]) -> Result<Self> {
        let [
            Value::Text(kind),
            Value::Name(Name::Storage(number)),
            Value::Text(key),
            _,
            Value::Int(n_stored),
            view @ ..,
        ] = id
        else {
            bail!("its numbers are not described as PyTorch does");
        };
        ensure!(
            &**kind == "storage",
            "a persistent id of kind {}",
            quoted(kind)
        );
        ensure!(
            matches!(view, [] | [Value::None]),
            "its numbers are a view of others, as PyTorch wrote before 0.4"
        );
        let is_plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
        ensure!(
            is_plain && key.len() <= MAX_KEY_BYTES,
            "its numbers lie in {}",
            quoted(key)
        );
        Ok(Self {
            key: key.to_string(),
            number: *number,
            n_stored: usize::try_from(*n_stored)?,
        })
    }

    /// Its length in the file.
    pub(super) fn n_bytes(&self) -> Result<u64> {
        let n_bytes = (self.n_stored as u64).checked_mul(self.number.n_bytes() as u64);
        n_bytes.context("its numbers have more bytes than there can be")
    }
}

/// All tensors in nested dictionaries, lists and tuples, by the path of names that leads to each.
pub(super) fn collect(root: &Value) -> Result<BTreeMap<String, TorchTensor>> {
    let mut found = Collector::default();
    found.visit(root, "")?;
    Ok(found.tensors)
}

#[derive(Default)]
struct Collector {
    tensors: BTreeMap<String, TorchTensor>,
    n_seen: usize,
}

impl Collector {
    fn visit(&mut self, value: &Value, path: &str) -> Result<()> {
        self.count()?;
        match value {
            Value::Dict(dict) => {
                for (key, value) in &*dict.items.borrow() {
                    match key {
                        Value::Text(key) => self.visit_at(value, path, key)?,
                        Value::Int(number) => self.visit_at(value, path, &number.to_string())?,
                        _ => bail!("a key of a dictionary is neither text nor number"),
                    }
                }
            }
            Value::List(list) => self.visit_all(&list.items.borrow(), path)?,
            Value::Tuple(items, _) => self.visit_all(items, path)?,
            Value::Call(Name::RebuildParameter, arguments, _) => {
                let data = arguments.first().context("a parameter without data")?;
                self.visit(data, path)?;
            }
            Value::Call(Name::RebuildTensor, arguments, _) => {
                let found = tensor(arguments).with_context(|| format!("tensor `{path}`"))?;
                ensure!(
                    self.tensors.insert(path.to_owned(), found).is_none(),
                    "two tensors are called `{path}`"
                );
                let n = self.tensors.len();
                ensure!(n <= MAX_TENSORS, "more than {MAX_TENSORS} tensors");
            }
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self) -> Result<()> {
        self.n_seen += 1;
        ensure!(self.n_seen <= MAX_VALUES, "more than {MAX_VALUES} values");
        Ok(())
    }

    fn visit_all(&mut self, items: &[Value], path: &str) -> Result<()> {
        for (i, item) in items.iter().enumerate() {
            self.visit_at(item, path, &i.to_string())?;
        }
        Ok(())
    }

    /// Looks at what lies in `path` under a key.
    fn visit_at(&mut self, value: &Value, path: &str, key: &str) -> Result<()> {
        if value.is_plain() {
            // It needs no name.
            return self.count();
        }
        let n_bytes = path.len() + 1 + key.len();
        ensure!(
            n_bytes <= MAX_NAME_BYTES,
            "a name of more than {MAX_NAME_BYTES} bytes"
        );
        // Names are shown to people, whose terminal it could steer.
        let is_text = !key.chars().any(char::is_control);
        ensure!(is_text, "control characters in the name {}", quoted(key));
        match path {
            "" => self.visit(value, key),
            path => self.visit(value, &format!("{path}.{key}")),
        }
    }
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, ..)`.
fn tensor(arguments: &[Value]) -> Result<TorchTensor> {
    let [
        Value::Persistent(storage),
        Value::Int(offset),
        Value::Tuple(shape, _),
        Value::Tuple(strides, _),
        ..,
    ] = arguments
    else {
        bail!("its arguments are not those of a tensor");
    };
    let sizes = |values: &[Value]| -> Result<Vec<usize>> {
        ensure!(values.len() <= MAX_AXES, "it has {} axes", values.len());
        let sizes = values.iter().map(|value| match value {
            Value::Int(size) => Ok(usize::try_from(*size)?),
            _ => bail!("a size is no whole number"),
        });
        sizes.collect()
    };
    let (shape, strides) = (sizes(shape)?, sizes(strides)?);
    ensure!(shape.len() == strides.len(), "as many strides as extents");
    let found = TorchTensor {
        shape,
        storage: Storage::from_id(storage)?,
        offset: usize::try_from(*offset)?,
        strides,
    };
    found.check()?;
    Ok(found)
}

impl TorchTensor {
    /// How many numbers it has.
    pub fn n_elements(&self) -> usize {
        // `check` has seen that the product is a number.
        self.shape.iter().product()
    }

    /// It has no more numbers than are stored, and all are inside.
    fn check(&self) -> Result<()> {
        let (shape, n_stored) = (&self.shape, self.storage.n_stored);
        let n = shape
            .iter()
            .try_fold(1_usize, |n, &size| n.checked_mul(size));
        let n = n.filter(|&n| n <= n_stored);
        let n = n.with_context(|| format!("{shape:?} is more than the {n_stored} stored"))?;
        let mut last = self.offset;
        for (&size, &stride) in shape.iter().zip(&self.strides) {
            let reach = size.saturating_sub(1).checked_mul(stride);
            let reach = reach.and_then(|reach| last.checked_add(reach));
            last = reach.context("its strides lead out of its numbers")?;
        }
        ensure!(n == 0 || last < n_stored, "it lies outside of its numbers");
        Ok(())
    }

    /// Its values in row-major order, out of all bytes of its storage.
    pub(super) fn values(&self, bytes: &[u8]) -> Vec<f32> {
        let axes = || self.shape.iter().zip(&self.strides).rev();
        let place = |mut index: usize| {
            let mut place = self.offset;
            for (&size, &stride) in axes() {
                place += index % size * stride;
                index /= size;
            }
            place
        };
        let number = self.storage.number;
        (0..self.n_elements())
            .map(|index| number.value(bytes, place(index)))
            .collect()
    }
}

impl Number {
    /// The number at a place among numbers of this type, rounded to f32.
    fn value(self, bytes: &[u8], place: usize) -> f32 {
        let start = place * self.n_bytes();
        let bits = |n: usize| {
            let mut bits = [0; 8];
            bits[..n].copy_from_slice(&bytes[start..start + n]);
            u64::from_le_bytes(bits)
        };
        match self {
            Self::F32 => f32::from_bits(bits(4) as u32),
            Self::F64 => f64::from_bits(bits(8)) as f32,
            Self::F16 => half::f16::from_bits(bits(2) as u16).to_f32(),
            Self::Bf16 => half::bf16::from_bits(bits(2) as u16).to_f32(),
            Self::I64 => bits(8) as i64 as f32,
        }
    }
}
