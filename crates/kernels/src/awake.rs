//! Threads that wait awake for a while: the next op comes within microseconds, and waking a thread
//! takes longer than many an op.

use std::cell::Cell;
use std::sync::OnceLock;

/// How often a thread looks before it sleeps: a few hundred microseconds.
const LOOKS: usize = 500;

thread_local! {
    static IS_LOOKING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the threads of the current pool can all be awake at once; else those that wait would
/// keep others from working.
pub(crate) fn has_core_per_thread() -> bool {
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    rayon::current_num_threads() <= cores
}

/// Waits for a condition, or until it is better to sleep.
pub(crate) fn wait_for(is_met: impl Fn() -> bool) {
    for _ in 0..LOOKS {
        for _ in 0..16 {
            if is_met() {
                return;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

/// Has this thread of the pool look for work after what it does now, for a while.
pub(crate) fn look_for_work() {
    if IS_LOOKING.get() {
        // It runs what it found: when that is done, it looks on.
        return;
    }
    let own = rayon::current_thread_index();
    // A task of its own, which nobody waits for. Another thread that takes it has better to do.
    rayon::spawn(move || {
        if rayon::current_thread_index() != own || IS_LOOKING.replace(true) {
            return;
        }
        let mut looks = 0;
        while looks < LOOKS {
            match rayon::yield_now() {
                Some(rayon::Yield::Executed) => looks = 0,
                _ => looks += 1,
            }
            std::thread::yield_now();
        }
        IS_LOOKING.set(false);
    });
}
