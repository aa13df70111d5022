//! A pickle, interpreted: the instructions that weights need, and none that run anything.
//!
//! # Source
//! `pickletools` of Python describes the instructions; PyTorch writes protocol 2.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

/// What a pickle may name. Anything else is refused: naming is the first half of running.
const ALLOWED: [&str; 7] = [
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.FloatStorage",
    "torch.DoubleStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
];
/// Containers in containers.
const MAX_DEPTH: usize = 64;

/// A value on the stack. Copies share what they hold.
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    Tuple(Rc<[Value]>, usize),
    List(Rc<Container<Value>>),
    Dict(Rc<Container<(Value, Value)>>),
    /// An allowed name.
    Name(&'static str),
    /// What stands for numbers beside the pickle.
    Persistent(Rc<[Value]>),
    /// A call of an allowed name, not made.
    Call(&'static str, Rc<[Value]>, usize),
}

/// What a list or dictionary holds, and how deep that is.
#[derive(Debug)]
pub(super) struct Container<T> {
    pub(super) items: RefCell<Vec<T>>,
    depth: Cell<usize>,
    /// It lies in another: what changes now could come to lie in itself.
    is_inside: Cell<bool>,
}

impl Value {
    fn depth(&self) -> usize {
        match self {
            Self::Tuple(_, depth) | Self::Call(_, _, depth) => *depth,
            Self::List(list) => list.depth.get(),
            Self::Dict(dict) => dict.depth.get(),
            _ => 0,
        }
    }

    /// Goes into a container: returns the depth of that.
    fn enter(&self) -> Result<usize> {
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
    fn add(&self, item: T, depth: usize) -> Result<()> {
        ensure!(!self.is_inside.get(), "a container changes inside another");
        self.depth.set(self.depth.get().max(depth));
        self.items.borrow_mut().push(item);
        Ok(())
    }
}

/// Runs a pickle to its end and returns what it leaves.
///
/// # Errors
/// Names the first instruction or name that is not allowed, or what is wrong with the pickle.
pub(super) fn interpret(bytes: &[u8]) -> Result<Value> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
    };
    loop {
        if let Some(value) = machine.step()? {
            return Ok(value);
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Value>,
}

impl Machine<'_> {
    /// One instruction; the result at the last one.
    fn step(&mut self) -> Result<Option<Value>> {
        let op = self.take(1)?[0];
        match op {
            b'.' => return self.pop().map(Some),
            0x80 => {
                let protocol = self.take(1)?[0];
                ensure!((2..=5).contains(&protocol), "pickle protocol {protocol}");
            }
            // A frame's length: the whole pickle is in memory already.
            0x95 => _ = self.take(8)?,
            b'N' => self.stack.push(Value::None),
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.stack.push(Value::Dict(Rc::default())),
            b']' => self.stack.push(Value::List(Rc::default())),
            b'K' | b'M' | b'J' | 0x8a => self.int(op)?,
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Float);
            }
            b'X' | 0x8c => {
                let text = self.text(op == 0x8c)?;
                self.stack.push(Value::Text(text.into()));
            }
            b')' | 0x85 | 0x86 | 0x87 | b't' => self.tuple(op)?,
            b'c' | 0x93 => self.name(op)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(op)?,
            b'Q' => match self.pop()? {
                Value::Tuple(items, _) => self.stack.push(Value::Persistent(items)),
                _ => bail!("a persistent id is no tuple"),
            },
            b'R' => self.call()?,
            b'b' => _ = self.pop()?, // attributes, such as versions of modules
            b's' | b'u' => self.set_items(op)?,
            b'a' | b'e' => self.append(op)?,
            b'0' => _ = self.pop()?,
            other => bail!(
                "instruction {other:#04x} ({:?}) is not one that weights need",
                char::from(other)
            ),
        }
        Ok(None)
    }

    fn take(&mut self, n: usize) -> Result<&[u8]> {
        let end = self
            .at
            .checked_add(n)
            .filter(|&end| end <= self.bytes.len());
        let end = end.context("the pickle ends too early")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into()?)
    }

    fn pop(&mut self) -> Result<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        ensure!(self.stack.len() > floor, "the pickle's stack is empty");
        self.stack.pop().context("the pickle's stack is empty")
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().context("the pickle has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn int(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b'K' => i64::from(self.take(1)?[0]),
            b'M' => i64::from(u16::from_le_bytes(self.array()?)),
            b'J' => i64::from(i32::from_le_bytes(self.array()?)),
            _ => {
                let n = usize::from(self.take(1)?[0]);
                ensure!(n <= 8, "a whole number of {n} bytes");
                let taken = self.take(n)?;
                let is_negative = taken.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut bytes = [if is_negative { 0xff } else { 0 }; 8];
                bytes[..n].copy_from_slice(taken);
                i64::from_le_bytes(bytes)
            }
        };
        self.stack.push(Value::Int(value));
        Ok(())
    }

    fn text(&mut self, is_short: bool) -> Result<String> {
        let n = if is_short {
            usize::from(self.take(1)?[0])
        } else {
            u32::from_le_bytes(self.array()?) as usize
        };
        Ok(std::str::from_utf8(self.take(n)?)?.to_owned())
    }

    fn tuple(&mut self, op: u8) -> Result<()> {
        let items = match op {
            b')' => Vec::new(),
            b't' => self.pop_mark()?,
            op => {
                let n = usize::from(op - 0x84);
                let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                items
            }
        };
        let depth = depth_of(&items)?;
        self.stack.push(Value::Tuple(items.into(), depth));
        Ok(())
    }

    /// Pushes an allowed name.
    fn name(&mut self, op: u8) -> Result<()> {
        let name = if op == b'c' {
            format!("{}.{}", self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (module, name) {
                (Value::Text(module), Value::Text(name)) => format!("{module}.{name}"),
                _ => bail!("a name is no text"),
            }
        };
        let allowed = ALLOWED.iter().find(|allowed| **allowed == name);
        let allowed =
            allowed.with_context(|| format!("the pickle names `{name}`, which no weights need"))?;
        self.stack.push(Value::Name(allowed));
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&byte| byte == b'\n');
        let n = n.context("the pickle ends too early")?;
        let line = std::str::from_utf8(&rest[..n])?.to_owned();
        self.at += n + 1;
        Ok(line)
    }

    /// Remembers the value on top, or pushes one that was remembered.
    fn remember(&mut self, op: u8) -> Result<()> {
        let index = match op {
            b'q' | b'h' => usize::from(self.take(1)?[0]),
            0x94 => self.memo.len(),
            _ => u32::from_le_bytes(self.array()?) as usize,
        };
        if matches!(op, b'h' | b'j') {
            let value = self.memo.get(index).cloned();
            self.stack
                .push(value.context("the pickle recalls what it never remembered")?);
            return Ok(());
        }
        let value = self.stack.last().context("the pickle's stack is empty")?;
        match self.memo.get_mut(index) {
            Some(place) => *place = value.clone(),
            // Places are counted up; one further on would only cost memory.
            None => {
                ensure!(index == self.memo.len(), "a memo at {index}");
                self.memo.push(value.clone());
            }
        }
        Ok(())
    }

    /// A call is noted, not made; an ordered dictionary is one.
    fn call(&mut self) -> Result<()> {
        let (arguments, name) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments, depth), Value::Name(name)) = (arguments, name) else {
            bail!("the pickle calls what is no name");
        };
        if name == "collections.OrderedDict" {
            ensure!(arguments.is_empty(), "an ordered dictionary with arguments");
            self.stack.push(Value::Dict(Rc::default()));
        } else {
            self.stack.push(Value::Call(name, arguments, depth));
        }
        Ok(())
    }

    fn set_items(&mut self, op: u8) -> Result<()> {
        let items = if op == b'u' {
            self.pop_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        let Some(Value::Dict(dict)) = self.stack.last() else {
            bail!("the pickle sets items of what is no dictionary");
        };
        let (pairs, rest) = items.as_chunks::<2>();
        ensure!(rest.is_empty(), "a key without a value");
        for [key, value] in pairs {
            let depth = key.enter()?.max(value.enter()?);
            dict.add((key.clone(), value.clone()), depth)?;
        }
        Ok(())
    }

    fn append(&mut self, op: u8) -> Result<()> {
        let items = if op == b'e' {
            self.pop_mark()?
        } else {
            vec![self.pop()?]
        };
        let Some(Value::List(list)) = self.stack.last() else {
            bail!("the pickle appends to what is no list");
        };
        for item in items {
            let depth = item.enter()?;
            list.add(item, depth)?;
        }
        Ok(())
    }
}

/// The depth of a tuple of these.
fn depth_of(items: &[Value]) -> Result<usize> {
    let mut deepest = 0;
    for item in items {
        deepest = deepest.max(item.enter()?);
    }
    Ok(deepest)
}
