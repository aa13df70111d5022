//! How long each kind of op took.

use std::time::Duration;

/// Time spent in one kind of op.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpTime {
    /// The op.
    pub name: &'static str,
    /// Computing values.
    pub forward: Duration,
    /// Computing gradients.
    pub backward: Duration,
}

/// Times of all ops, in the order of their first use.
#[derive(Debug, Clone, Default)]
pub struct Profile(Vec<OpTime>);

impl Profile {
    /// All times.
    pub fn iter(&self) -> std::slice::Iter<'_, OpTime> {
        self.0.iter()
    }

    /// Adds times.
    pub fn add(&mut self, op: OpTime) {
        let sum = self.of(op.name);
        sum.forward += op.forward;
        sum.backward += op.backward;
    }

    pub(super) fn add_forward(&mut self, name: &'static str, time: Duration) {
        self.of(name).forward += time;
    }

    pub(super) fn add_backward(&mut self, name: &'static str, time: Duration) {
        self.of(name).backward += time;
    }

    fn of(&mut self, name: &'static str) -> &mut OpTime {
        let place = self.0.iter().position(|op| op.name == name);
        let place = place.unwrap_or_else(|| {
            self.0.push(OpTime {
                name,
                forward: Duration::ZERO,
                backward: Duration::ZERO,
            });
            self.0.len() - 1
        });
        &mut self.0[place]
    }
}
