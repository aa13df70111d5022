//! Sets up the engine: one number of threads for everything, the instruction set, memory.

use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use anyhow::Context as _;
use p2_kernels::process;
use p2_nn::{Cpu, Isa, Threads};

use crate::problem::Problem;

/// The variable that chooses an instruction set.
const ISA: &str = "P2_ISA";

/// Where the computing is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            _ => Err("this build computes on `cpu` alone".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// Runs `f` on a pool of so many threads, one per core if `None`.
///
/// # Errors
/// If `P2_ISA` names an instruction set that this machine has not, or threads cannot be started.
pub fn with_threads<T: Send>(
    n_threads: Option<NonZeroUsize>,
    f: impl FnOnce(Cpu) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let isa = isa()?;
    let n_cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = Threads::new(n_threads.unwrap_or(n_cores).get());
    process::keep_freed_pages();
    process::keep_candle_on_one_thread();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.count())
        .build();
    // Inside the pool, so that a kernel wakes one thread less.
    pool.context("cannot start threads")?.install(|| {
        f(Cpu {
            isa,
            ..Cpu::best(threads)
        })
    })
}

fn isa() -> Result<Isa, Problem> {
    let Some(name) = std::env::var_os(ISA) else {
        return Ok(Isa::best());
    };
    let name = name.to_string_lossy();
    Isa::from_name(&name).ok_or_else(|| {
        let names: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        Problem::new(format!(
            "{ISA}={name} is no instruction set of this machine"
        ))
        .hint(format!(
            "leave it unset, or use one of: {}",
            names.join(", ")
        ))
    })
}
