//! A pickle, interpreted: the instructions that weights need, and none that run anything.
//!
//! # Source
//! `pickletools` of Python describes the instructions; PyTorch writes protocol 2.

use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

use super::quoted;
use super::value::{Name, Value};

/// What a pickle leaves.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) value: Value,
    /// Its length: more may come behind it.
    pub(super) n_bytes: usize,
    /// All ids of numbers beside it, in the order of their mention.
    pub(super) persistent: Vec<Rc<[Value]>>,
}

/// Runs the pickle at the start of the bytes to its end.
///
/// # Errors
/// Names the first instruction or name that is not allowed, or what is wrong with the pickle.
pub(super) fn interpret(bytes: &[u8]) -> Result<Outcome> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        persistent: Vec::new(),
    };
    loop {
        if let Some(value) = machine.step()? {
            return Ok(Outcome {
                value,
                n_bytes: machine.at,
                persistent: machine.persistent,
            });
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
    persistent: Vec<Rc<[Value]>>,
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
            0x88 | 0x89 => self.stack.push(Value::Bool(op == 0x88)),
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.stack.push(Value::Dict(Rc::default())),
            b']' => self.stack.push(Value::List(Rc::default())),
            b'K' | b'M' | b'J' | 0x8a => self.int(op)?,
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.stack.push(Value::Float(value));
            }
            b'X' | 0x8c => {
                let text = self.text(op == 0x8c)?;
                self.stack.push(Value::Text(text.into()));
            }
            b')' | 0x85 | 0x86 | 0x87 | b't' => self.tuple(op)?,
            b'c' | 0x93 => self.name(op)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(op)?,
            b'Q' => match self.pop()? {
                Value::Tuple(items, _) => {
                    self.persistent.push(Rc::clone(&items));
                    self.stack.push(Value::Persistent(items));
                }
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
        self.below(1)?;
        self.stack.pop().context("the pickle's stack is empty")
    }

    /// The height of the stack at the last mark, which is taken away.
    fn mark(&mut self) -> Result<usize> {
        self.marks.pop().context("the pickle has no mark")
    }

    /// The height of the stack below its last values.
    fn below(&self, n: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let height = self.stack.len().checked_sub(n).filter(|&at| at >= floor);
        height.context("the pickle's stack is empty")
    }

    fn int(&mut self, op: u8) -> Result<()> {
        let value = match op {
            b'K' => i128::from(self.take(1)?[0]),
            b'M' => i128::from(u16::from_le_bytes(self.array()?)),
            b'J' => i128::from(i32::from_le_bytes(self.array()?)),
            _ => {
                let n = usize::from(self.take(1)?[0]);
                ensure!(n <= 16, "a whole number of {n} bytes");
                let taken = self.take(n)?;
                let is_negative = taken.last().is_some_and(|byte| byte & 0x80 != 0);
                let mut bytes = [if is_negative { 0xff } else { 0 }; 16];
                bytes[..n].copy_from_slice(taken);
                i128::from_le_bytes(bytes)
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
        let start = match op {
            b')' => self.stack.len(),
            b't' => self.mark()?,
            op => self.below(usize::from(op - 0x84))?,
        };
        let tuple = Value::tuple(self.stack.drain(start..))?;
        self.stack.push(tuple);
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
        let allowed = Name::find(&name).with_context(|| {
            format!("the pickle names {}, which no weights need", quoted(&name))
        })?;
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
        if name == Name::OrderedDict {
            ensure!(arguments.is_empty(), "an ordered dictionary with arguments");
            self.stack.push(Value::Dict(Rc::default()));
        } else {
            self.stack.push(Value::Call(name, arguments, depth));
        }
        Ok(())
    }

    fn set_items(&mut self, op: u8) -> Result<()> {
        let start = match op {
            b'u' => self.mark()?,
            _ => self.below(2)?,
        };
        let (below, items) = self.stack.split_at(start);
        let Some(Value::Dict(dict)) = below.last() else {
            bail!("the pickle sets items of what is no dictionary");
        };
        let (pairs, rest) = items.as_chunks::<2>();
        ensure!(rest.is_empty(), "a key without a value");
        dict.reserve(pairs.len());
        for [key, value] in pairs {
            dict.insert(key.clone(), value.clone())?;
        }
        self.stack.truncate(start);
        Ok(())
    }

    fn append(&mut self, op: u8) -> Result<()> {
        let start = match op {
            b'e' => self.mark()?,
            _ => self.below(1)?,
        };
        let (below, items) = self.stack.split_at(start);
        let Some(Value::List(list)) = below.last() else {
            bail!("the pickle appends to what is no list");
        };
        list.reserve(items.len());
        for item in items {
            list.append(item.clone())?;
        }
        self.stack.truncate(start);
        Ok(())
    }
}
