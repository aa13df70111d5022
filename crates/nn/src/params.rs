//! Named parameters: created in the reference's order, stored in the engine's layout, read and
//! written in the reference's.

use candle_core::{DType, Device, Tensor, Var};

use crate::{Error, Result};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// 0.
    Zeros,
    /// 1.
    Ones,
    /// Uniform in `(-bound, bound)`.
    Uniform {
        /// The largest magnitude.
        bound: f64,
    },
    /// Normal around 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

/// Fills the `index`-th parameter as `Init` says; the values are in the reference's layout.
pub type Initializer<'a> = dyn FnMut(usize, Init, &mut [f32]) + 'a;

/// How a parameter is laid out here and in the reference's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The same.
    Vector,
    /// Here `[K, K, I, O]`, there `[O, I, K, K]`.
    Conv2d,
    /// Here `[I, O]`, there `[O, I, 1]`.
    Conv1d,
    /// Here `[I, O]`, there `[O, I]`.
    Linear,
    /// The same, `[entries, channels]`.
    Embedding,
}

impl Kind {
    fn reference_from_engine(self, value: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Vector | Self::Embedding => Ok(value.clone()),
            Self::Conv2d => value.permute((3, 2, 0, 1))?.contiguous(),
            Self::Conv1d => value.t()?.contiguous()?.unsqueeze(2),
            Self::Linear => value.t()?.contiguous(),
        }
    }

    fn engine_from_reference(self, value: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Vector | Self::Embedding => Ok(value.clone()),
            Self::Conv2d => value.permute((2, 3, 1, 0))?.contiguous(),
            Self::Conv1d => value.squeeze(2)?.t()?.contiguous(),
            Self::Linear => value.t()?.contiguous(),
        }
    }
}

/// One parameter.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    kind: Kind,
    var: Var,
}

impl Param {
    /// The reference's name, such as `input_blocks.1.0.in_layers.0.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is laid out.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The value in the engine's layout.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The shape in the reference's layout.
    pub fn reference_shape(&self) -> Vec<usize> {
        let dims = self.var.dims();
        match (self.kind, dims) {
            (Kind::Conv2d, &[h, w, i, o]) => vec![o, i, h, w],
            (Kind::Conv1d, &[i, o]) => vec![o, i, 1],
            (Kind::Linear, &[i, o]) => vec![o, i],
            _ => dims.to_vec(),
        }
    }

    /// Values in the engine's layout as the reference lays them out.
    ///
    /// # Errors
    /// If there are not as many values as the parameter has.
    pub fn to_reference(&self, values: &[f32]) -> Result<Vec<f32>> {
        let values = Tensor::from_slice(values, self.var.shape(), &Device::Cpu)?;
        Ok(self
            .kind
            .reference_from_engine(&values)?
            .flatten_all()?
            .to_vec1()?)
    }

    /// Values in the reference's layout as the engine lays them out.
    ///
    /// # Errors
    /// If there are not as many values as the parameter has.
    pub fn from_reference(&self, values: &[f32]) -> Result<Vec<f32>> {
        let values = Tensor::from_slice(values, self.reference_shape(), &Device::Cpu)?;
        Ok(self
            .kind
            .engine_from_reference(&values)?
            .flatten_all()?
            .to_vec1()?)
    }

    /// The current values in the engine's layout.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn values(&self) -> Result<Vec<f32>> {
        Ok(self.var.flatten_all()?.to_vec1()?)
    }

    /// Replaces the values, given in the engine's layout.
    ///
    /// # Errors
    /// If there are not as many values as the parameter has.
    pub fn set_values(&self, values: &[f32]) -> Result<()> {
        let values = Tensor::from_slice(values, self.var.shape(), self.var.device())?;
        Ok(self.var.set(&values)?)
    }
}

/// The parameters of a network in the reference's order.
#[derive(Debug, Clone, Default)]
pub struct Params(Vec<Param>);

impl Params {
    /// All parameters.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.0.iter()
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers.
    pub fn n_elements(&self) -> usize {
        self.iter().map(|param| param.var.elem_count()).sum()
    }
}

