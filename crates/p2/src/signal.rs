//! Ctrl-C and termination: the first asks to finish the step and save, the second quits at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// From `kill`, a batch system, or a machine that shuts down.
    Terminate,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Interrupt, Self::Terminate];

    fn number(self) -> i32 {
        match self {
            Self::Interrupt => SIGINT,
            Self::Terminate => SIGTERM,
        }
    }

    /// What a shell reports for a program that this signal ended.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Knows whether the user wants the program to stop.
#[derive(Debug, Clone)]
pub struct Stop {
    /// Number of the first signal, 0 before.
    number: Arc<AtomicUsize>,
}

impl Stop {
    /// Takes over both signals for the rest of the process; call it once.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn install() -> io::Result<Self> {
        let number = Arc::new(AtomicUsize::new(0));
        let again = Arc::new(AtomicBool::new(false));
        for signal in Signal::ALL {
            // Handlers run in this order: whether it is the second is asked before it is noted.
            let exit_code = i32::from(signal.exit_code());
            flag::register_conditional_shutdown(signal.number(), exit_code, Arc::clone(&again))?;
            flag::register(signal.number(), Arc::clone(&again))?;
            let noted = signal.number().unsigned_abs() as usize;
            flag::register_usize(signal.number(), Arc::clone(&number), noted)?;
        }
        Ok(Self { number })
    }

    /// A process that nobody asks to stop.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self {
            number: Arc::default(),
        }
    }

    /// The signal that asked to stop, if one did.
    pub fn requested(&self) -> Option<Signal> {
        let number = self.number.load(Ordering::Relaxed);
        Signal::ALL
            .into_iter()
            .find(|signal| signal.number().unsigned_abs() as usize == number)
    }
}
