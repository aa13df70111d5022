//! Keeps freed memory in the process, because fresh pages are slow.

/// Tells the C library to serve large buffers from its heap and to keep what is freed.
///
/// A training step frees and takes the same sizes again and again. By default glibc maps large
/// ones afresh, and the kernel clears every page of them each time: up to a third of a step.
/// Call it once, early; it does nothing where the C library has no such switch.
pub fn keep_freed_pages() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (option, bytes) in [
        (libc::M_MMAP_THRESHOLD, i32::MAX),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 64 << 20),
        // Heaps of other threads are limited in size; one heap serves all.
        (libc::M_ARENA_MAX, 1),
    ] {
        // SAFETY: mallopt takes two integers and touches nothing of ours.
        unsafe { libc::mallopt(option, bytes) };
    }
}
