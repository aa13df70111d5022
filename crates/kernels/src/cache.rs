//! What a kernel tells the caches: what it will read and write, and what it will not read again.

use pulp::Simd;

use crate::scratch::LINE;

/// Elements of a cache line.
pub(crate) const fn line<T>() -> usize {
    LINE * size_of::<f32>() / size_of::<T>()
}

/// Asks for the line of an address to write to it; the address need not be valid.
#[inline(always)]
pub(crate) fn prefetch_to_write<T>(address: *mut T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a prefetch changes no value and has no effect at an address that is none.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the line of an address for the second-level cache; the address need not be valid.
#[inline(always)]
pub(crate) fn prefetch_to_l2(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch changes no value and has no effect at an address that is none.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the line of an address, which need not be readable.
#[inline(always)]
pub(crate) fn prefetch_line<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch changes no value and has no effect at an address that is none.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for the lines of V vectors from an address on.
#[inline(always)]
pub(crate) fn prefetch_vectors<S: Simd, const V: usize>(address: *const f32) {
    for i in (0..V * S::F32_LANES).step_by(LINE) {
        prefetch_line(address.wrapping_add(i));
    }
}

/// Whether vectors at an address, and at whole strides of floats from it, are whole lines, which
/// [`stream`] stores.
pub(crate) fn can_stream<S: Simd>(into: *const f32, stride: usize) -> bool {
    let line = LINE * size_of::<f32>();
    cfg!(target_arch = "x86_64")
        && S::F32_LANES == LINE
        && into.addr().is_multiple_of(line)
        && stride.is_multiple_of(LINE)
}

/// Stores a line past the caches, which need not fetch it from memory to change it: for results
/// that are not read soon. [`finish_streams`] has to follow before anybody reads them.
///
/// # Safety
/// `into` must be writable for a vector, for which [`can_stream`].
#[inline(always)]
pub(crate) unsafe fn stream<S: Simd>(value: S::f32s, into: *mut f32) {
    debug_assert!(can_stream::<S>(into, 0));
    // SAFETY: writable by contract; 16 floats are a vector of AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm512_stream_ps(into, std::mem::transmute_copy(&value));
    }
    // SAFETY: writable by contract.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        into.cast::<S::f32s>().write_unaligned(value);
    }
}

/// Makes what [`stream`] stored visible before all that this thread stores later.
#[inline(always)]
pub(crate) fn finish_streams() {
    // SAFETY: a fence changes no memory.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
