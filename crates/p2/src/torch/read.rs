//! Tensors of a PyTorch file: found by the pickle, read from the numbers beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Value, interpret};
use super::{Number, STORAGES};
use crate::problem::Problem;

/// The paper's model has a pickle of 60 kB; a byte of one can take a hundred of memory.
const MAX_PICKLE: u64 = 512 << 10;
/// Files in the zip, and tensors in the pickle.
const MAX_COUNT: usize = 1 << 20;

/// A PyTorch file and where its tensors lie.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    zip: ZipArchive<File>,
    /// The folder in the zip that all is in.
    folder: String,
    tensors: BTreeMap<String, TorchTensor>,
    /// The numbers read last, and the storage that they are: tensors may share one.
    last: Option<(String, Vec<u8>)>,
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// Its extents.
    pub shape: Vec<usize>,
    number: Number,
    storage: String,
    /// Numbers in the storage, all tensors' together.
    n_stored: usize,
    /// Place of the first number.
    offset: usize,
    strides: Vec<usize>,
}

impl TorchFile {
    /// Opens a file; nothing in it is run.
    ///
    /// # Errors
    /// If it is no zip that PyTorch wrote (1.6 and later), or its pickle names or does what weights do not need.
    pub fn open(path: &Path) -> Result<Self> {
        let unusable = || {
            Problem::new(format!("cannot read {}", path.display()))
                .hint("it must be a zip of weights, as torch.save writes state dictionaries")
        };
        Self::read(path).with_context(unusable)
    }

    fn read(path: &Path) -> Result<Self> {
        let mut zip = ZipArchive::new(File::open(path)?)?;
        ensure!(zip.len() <= MAX_COUNT, "{} files in the zip", zip.len());
        let names = zip.file_names().collect::<Result<Vec<_>, _>>()?;
        let mut pickles = names.iter().filter(|name| name.ends_with("/data.pkl"));
        let (pickle, more) = (pickles.next(), pickles.next());
        ensure!(more.is_none(), "the zip has two pickles");
        let pickle = pickle.context("the zip has no data.pkl")?.to_string();
        let folder = pickle.trim_end_matches("data.pkl").to_owned();
        ensure!(
            zip.index_for_name(&format!("{folder}byteorder")).is_none()
                || entry(&mut zip, &format!("{folder}byteorder"), 16)? == b"little",
            "the numbers are not little-endian"
        );
        let program = entry(&mut zip, &pickle, MAX_PICKLE)?;
        let mut tensors = BTreeMap::new();
        collect(&interpret(&program)?, "", &mut tensors, &mut 0)?;
        Ok(Self {
            path: path.to_owned(),
            zip,
            folder,
            tensors,
            last: None,
        })
    }

    /// Its tensors, by the path of names that leads to each.
    pub fn tensors(&self) -> &BTreeMap<String, TorchTensor> {
        &self.tensors
    }

    /// The values of a tensor in row-major order.
    ///
    /// # Errors
    /// If there is none, or it lies outside of its numbers, or more than once in itself.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let path = self.path.display().to_string();
        let context = || format!("tensor `{name}` of {path}");
        let tensor = self.tensors.get(name).cloned();
        let tensor = tensor.with_context(|| format!("there is no {}", context()))?;
        let places = places(&tensor).with_context(context)?;
        let bytes = self.storage(&tensor).with_context(context)?;
        Ok(places
            .map(|place| number(bytes, place, tensor.number))
            .collect())
    }

    /// The numbers that a tensor lies in.
    fn storage(&mut self, tensor: &TorchTensor) -> Result<&[u8]> {
        let n_bytes = (tensor.n_stored as u64).checked_mul(tensor.number.n_bytes() as u64);
        let n_bytes = n_bytes.context("its numbers have more bytes than there can be")?;
        let is_last = self
            .last
            .as_ref()
            .is_some_and(|(key, _)| *key == tensor.storage);
        if !is_last {
            let file = format!("{}data/{}", self.folder, tensor.storage);
            self.last = None;
            self.last = Some((
                tensor.storage.clone(),
                entry(&mut self.zip, &file, n_bytes)?,
            ));
        }
        let bytes = self.last.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        ensure!(
            bytes.len() as u64 == n_bytes,
            "{} bytes of numbers instead of {n_bytes}",
            bytes.len()
        );
        Ok(bytes)
    }
}

