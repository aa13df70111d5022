//! What a pickle is made of: plain values, allowed names, and containers that do not hold themselves.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Result, ensure};

use super::Number;

/// Containers in containers.
const MAX_DEPTH: u8 = 64;

/// A value on the stack. Copies share what they hold; a hostile pickle has a value for each of its bytes, so it is kept
/// small.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Rc<str>),
    Tuple(Rc<[Value]>, u8),
    List(Rc<Container<Value>>),
    Dict(Rc<Container<(Value, Value)>>),
    /// An allowed name.
    Name(Name),
    /// What stands for numbers beside the pickle.
    Persistent(Rc<[Value]>),
    /// A call of an allowed name, not made.
    Call(Name, Rc<[Value]>, u8),
}

/// What a pickle may name. Anything else is refused: naming is the first half of running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    /// Numbers of a type.
    Storage(Number),
}

impl Name {
    /// The allowed name with this module and text, if it is one.
    pub(super) fn find(text: &str) -> Option<Self> {
        Some(match text {
            "collections.OrderedDict" => Self::OrderedDict,
            "torch._utils._rebuild_tensor_v2" => Self::RebuildTensor,
            "torch._utils._rebuild_parameter" => Self::RebuildParameter,
            "torch.FloatStorage" => Self::Storage(Number::F32),
            "torch.DoubleStorage" => Self::Storage(Number::F64),
            "torch.HalfStorage" => Self::Storage(Number::F16),
            "torch.BFloat16Storage" => Self::Storage(Number::Bf16),
            "torch.LongStorage" => Self::Storage(Number::I64),
            _ => return None,
        })
    }
}

/// What a list or dictionary holds, and how deep that is.
#[derive(Debug)]
pub(super) struct Container<T> {
    pub(super) items: RefCell<Vec<T>>,
    depth: Cell<u8>,
    /// It lies in another: what changes now could come to lie in itself.
    is_inside: Cell<bool>,
}

impl Value {
    /// What a dictionary, list or tuple holds under a key or at a place; the last one, if a key is there twice.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        let place = || key.parse::<usize>().ok();
        match self {
            Self::Dict(dict) => {
                let items = dict.items.borrow();
                let mut found = items.iter().rev().filter(|(at, _)| match at {
                    Self::Text(text) => **text == *key,
                    Self::Int(number) => number.to_string() == key,
                    _ => false,
                });
                found.next().map(|(_, value)| value.clone())
            }
            Self::List(list) => list.items.borrow().get(place()?).cloned(),
            Self::Tuple(items, _) => items.get(place()?).cloned(),
            _ => None,
        }
    }

    /// What lies at a path of keys; itself, if that is empty.
    pub(super) fn at(&self, path: &str) -> Option<Self> {
        let mut keys = path.split('.').filter(|key| !key.is_empty());
        keys.try_fold(self.clone(), |at, key| at.get(key))
    }

    /// Whether it holds nothing.
    pub(super) fn is_plain(&self) -> bool {
        matches!(
            self,
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_)
        )
    }

    fn depth(&self) -> u8 {
        match self {
            Self::Tuple(_, depth) | Self::Call(_, _, depth) => *depth,
            Self::List(list) => list.depth.get(),
            Self::Dict(dict) => dict.depth.get(),
            _ => 0,
        }
    }

    /// Goes into a container: returns the depth of that.
    fn enter(&self) -> Result<u8> {
        match self {
            Self::List(list) => list.is_inside.set(true),
            Self::Dict(dict) => dict.is_inside.set(true),
            _ => {}
        }
        let depth = self.depth() + 1;
        ensure!(
            depth <= MAX_DEPTH,
            "containers lie more than {MAX_DEPTH} deep"
        );
        Ok(depth)
    }

    /// A tuple of these.
    pub(super) fn tuple(items: impl Iterator<Item = Self>) -> Result<Self> {
        // Straight into its place: a copy of a long one would count.
        let items: Rc<[Self]> = items.collect();
        let mut depth = 0;
        for item in &*items {
            depth = depth.max(item.enter()?);
        }
        Ok(Self::Tuple(items, depth))
    }
}

impl<T> Default for Container<T> {
    fn default() -> Self {
        Self {
            items: RefCell::default(),
            depth: Cell::default(),
            is_inside: Cell::default(),
        }
    }
}

impl<T> Container<T> {
    /// Makes room for so many items: the first ones get no more than that.
    pub(super) fn reserve(&self, n: usize) {
        self.items.borrow_mut().reserve(n);
    }

    fn add(&self, item: T, depth: u8) -> Result<()> {
        ensure!(!self.is_inside.get(), "a container changes inside another");
        self.depth.set(self.depth.get().max(depth));
        self.items.borrow_mut().push(item);
        Ok(())
    }
}

impl Container<Value> {
    pub(super) fn append(&self, item: Value) -> Result<()> {
        let depth = item.enter()?;
        self.add(item, depth)
    }
}

impl Container<(Value, Value)> {
    pub(super) fn insert(&self, key: Value, value: Value) -> Result<()> {
        let depth = key.enter()?.max(value.enter()?);
        self.add((key, value), depth)
    }
}
