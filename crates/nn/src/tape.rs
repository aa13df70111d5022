//! Reverse-mode differentiation: what was computed, in order, so that gradients can go back through it.
//!
//! Candle's own tape fills a gradient with zeros and adds to it for every use of a value, on one thread,
//! and keeps all values until the last gradient is known: on the small U-Net that cost more than its
//! group norms. This one moves gradients from op to op, adds only where a value was used twice, and lets
//! go of each value as soon as its gradient is known.

mod checkpoint;
mod gradients;
mod profile;
mod saved;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use candle_core::{DType, Tensor, TensorId, Var};

pub use checkpoint::checkpoint;
pub use gradients::Gradients;
pub(crate) use gradients::Sums;
pub(crate) use gradients::{Gradient, Slot};
pub use profile::{OpTime, Profile};
pub(crate) use saved::Saved;

use crate::{Cpu, Result};

/// What a recording keeps of values that are cheap to compute again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Everything that a gradient needs is kept.
    #[default]
    Nothing,
    /// Outputs of norms and resampling are computed again when their gradient is wanted.
    Norms,
    /// Only the inputs of whole blocks are kept; a block is run again for its gradients.
    Blocks,
}

/// A computation in progress. Clones are the same computation.
#[derive(Clone)]
pub struct Tape(Rc<Inner>);

struct Inner {
    cpu: Cpu,
    /// `None` where no gradients will be asked for.
    recording: Option<Recompute>,
    wanted: Wanted,
    records: RefCell<Vec<Record>>,
    n_slots: Cell<usize>,
    params: RefCell<HashMap<TensorId, Slot>>,
    /// Reads a clock, if ops shall be timed.
    clock: Option<fn() -> Duration>,
    profile: RefCell<Profile>,
}

/// Whose gradients will be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Inputs,
}

/// One op: which gradient it consumes, and how it hands it on.
struct Record {
    name: &'static str,
    slot: Slot,
    backward: Box<Backward>,
}

