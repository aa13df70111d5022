//! Files as `torch.save` writes them: a pickle of plain containers and tensors, and the numbers of the latter.

use std::io::{Cursor, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Adam, Moment};
use crate::checkpoint::NamedTensor;
use crate::durable;

/// Writes tensors in their order as a state dictionary, which `torch.load` reads with `weights_only=True`.
///
/// # Errors
/// If a tensor is too large for the format, or the disk refuses.
pub fn save(path: &Path, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let mut pickle = Pickle::new();
    pickle.raw(b"ccollections\nOrderedDict\n)R(");
    for tensor in tensors {
        pickle.text(&tensor.name)?;
        pickle.tensor(tensor)?;
    }
    pickle.raw(b"u");
    pickle.save(path)
}

/// Writes the state of an optimizer, which `torch.optim.AdamW` loads: of each parameter in order, the two moments.
///
/// # Errors
/// As for [`save`].
pub fn save_adam(path: &Path, adam: &Adam, moments: &[[NamedTensor<'_>; 2]]) -> Result<()> {
    ensure!(moments.len() == adam.n_params, "moments of all parameters");
    let mut pickle = Pickle::new();
    pickle.raw(b"}(");
    pickle.text("state")?;
    pickle.raw(b"}(");
    for (k, moments) in moments.iter().enumerate() {
        pickle.int(k)?;
        pickle.raw(b"}(");
        pickle.text("step")?;
        // PyTorch up to 1.11 counts with a whole number, later ones make a tensor of it.
        pickle.int(usize::try_from(adam.step)?)?;
        for (moment, tensor) in Moment::BOTH.iter().zip(moments) {
            pickle.text(moment.name())?;
            pickle.tensor(tensor)?;
        }
        pickle.raw(b"u");
    }
    pickle.raw(b"u");
    pickle.text("param_groups")?;
    pickle.raw(b"]");
    pickle.group(adam)?;
    pickle.raw(b"au");
    pickle.save(path)
}

/// A pickle of protocol 2 as it grows, and the tensors that it names.
struct Pickle<'a> {
    bytes: Vec<u8>,
    tensors: Vec<&'a NamedTensor<'a>>,
}

impl<'a> Pickle<'a> {
    fn new() -> Self {
        Self {
            bytes: b"\x80\x02".to_vec(),
            tensors: Vec::new(),
        }
    }

    /// Instructions as they are.
    fn raw(&mut self, instructions: &[u8]) {
        self.bytes.extend(instructions);
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.bytes.push(b'X');
        self.bytes.extend(u32::try_from(text.len())?.to_le_bytes());
        self.bytes.extend(text.as_bytes());
        Ok(())
    }

    fn int(&mut self, value: usize) -> Result<()> {
        let value = i32::try_from(value).context("a number of more than 2^31")?;
        self.bytes.push(b'J');
        self.bytes.extend(value.to_le_bytes());
        Ok(())
    }

    fn float(&mut self, value: f64) {
        self.bytes.push(b'G');
        self.bytes.extend(value.to_be_bytes());
    }

    /// `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`.
    fn tensor(&mut self, tensor: &'a NamedTensor<'a>) -> Result<()> {
        self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.text("storage")?;
        self.raw(b"ctorch\nFloatStorage\n");
        self.text(&self.tensors.len().to_string())?;
        self.text("cpu")?;
        self.int(tensor.values.len())?;
        self.raw(b"tQK\x00(");
        for &size in &tensor.shape {
            self.int(size)?;
        }
        self.raw(b"t(");
        for axis in 0..tensor.shape.len() {
            self.int(tensor.shape[axis + 1..].iter().product())?;
        }
        self.raw(b"t\x89ccollections\nOrderedDict\n)RtR");
        self.tensors.push(tensor);
        Ok(())
    }

    /// The only group of parameters, with the settings that all versions of PyTorch need.
    fn group(&mut self, adam: &Adam) -> Result<()> {
        self.raw(b"}(");
        for (name, value) in [
            ("lr", adam.lr),
            ("eps", adam.eps),
            ("weight_decay", adam.weight_decay),
        ] {
            self.text(name)?;
            self.float(value);
        }
        self.text("betas")?;
        adam.betas.iter().for_each(|&beta| self.float(beta));
        self.raw(b"\x86");
        self.text("amsgrad")?;
        self.raw(b"\x89");
        self.text("params")?;
        self.raw(b"](");
        for k in 0..adam.n_params {
            self.int(k)?;
        }
        self.raw(b"eu");
        Ok(())
    }

    /// Writes the zip.
    fn save(mut self, path: &Path) -> Result<()> {
        self.raw(b".");
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(false);
        let mut put = |name: &str, bytes: &[u8]| -> Result<()> {
            zip.start_file(format!("archive/{name}"), options)?;
            Ok(zip.write_all(bytes)?)
        };
        put("data.pkl", &self.bytes)?;
        put("byteorder", b"little")?;
        for (key, tensor) in self.tensors.iter().enumerate() {
            let bytes: Vec<u8> = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
            put(&format!("data/{key}"), &bytes)?;
        }
        put("version", b"3\n")?;
        durable::write(path, &zip.finish()?.into_inner())
    }
}
