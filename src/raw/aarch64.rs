//! Recoverable accesses on aarch64: plain loads and stores, and exclusive pairs for the atomic operations.
//!
//! The code learns of a fault as on x86-64. Up to 32 bits, the load zero-extends into a 64-bit register, and a fault sets
//! that register to all ones. 64-bit loads, stores and atomics have no bit to spare, so a fault zeroes the register that
//! held the address.
//!
//! Loads and stores are unordered, like volatile ones; the atomic operations acquire and release. Exclusive pairs need
//! normal memory: on device memory the architecture guarantees neither them nor unaligned accesses, which the bulk copies
//! make.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::table::{recovery, register};
use super::{AtomicPrimitive, Faulted, Primitive};
use core::arch::asm;

mod bulk;
mod context;

pub(crate) use super::table::keep_loaded;
pub(crate) use bulk::{rounds_in, rounds_out};
pub(crate) use context::recover;

/// A fault returns an error.
pub(crate) const RECOVERABLE: bool = true;

/// The text that a code generation unit with accesses needs once: the numbers of the registers, and the initialiser that
/// registers the table of the unit's linked object.
macro_rules! once_per_unit {
    () => {
        ".ifndef .Lrevocable_unit_{register}
        .set .Lrevocable_unit_{register}, 1
        .irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
        .set .Lrevocable_gpr_x\\number, \\number
        .endr
        .pushsection .text.revocable_mmio_register,\"ax\",%progbits
        .balign 4
        .hidden __start_revocable_mmio_recovery_1
        .hidden __stop_revocable_mmio_recovery_1
        9:
        hint #34
        adrp x0, __start_revocable_mmio_recovery_1
        add x0, x0, :lo12:__start_revocable_mmio_recovery_1
        adrp x1, __stop_revocable_mmio_recovery_1
        add x1, x1, :lo12:__stop_revocable_mmio_recovery_1
        b {register}
        .popsection
        .pushsection .init_array,\"aw\",%init_array
        .balign 8
        .xword 9b
        .popsection
        .endif
        "
    };
}
use once_per_unit;

/// One load.
///
/// # Safety
///
/// `raw`'s contract.
#[inline(always)]
pub(crate) unsafe fn load<T: Primitive>(p: *const T) -> Result<T, Faulted> {
    macro_rules! narrow {
        ($instruction:literal, $window:literal) => {{
            let bits: u64;
            // SAFETY: one load within `raw`'s contract, which allows any other writer.
            // `readonly`: like a volatile load, it orders nothing else.
            unsafe {
                asm!(
                    concat!("2: ", $instruction, " {bits:w}, [{p}]"),
                    "3:",
                    recovery!("2b" => "3b", set "{bits}" = "-1", addr "{p}" + $window),
                    p = in(reg) p,
                    bits = lateout(reg) bits,
                    register = sym register,
                    options(nostack, readonly, preserves_flags),
                );
            }
            if bits >> 63 != 0 {
                return Err(Faulted);
            }
            // SAFETY: either the load zero-extended, or it faulted and the top bit was set. Saves a second extension.
            unsafe { core::hint::assert_unchecked(bits >> (8 * T::SIZE) == 0) };
            Ok(T::from_bits(bits))
        }};
    }
    match T::SIZE {
        1 => narrow!("ldrb", "1"),
        2 => narrow!("ldrh", "2"),
        4 => narrow!("ldr", "4"),
        _ => {
            let bits: u64;
            let alive: usize;
            // SAFETY: as the narrow ones.
            unsafe {
                asm!(
                    "2: ldr {bits}, [{p}]",
                    "3:",
                    recovery!("2b" => "3b", set "{p}" = "0", addr "{p}" + "8"),
                    p = inlateout(reg) p => alive,
                    bits = out(reg) bits,
                    register = sym register,
                    options(nostack, readonly, preserves_flags),
                );
            }
            if alive == 0 { Err(Faulted) } else { Ok(T::from_bits(bits)) }
        }
    }
}

