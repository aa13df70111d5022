//! Settings of the whole process that only unsafe calls reach; for the program, at its start.

/// Tells the C library to serve large buffers from its heap and to keep what is freed.
///
/// A training step frees and takes the same sizes again and again. By default glibc maps large
/// ones afresh, and the kernel clears every page of them each time: up to a third of a step.
/// Call it once, early; it does nothing where the C library has no such switch.
pub fn keep_freed_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, value) in [
        (libc::M_MMAP_MAX, 0),
        (libc::M_TRIM_THRESHOLD, -1), // never
        (libc::M_TOP_PAD, 64 << 20),
        // Heaps of other threads are limited in size; one heap serves all.
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: mallopt takes two integers and touches nothing of ours.
        unsafe { libc::mallopt(option, value) };
    }
    prefer_huge_pages();
}

/// Asks the system for pages of 2 MiB in the heap.
///
/// Winograd's transforms read a tile from 36 places at once, on more small pages than the processor
/// has addresses at hand. The heap is grown first, which takes addresses but no memory, and is never
/// trimmed.
fn prefer_huge_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
    {
        const HUGE: usize = 2 << 20;
        let heap = heap_bytes();
        // SAFETY: the block is this function's until it is freed, and the advice is for whole pages
        // of it and changes none. Where one of these calls fails, pages stay small.
        unsafe {
            let block = libc::malloc(heap).cast::<u8>();
            if !block.is_null() {
                let skipped = block.align_offset(HUGE);
                let len = heap.saturating_sub(skipped) / HUGE * HUGE;
                libc::madvise(block.wrapping_add(skipped).cast(), len, libc::MADV_HUGEPAGE);
                libc::free(block.cast());
            }
        }
    }
}

/// Three quarters of the machine's memory, but no more than half of what this process may take.
///
/// A system that counts what is only reserved refuses so large a block as a rule: pages stay small.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
fn heap_bytes() -> usize {
    // SAFETY: it takes an integer and returns one, -1 if it does not know.
    let [pages, page] =
        [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    let memory = usize::try_from(pages).unwrap_or(0) * usize::try_from(page).unwrap_or(0);
    [libc::RLIMIT_AS, libc::RLIMIT_DATA]
        .into_iter()
        .map(|resource| {
            let mut limit = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: it writes the limit, or leaves the zeros.
            unsafe { libc::getrlimit(resource, &raw mut limit) };
            usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) / 2
        })
        .fold(memory / 4 * 3, usize::min)
}

/// Leaves all threads to our kernels: candle computes on the thread that calls it.
///
/// Its own pool spins between uses, on the very cores that our threads then miss, and its size
/// would be one more thing that a result could depend on. Candle reads it from the environment.
///
/// Call it once, before other threads are started.
pub fn keep_candle_on_one_thread() {
    #[cfg(unix)]
    for name in [c"CANDLE_NUM_THREADS", c"RAYON_NUM_THREADS"] {
        // SAFETY: both strings end in 0 and are copied. A reader in another thread could see a
        // moved environment; the program calls this before it has other threads.
        unsafe { libc::setenv(name.as_ptr(), c"1".as_ptr(), 1) };
    }
}
