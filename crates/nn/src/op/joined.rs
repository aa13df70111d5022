//! Values that are read as one along channels, without a copy that holds both.

use std::iter::{Chain, Once, once};
use std::option;

use candle_core::{Device, Shape, Tensor};
use p2_kernels::memory::unfilled;

use super::{elementwise, shape_error, with_slices};
use crate::Result;
use crate::tape::{Node, Tape};

/// One value, or two that are read as one: the channels of the first, then those of the second.
#[derive(Debug, Clone)]
pub struct Joined<T = Node> {
    pub(crate) first: T,
    pub(crate) second: Option<T>,
}

impl Joined {
    /// `[.., C_first]` and `[.., C_second]`, read as `[.., C_first + C_second]`.
    ///
    /// # Errors
    /// If the other axes differ.
    pub fn new(first: Node, second: Node) -> Result<Self> {
        match (first.dims().split_last(), second.dims().split_last()) {
            (Some((_, rest)), Some((_, other))) if rest == other => Ok(Self {
                first,
                second: Some(second),
            }),
            _ => {
                let (first, second) = (first.dims(), second.dims());
                Err(shape_error(format_args!(
                    "join of {first:?} and {second:?}"
                )))
            }
        }
    }

    /// As one value, `[.., C]`: a copy if there are two.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn into_node(self) -> Result<Node> {
        match self.second {
            None => Ok(self.first),
            Some(second) => elementwise::concat(&self.first, &second),
        }
    }

    /// The shape that it is read as, `[.., C]`.
    pub fn shape(&self) -> Shape {
        self.values().shape()
    }

    /// The tape that it is on.
    pub fn tape(&self) -> &Tape {
        self.first.tape()
    }

    pub(super) fn values(&self) -> Joined<Tensor> {
        self.map(|node| node.value().clone())
    }
}

impl From<Node> for Joined {
    fn from(first: Node) -> Self {
        Self {
            first,
            second: None,
        }
    }
}

impl From<&Node> for Joined {
    fn from(first: &Node) -> Self {
        first.clone().into()
    }
}

impl From<&Joined> for Joined {
    fn from(joined: &Joined) -> Self {
        joined.clone()
    }
}

impl<T> Joined<T> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        once(&self.first).chain(&self.second)
    }

    pub(crate) fn map<U>(&self, f: impl Fn(&T) -> U) -> Joined<U> {
        Joined {
            first: f(&self.first),
            second: self.second.as_ref().map(f),
        }
    }

    pub(crate) fn try_map<U>(&self, f: impl Fn(&T) -> Result<U>) -> Result<Joined<U>> {
        Ok(Joined {
            first: f(&self.first)?,
            second: self.second.as_ref().map(f).transpose()?,
        })
    }
}

impl<T> IntoIterator for Joined<T> {
    type Item = T;
    type IntoIter = Chain<Once<T>, option::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        once(self.first).chain(self.second)
    }
}

impl Joined<Tensor> {
    /// The channels of both; 0 for a second that is not there.
    pub(super) fn channels(&self) -> [usize; 2] {
        let last = |tensor: &Tensor| tensor.dims().last().copied().unwrap_or(0);
        [last(&self.first), self.second.as_ref().map_or(0, last)]
    }

    /// The shape that they are read as, `[.., C]`.
    pub(super) fn shape(&self) -> Shape {
        let mut dims = self.first.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = self.channels().iter().sum();
        }
        dims.into()
    }

    /// Calls `f` with the elements of CPU tensors; none for a second that is not there.
    pub(super) fn with_slices<T>(&self, f: impl FnOnce([&[f32]; 2]) -> Result<T>) -> Result<T> {
        match &self.second {
            None => with_slices([&self.first], |[first]| f([first, &[]])),
            Some(second) => with_slices([&self.first, second], f),
        }
    }

    /// The shape of each.
    pub(super) fn shapes(&self) -> Joined<Shape> {
        self.map(|tensor| tensor.shape().clone())
    }
}

impl Joined<Shape> {
    /// CPU tensors of these shapes whose elements `write` sets, all of them.
    pub(super) fn written(&self, write: impl FnOnce([&mut [f32]; 2])) -> Result<Joined<Tensor>> {
        let mut values = self.map(|shape| unfilled(shape.elem_count()));
        let second = values.second.as_deref_mut().unwrap_or_default();
        write([&mut values.first, second]);
        let tensor =
            |values: Vec<f32>, shape: &Shape| Tensor::from_vec(values, shape, &Device::Cpu);
        let second = values.second.zip(self.second.as_ref());
        Ok(Joined {
            first: tensor(values.first, &self.first)?,
            second: second
                .map(|(values, shape)| tensor(values, shape))
                .transpose()?,
        })
    }
}