/// A stored file of the zip, of at most so many bytes. A compressed one could be a bomb, and PyTorch compresses none.
fn entry(zip: &mut ZipArchive<File>, name: &str, n_most: u64) -> Result<Vec<u8>> {
    let mut file = zip
        .by_name(name)
        .with_context(|| format!("no {name} in the zip"))?;
    ensure!(
        file.compression() == CompressionMethod::Stored,
        "{name} is compressed"
    );
    ensure!(file.size() <= n_most, "{name} has {} bytes", file.size());
    let mut bytes = Vec::new();
    file.by_ref().take(n_most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Finds tensors in nested dictionaries, lists and tuples.
fn collect(
    value: &Value,
    path: &str,
    tensors: &mut BTreeMap<String, TorchTensor>,
    n_seen: &mut usize,
) -> Result<()> {
    *n_seen += 1;
    ensure!(*n_seen <= MAX_COUNT, "more than {MAX_COUNT} values");
    let join = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match value {
        Value::Dict(dict) => {
            for (key, value) in &*dict.items.borrow() {
                let name = match key {
                    Value::Text(text) => join(text),
                    Value::Int(number) => join(&number.to_string()),
                    _ => bail!("a key of a dictionary is neither text nor number"),
                };
                collect(value, &name, tensors, n_seen)?;
            }
        }
        Value::List(list) => {
            for (i, item) in list.items.borrow().iter().enumerate() {
                collect(item, &join(&i.to_string()), tensors, n_seen)?;
            }
        }
        Value::Tuple(items, _) => {
            for (i, item) in items.iter().enumerate() {
                collect(item, &join(&i.to_string()), tensors, n_seen)?;
            }
        }
        Value::Call("torch._utils._rebuild_parameter", arguments, _) => {
            let data = arguments.first().context("a parameter without data")?;
            collect(data, path, tensors, n_seen)?;
        }
        Value::Call("torch._utils._rebuild_tensor_v2", arguments, _) => {
            let found = tensor(arguments).with_context(|| format!("tensor `{path}`"))?;
            ensure!(
                tensors.insert(path.to_owned(), found).is_none(),
                "two tensors are called `{path}`"
            );
        }
        _ => {}
    }
    Ok(())
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
    // ("storage", type, key, location, numbers)
    let [
        Value::Text(kind),
        Value::Name(class),
        Value::Text(key),
        _,
        Value::Int(n_stored),
        ..,
    ] = &**storage
    else {
        bail!("its numbers are not described as PyTorch does");
    };
    let class = class.trim_start_matches("torch.");
    let number = STORAGES.iter().find(|(name, _)| *name == class);
    let (_, number) = number.with_context(|| format!("a storage of class {class}"))?;
    ensure!(&**kind == "storage", "a persistent id of kind {kind:?}");
    let is_plain = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(is_plain, "its numbers lie in {key:?}");
    let sizes = |values: &[Value]| -> Result<Vec<usize>> {
        let sizes = values.iter().map(|value| match value {
            Value::Int(size) => Ok(usize::try_from(*size)?),
            _ => bail!("a size is no whole number"),
        });
        sizes.collect()
    };
    let (shape, strides) = (sizes(shape)?, sizes(strides)?);
    ensure!(shape.len() == strides.len(), "as many strides as extents");
    Ok(TorchTensor {
        shape,
        number: *number,
        storage: key.to_string(),
        n_stored: usize::try_from(*n_stored)?,
        offset: usize::try_from(*offset)?,
        strides,
    })
}

/// The places of a tensor's numbers in its storage, in row-major order; all are inside, and as many as there may be.
fn places(tensor: &TorchTensor) -> Result<impl Iterator<Item = usize> + use<>> {
    let TorchTensor { shape, strides, .. } = tensor.clone();
    let n = shape
        .iter()
        .try_fold(1_usize, |n, &size| n.checked_mul(size));
    let n = n.filter(|&n| n <= tensor.n_stored);
    let n = n.with_context(|| format!("{shape:?} is more than the {} stored", tensor.n_stored))?;
    let mut last = tensor.offset;
    for (&size, &stride) in shape.iter().zip(&strides) {
        let reach = size.saturating_sub(1).checked_mul(stride);
        let reach = reach.and_then(|reach| last.checked_add(reach));
        last = reach.context("its strides lead out of its numbers")?;
    }
    ensure!(
        n == 0 || last < tensor.n_stored,
        "it lies outside of its numbers"
    );
    let offset = tensor.offset;
    Ok((0..n).map(move |mut index| {
        let mut place = offset;
        for (&size, &stride) in shape.iter().zip(&strides).rev() {
            place += index % size * stride;
            index /= size;
        }
        place
    }))
}

fn number(bytes: &[u8], place: usize, number: Number) -> f32 {
    let start = place * number.n_bytes();
    let bits = |n: usize| {
        let mut bits = [0; 8];
        bits[..n].copy_from_slice(&bytes[start..start + n]);
        u64::from_le_bytes(bits)
    };
    match number {
        Number::F32 => f32::from_bits(bits(4) as u32),
        Number::F64 => f64::from_bits(bits(8)) as f32,
        Number::F16 => half::f16::from_bits(bits(2) as u16).to_f32(),
        Number::Bf16 => half::bf16::from_bits(bits(2) as u16).to_f32(),
    }
}
