//! Small arrays of vectors: what the register tiles of all products are made of.

use pulp::Simd;

/// Copies an array of vectors element by element.
#[inline(always)]
pub(crate) fn copy<T: Copy, const R: usize, const V: usize>(
    from: &[[T; V]; R],
    into: &mut [[T; V]; R],
) {
    for r in 0..R {
        for v in 0..V {
            into[r][v] = from[r][v];
        }
    }
}

/// Adds vectors to vectors.
#[inline(always)]
pub(crate) fn add<S: Simd, const V: usize>(simd: S, into: &mut [S::f32s; V], from: [S::f32s; V]) {
    for v in 0..V {
        into[v] = simd.add_f32s(into[v], from[v]);
    }
}

/// V vectors from a slice that may be shorter, the rest 0.
#[inline(always)]
pub(crate) fn load<S: Simd, const V: usize>(from: &[f32]) -> [S::f32s; V] {
    if from.len() == V * S::F32_LANES {
        // SAFETY: the slice holds V vectors.
        return unsafe { read::<S, V>(from.as_ptr()) };
    }
    let mut padded: [S::f32s; V] = [pulp::bytemuck::Zeroable::zeroed(); V];
    pulp::bytemuck::cast_slice_mut::<_, f32>(&mut padded)[..from.len()].copy_from_slice(from);
    padded
}

/// V vectors into a slice that may be shorter; the rest is dropped.
#[inline(always)]
pub(crate) fn store<S: Simd, const V: usize>(values: [S::f32s; V], into: &mut [f32]) {
    if into.len() == V * S::F32_LANES {
        // SAFETY: the slice holds V vectors.
        unsafe { write::<S, V>(values, into.as_mut_ptr()) };
        return;
    }
    let lanes: &[f32] = pulp::bytemuck::cast_slice(&values);
    let n = into.len();
    into.copy_from_slice(&lanes[..n]);
}

/// V vectors from unaligned memory.
///
/// # Safety
/// `from` must be readable for V vectors.
#[inline(always)]
pub(crate) unsafe fn read<S: Simd, const V: usize>(from: *const f32) -> [S::f32s; V] {
    // SAFETY: readable by contract; vectors of f32 have no invalid bit patterns.
    unsafe { from.cast::<[S::f32s; V]>().read_unaligned() }
}

/// V vectors into unaligned memory.
///
/// # Safety
/// `into` must be writable for V vectors.
#[inline(always)]
pub(crate) unsafe fn write<S: Simd, const V: usize>(values: [S::f32s; V], into: *mut f32) {
    // SAFETY: writable by contract.
    unsafe { into.cast::<[S::f32s; V]>().write_unaligned(values) };
}