/// One store.
///
/// # Safety
///
/// `raw`'s contract.
#[inline(always)]
pub(crate) unsafe fn store<T: Primitive>(p: *mut T, value: T) -> Result<(), Faulted> {
    let alive: usize;
    macro_rules! sized {
        ($instruction:literal, $window:literal) => {
            // SAFETY: one store within `raw`'s contract, which allows any other writer.
            unsafe {
                asm!(
                    concat!("2: ", $instruction, ", [{p}]"),
                    "3:",
                    recovery!("2b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                    p = inlateout(reg) p => alive,
                    value = in(reg) value.to_bits(),
                    register = sym register,
                    options(nostack, preserves_flags),
                );
            }
        };
    }
    match T::SIZE {
        1 => sized!("strb {value:w}", "1"),
        2 => sized!("strh {value:w}", "2"),
        4 => sized!("str {value:w}", "4"),
        _ => sized!("str {value:x}", "8"),
    }
    if alive == 0 { Err(Faulted) } else { Ok(()) }
}

/// Stores `new` if the memory holds `old`; otherwise `Ok(Err(what it holds))`.
///
/// # Safety
///
/// `raw`'s contract.
#[inline]
pub(crate) unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: T, new: T) -> Result<Result<T, T>, Faulted> {
    let alive: usize;
    let before: u64;
    macro_rules! sized {
        ($suffix:literal, $width:literal, $window:literal) => {
            // SAFETY: an exclusive pair within `raw`'s contract, which allows any other writer. Both zero-extended
            // values are compared whole.
            unsafe {
                asm!(
                    concat!("2: ldaxr", $suffix, " {before:", $width, "}, [{p}]"),
                    "cmp {before}, {old}",
                    "b.ne 3f",
                    concat!("4: stlxr", $suffix, " {refused:w}, {new:", $width, "}, [{p}]"),
                    "cbnz {refused:w}, 2b",
                    "3:",
                    recovery!("2b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                    recovery!("4b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                    p = inout(reg) p => alive,
                    old = in(reg) old.to_bits(),
                    new = in(reg) new.to_bits(),
                    before = out(reg) before,
                    refused = out(reg) _,
                    register = sym register,
                    options(nostack),
                );
            }
        };
    }
    match T::SIZE {
        1 => sized!("b", "w", "1"),
        2 => sized!("h", "w", "2"),
        4 => sized!("", "w", "4"),
        _ => sized!("", "x", "8"),
    }
    let before = T::from_bits(before);
    match alive {
        0 => Err(Faulted),
        _ if before == old => Ok(Ok(before)),
        _ => Ok(Err(before)),
    }
}

/// The operations that store whatever the memory held before.
macro_rules! exchange {
    ($(#[$doc:meta])* $name:ident, $compute:literal) => {
        $(#[$doc])*
        #[inline]
        pub(crate) unsafe fn $name<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
            let alive: usize;
            let before: u64;
            macro_rules! sized {
                ($suffix:literal, $width:literal, $window:literal) => {
                    // SAFETY: an exclusive pair within `raw`'s contract, which allows any other writer.
                    unsafe {
                        asm!(
                            concat!("2: ldaxr", $suffix, " {before:", $width, "}, [{p}]"),
                            $compute,
                            concat!("4: stlxr", $suffix, " {refused:w}, {new:", $width, "}, [{p}]"),
                            "cbnz {refused:w}, 2b",
                            "3:",
                            recovery!("2b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                            recovery!("4b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                            p = inout(reg) p => alive,
                            value = in(reg) value.to_bits(),
                            before = out(reg) before,
                            new = out(reg) _,
                            refused = out(reg) _,
                            register = sym register,
                            options(nostack, preserves_flags),
                        );
                    }
                };
            }
            match T::SIZE {
                1 => sized!("b", "w", "1"),
                2 => sized!("h", "w", "2"),
                4 => sized!("", "w", "4"),
                _ => sized!("", "x", "8"),
            }
            if alive == 0 { Err(Faulted) } else { Ok(T::from_bits(before)) }
        }
    };
}

exchange! {
    /// Stores `value`; returns the value before.
    ///
    /// # Safety
    ///
    /// `raw`'s contract.
    swap, "mov {new}, {value}"
}
exchange! {
    /// Adds `value`, wrapping around; returns the value before.
    ///
    /// # Safety
    ///
    /// `raw`'s contract.
    fetch_add, "add {new}, {before}, {value}"
}
