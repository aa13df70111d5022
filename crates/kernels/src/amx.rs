//! Products of numbers rounded to bf16 in tile registers (Intel AMX), with f32 sums.
//!
//! One instruction multiplies a tile of 16 rows of 32 numbers by one of 32 rows of 16 columns. That
//! is so fast that what is around it decides: rounding and packing the operands, and where they lie.
//! A row of a tile that crosses a cache line takes several times as long.
//!
//! Numbers whose f32 would be subnormal count as zero.
//!
//! # Source
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, `TDPBF16PS`.

pub(crate) mod pack;
pub(crate) mod product;

use std::arch::asm;
use std::cell::Cell;
use std::marker::PhantomData;

use crate::cpu::Isa;

/// Rows of a register; also its columns, as f32 or as pairs of bf16.
pub(crate) const SIDE: usize = 16;

thread_local! {
    /// Whether a [`Registers`] of this thread lives.
    static IN_USE: Cell<bool> = const { Cell::new(false) };
}

/// What multiplies tiles; exists only where it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx(Engine);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Registers,
    /// The same arithmetic in plain loops, to test on any machine what surrounds it.
    #[cfg(test)]
    Emulated,
}

impl Amx {
    /// If this machine has the registers and the system lets this process use them.
    pub(crate) fn detect() -> Option<Self> {
        use std::sync::LazyLock;
        static HAS_TILES: LazyLock<bool> = LazyLock::new(|| {
            is_x86_feature_detected!("avx512bf16") && has_bf16_tiles() && may_use_tiles()
        });
        HAS_TILES.then_some(Self(Engine::Registers))
    }

    /// The tiles of an instruction set, if it has them.
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Amx(_, amx) => Some(amx),
            _ => None,
        }
    }

    /// Emulated registers, if the machine has the instructions that pack tiles.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Option<Self> {
        let packs = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16");
        packs.then_some(Self(Engine::Emulated))
    }

    /// Makes the registers of the calling thread ready for use.
    ///
    /// # Panics
    /// If they are in use: dropping one [`Registers`] takes them from the other.
    pub(crate) fn registers(self) -> Registers {
        assert!(!IN_USE.replace(true), "tile registers are in use");
        if self.0 == Engine::Registers {
            let shape = Shape::full();
            // SAFETY: the registers are there, and the process may use them.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shape, options(nostack, readonly)) };
        }
        Registers {
            engine: self.0,
            thread: PhantomData,
        }
    }
}

/// The registers of this thread, ready for use until dropped.
pub(crate) struct Registers {
    engine: Engine,
    /// Another thread has registers of its own.
    thread: PhantomData<*const ()>,
}

impl Drop for Registers {
    fn drop(&mut self) {
        IN_USE.set(false);
        if self.engine == Engine::Registers {
            // SAFETY: the registers are there. Empty ones cost nothing when threads are switched.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shape {
    /// All eight registers as large as they can be.
    fn full() -> Self {
        let mut shape = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        shape.row_bytes[..8].fill(64);
        shape.rows[..8].fill(SIDE as u8);
        shape
    }
}

/// Whether the processor has tile registers and multiplies bf16 in them.
fn has_bf16_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let max_leaf = __cpuid(0).eax;
    let features = if max_leaf < 7 {
        0
    } else {
        __cpuid_count(7, 0).edx
    };
    let (bf16, tile) = (1 << 22, 1 << 24);
    features & (bf16 | tile) == bf16 | tile
}

/// Asks the system for the registers: it keeps room for them only for processes that do.
fn may_use_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: the call takes two integers and touches nothing of ours.
        unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            ) == 0
        }
    }
    #[cfg(not(target_os = "linux"))]
    false
}