type Backward = dyn FnOnce(Gradient, &mut Sums<'_>) -> Result<()>;

/// A value on a tape.
#[derive(Clone)]
pub struct Node {
    value: Tensor,
    tape: Tape,
    /// Where its gradient is collected, if it has one.
    slot: Option<Slot>,
    recipe: Option<Rc<saved::Recipe>>,
}

impl Tape {
    /// A computation whose gradients will be asked for.
    pub fn recording(cpu: Cpu, recompute: Recompute) -> Self {
        Self::new(cpu, Some(recompute), Wanted::All, None)
    }

    /// A computation whose gradients will be asked for with respect to its inputs alone: parameters are constants,
    /// which saves a third of the work and the values that only their gradients need.
    pub fn recording_inputs(cpu: Cpu) -> Self {
        Self::new(cpu, Some(Recompute::Nothing), Wanted::Inputs, None)
    }

    /// A computation without gradients: each value is let go after its last use.
    pub fn inference(cpu: Cpu) -> Self {
        Self::new(cpu, None, Wanted::All, None)
    }

    /// The same computation, still empty, whose ops are timed by `clock`.
    pub fn timed(self, clock: fn() -> Duration) -> Self {
        Self::new(self.0.cpu, self.0.recording, self.0.wanted, Some(clock))
    }

    fn new(
        cpu: Cpu,
        recording: Option<Recompute>,
        wanted: Wanted,
        clock: Option<fn() -> Duration>,
    ) -> Self {
        Self(Rc::new(Inner {
            cpu,
            recording,
            wanted,
            records: RefCell::default(),
            n_slots: Cell::new(0),
            params: RefCell::default(),
            clock,
            profile: RefCell::default(),
        }))
    }

    /// What its kernels run on.
    pub fn cpu(&self) -> Cpu {
        self.0.cpu
    }

    /// Time spent in each kind of op so far, if the tape is [`Self::timed`].
    pub fn profile(&self) -> Profile {
        self.0.profile.borrow().clone()
    }

    /// A value that needs no gradient.
    pub fn constant(&self, value: &Tensor) -> Node {
        self.node(value.clone(), None)
    }

    /// A value whose gradient will be asked for by [`Gradients::of`].
    pub fn input(&self, value: &Tensor) -> Node {
        self.node(value.clone(), self.new_slot())
    }

    /// A parameter, whose gradient will be asked for by [`Gradients::of_param`].
    pub fn param(&self, var: &Var) -> Node {
        let is_wanted = self.0.recording.is_some() && self.0.wanted == Wanted::All;
        let slot = is_wanted.then(|| self.param_slot(var.id()));
        self.node(var.as_tensor().clone(), slot)
    }

    fn param_slot(&self, param: TensorId) -> Slot {
        let mut params = self.0.params.borrow_mut();
        *params.entry(param).or_insert_with(|| self.next_slot())
    }

    /// Whether a result of `inputs` has a gradient that someone may ask for.
    pub(crate) fn tracks(&self, inputs: &[&Node]) -> bool {
        self.0.recording.is_some() && inputs.iter().any(|input| input.slot.is_some())
    }

    /// What is kept of cheap values; `None` if nothing is recorded.
    pub(crate) fn recompute(&self) -> Option<Recompute> {
        self.0.recording
    }

    /// Runs and times an op's forward pass.
    pub(crate) fn forward<T>(
        &self,
        name: &'static str,
        op: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let started = self.0.clock.map(|clock| clock());
        let value = op()?;
        if let (Some(clock), Some(started)) = (self.0.clock, started) {
            let time = clock() - started;
            self.0.profile.borrow_mut().add_forward(name, time);
        }
        Ok(value)
    }

    /// The result of an op, and how its gradient is handed on to the slots of its inputs.
    ///
    /// `backward` is only called if the gradient of `value` is known, and only kept if
    /// [`Self::tracks`] holds for `inputs`.
    pub(crate) fn record(
        &self,
        name: &'static str,
        inputs: &[&Node],
        value: Tensor,
        backward: impl FnOnce(Gradient, &mut Sums<'_>) -> Result<()> + 'static,
    ) -> Node {
        if self.tracks(inputs) {
            self.record_always(name, value, backward)
        } else {
            self.node(value, None)
        }
    }

    fn record_always(
        &self,
        name: &'static str,
        value: Tensor,
        backward: impl FnOnce(Gradient, &mut Sums<'_>) -> Result<()> + 'static,
    ) -> Node {
        let slot = self.next_slot();
        self.0.records.borrow_mut().push(Record {
            name,
            slot,
            backward: Box::new(backward),
        });
        self.node(value, Some(slot))
    }

    fn node(&self, value: Tensor, slot: Option<Slot>) -> Node {
        Node {
            value,
            tape: self.clone(),
            slot,
            recipe: None,
        }
    }

    fn new_slot(&self) -> Option<Slot> {
        self.0.recording.is_some().then(|| self.next_slot())
    }

    fn next_slot(&self) -> Slot {
        let n = self.0.n_slots.get();
        self.0.n_slots.set(n + 1);
        Slot(n)
    }
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tape")
            .field("cpu", &self.0.cpu)
            .field("recording", &self.0.recording)
            .field("n_records", &self.0.records.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The tape that it is on.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// The sizes of the value's axes.
    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    /// Where its gradient is collected.
    pub(crate) fn slot(&self) -> Option<Slot> {
        self.slot
    }

    /// The value as a gradient will need it: kept, or how to compute it again.
    pub(crate) fn save(&self) -> Saved {
        match &self.recipe {
            Some(recipe) => Saved::Recipe(recipe.clone()),
            None => Saved::Kept(self.value.clone()),
        }
    }

    /// Gives up keeping the value for gradients: `recipe` computes it again.
    pub(crate) fn with_recipe(self, recipe: impl Fn() -> Result<Tensor> + 'static) -> Self {
        let keeps = matches!(self.tape.recompute(), None | Some(Recompute::Nothing));
        let recipe = (!keeps && self.slot.is_some()).then(|| Rc::new(recipe) as Rc<saved::Recipe>);
        Self { recipe, ..self }
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// If the number of elements differs.
    pub fn reshape(&self, shape: impl Into<candle_core::Shape>) -> Result<Self> {
        let value = self.value.reshape(shape.into())?;
        let (slot, dims) = (self.slot, self.dims().to_vec());
        let node = self
            .tape
            .record("elementwise", &[self], value, move |d_y, sums| {
                sums.pass(slot, d_y.reshape(&dims)?)
            });
        let saved = self.save();
        let dims = node.dims().to_vec();
        Ok(match &self.recipe {
            None => node,
            Some(_) => node.with_recipe(move || Ok(saved.get()?.reshape(dims.as_slice())?)),
        })
    }

    /// The value as a variable of candle's own tape, to compute a loss from.
    ///
    /// # Errors
    /// If the engine fails.
    pub fn leaf(&self) -> Result<Var> {
        Ok(Var::from_tensor(&self.value)?)
    }

    /// The gradients of a loss that candle computed from [`Self::leaf`].
    ///
    /// # Errors
    /// As for [`Self::backward`], and if the loss does not depend on `leaf`.
    pub fn backward_from(&self, leaf: &Var, loss: &Tensor) -> Result<Gradients> {
        match loss.backward()?.get(leaf) {
            Some(d_y) => self.backward(d_y),
            None => {
                Err(candle_core::Error::Msg("the loss does not depend on its leaf".into()).into())
            }
        }
    }

    /// The gradients of this value times `d_y`, summed: of all parameters and inputs it was made of.
    ///
    /// Everything recorded on the tape is used up.
    ///
    /// # Errors
    /// If `d_y` has another shape, or an op fails.
    pub fn backward(&self, d_y: &Tensor) -> Result<Gradients> {
        if d_y.dims() != self.dims() {
            let (expected, got) = (self.value.shape().clone(), d_y.shape().clone());
            let op = "backward";
            let lhs = expected;
            return Err(candle_core::Error::ShapeMismatchBinaryOp { lhs, rhs: got, op }.into());
        }
        let tape = &self.tape.0;
        let mut records = tape.records.take();
        let mut sums = Sums::new(&self.tape);
        sums.add_shared(self.slot, &d_y.contiguous()?)?;
        while let Some(Record {
            name,
            slot,
            backward,
        }) = records.pop()
        {
            let Some(d_y) = sums.take(slot) else { continue };
            let started = tape.clock.map(|clock| clock());
            backward(d_y, &mut sums)?;
            if let (Some(clock), Some(started)) = (tape.clock, started) {
                let time = clock() - started;
                tape.profile.borrow_mut().add_backward(name, time);
            }
        }
        Ok(sums.into_gradients(tape.params.take()))
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("dims", &self.dims())
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

/// Whether the CPU kernels apply.
pub(crate) fn has_kernel(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}