/// Creates parameters one after the other, under a path of names.
///
/// The order of creation is the order of [`Params`], of gradients and of the initializer's indices.
///
/// # Example
/// ```
/// use candle_core::Device;
/// use p2_nn::layer::{Linear, Start};
/// use p2_nn::{Init, Params, params::Builder};
///
/// let mut params = Params::default();
/// let mut fill = |_index: usize, _init: Init, values: &mut [f32]| values.fill(0.5);
/// let mut root = Builder::new(&mut params, &mut fill, &Device::Cpu);
/// Linear::new(&mut root.at("head").at(0), [2, 3], Start::Random)?;
///
/// let names: Vec<&str> = params.iter().map(|param| param.name()).collect();
/// assert_eq!(names, ["head.0.weight", "head.0.bias"]);
/// # Ok::<(), p2_nn::Error>(())
/// ```
pub struct Builder<'a, 'i> {
    params: &'a mut Params,
    initializer: &'a mut Initializer<'i>,
    device: &'a Device,
    dtype: DType,
    path: String,
}

impl<'a, 'i> Builder<'a, 'i> {
    /// A builder that adds to `params`, filled by `initializer`, on `device`; its path is empty.
    pub fn new(
        params: &'a mut Params,
        initializer: &'a mut Initializer<'i>,
        device: &'a Device,
    ) -> Self {
        Self {
            params,
            initializer,
            device,
            dtype: DType::F32,
            path: String::new(),
        }
    }

    /// The same builder with parameters of another type, such as f64 to measure rounding against.
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// A builder for names below `name`, which may itself be a path such as `out.0`.
    pub fn at(&mut self, name: impl std::fmt::Display) -> Builder<'_, 'i> {
        let path = self.path_of(name);
        Builder {
            params: self.params,
            initializer: self.initializer,
            device: self.device,
            dtype: self.dtype,
            path,
        }
    }

    /// How many parameters there are so far.
    pub fn n_params(&self) -> usize {
        self.params.len()
    }

    /// A new parameter of this shape in the reference's layout.
    ///
    /// It is returned in the engine's layout: see [`Kind`].
    ///
    /// # Errors
    /// [`Error::ParamTwice`] if there is one of this name already; [`Error::Candle`] if the shape
    /// has not as many axes as its kind.
    pub fn param(
        &mut self,
        name: &str,
        kind: Kind,
        reference_shape: &[usize],
        init: Init,
    ) -> Result<Var> {
        let name = self.path_of(name);
        // Files and optimizers find parameters by name.
        if self.params.iter().any(|param| param.name == name) {
            return Err(Error::ParamTwice(name));
        }
        let mut values = vec![0.0; reference_shape.iter().product()];
        (self.initializer)(self.params.len(), init, &mut values);
        let value = Tensor::from_vec(values, reference_shape, self.device)?.to_dtype(self.dtype)?;
        let var = Var::from_tensor(&kind.engine_from_reference(&value)?)?;
        self.params.0.push(Param {
            name,
            kind,
            var: var.clone(),
        });
        Ok(var)
    }

    fn path_of(&self, name: impl std::fmt::Display) -> String {
        if self.path.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}

impl std::fmt::Debug for Builder<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_and_occur_once() {
        let mut params = Params::default();
        let mut fill = |_: usize, _: Init, _: &mut [f32]| {};
        let mut root = Builder::new(&mut params, &mut fill, &Device::Cpu);
        let mut add = |at: Option<&str>| {
            let created = match at {
                Some(at) => root.at(at).param("bias", Kind::Vector, &[2], Init::Zeros),
                None => root.param("bias", Kind::Vector, &[2], Init::Zeros),
            };
            created
                .map(|var| var.elem_count())
                .map_err(|error| error.to_string())
        };
        assert_eq!(add(None), Ok(2));
        assert_eq!(add(Some("out.0")), Ok(2));
        assert_eq!(
            add(Some("out.0")),
            Err("parameter `out.0.bias` exists already".to_owned())
        );
        let names: Vec<_> = params.iter().map(Param::name).collect();
        assert_eq!(names, ["bias", "out.0.bias"]);
    }
}
