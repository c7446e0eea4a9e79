//! Recoverable accesses on x86-64: ordinary `mov`s and locked instructions.
//!
//! Noticing a fault costs nothing while there is none. Up to 32 bits, the load zero-extends into a 64-bit register, and a
//! fault sets that register to all ones: its top bit is set, as in no value. 64-bit loads, stores and atomics have no bit
//! to spare, so a fault zeroes the register that held the address, and no region starts at 0.
//!
//! x86 keeps loads in order with loads and stores in order with stores; locked instructions are full fences.
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

/// The text that a code generation unit with accesses needs once: the numbers of the registers, as in an instruction's
/// encoding, and the initialiser that registers the table of the unit's linked object.
macro_rules! once_per_unit {
    () => {
        ".ifndef .Lrevocable_unit_{register}
        .set .Lrevocable_gpr_rax, 0
        .set .Lrevocable_gpr_rcx, 1
        .set .Lrevocable_gpr_rdx, 2
        .set .Lrevocable_gpr_rbx, 3
        .set .Lrevocable_gpr_rsp, 4
        .set .Lrevocable_gpr_rbp, 5
        .set .Lrevocable_gpr_rsi, 6
        .set .Lrevocable_gpr_rdi, 7
        .set .Lrevocable_gpr_r8, 8
        .set .Lrevocable_gpr_r9, 9
        .set .Lrevocable_gpr_r10, 10
        .set .Lrevocable_gpr_r11, 11
        .set .Lrevocable_gpr_r12, 12
        .set .Lrevocable_gpr_r13, 13
        .set .Lrevocable_gpr_r14, 14
        .set .Lrevocable_gpr_r15, 15
        .pushsection .text.revocable_mmio_register,\"ax\",@progbits
        .hidden __start_revocable_mmio_recovery_1
        .hidden __stop_revocable_mmio_recovery_1
        .set .Lrevocable_unit_{register}, 1
        9:
        endbr64
        lea rdi, [rip + __start_revocable_mmio_recovery_1]
        lea rsi, [rip + __stop_revocable_mmio_recovery_1]
        jmp {register}@PLT
        .popsection
        .pushsection .init_array,\"aw\",@init_array
        .balign 8
        .quad 9b
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
                    concat!("2: ", $instruction, " [{p}]"),
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
        1 => narrow!("movzx {bits:e}, byte ptr", "1"),
        2 => narrow!("movzx {bits:e}, word ptr", "2"),
        4 => narrow!("mov {bits:e}, dword ptr", "4"),
        _ => {
            let bits: u64;
            let alive: usize;
            // SAFETY: as the narrow ones.
            unsafe {
                asm!(
                    "2: mov {bits}, qword ptr [{p}]",
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
                    concat!("2: ", $instruction),
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
        1 => sized!("mov byte ptr [{p}], {value:l}", "1"),
        2 => sized!("mov word ptr [{p}], {value:x}", "2"),
        4 => sized!("mov dword ptr [{p}], {value:e}", "4"),
        _ => sized!("mov qword ptr [{p}], {value:r}", "8"),
    }
    if alive == 0 { Err(Faulted) } else { Ok(()) }
}

/// Stores `new` if the memory holds `old`, in one locked instruction; otherwise `Ok(Err(what it holds))`.
///
/// # Safety
///
/// `raw`'s contract.
#[inline(always)]
pub(crate) unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: T, new: T) -> Result<Result<T, T>, Faulted> {
    let alive: usize;
    let before: u64;
    macro_rules! sized {
        ($instruction:literal, $window:literal) => {
            // SAFETY: one locked instruction within `raw`'s contract, which allows any other writer.
            unsafe {
                asm!(
                    concat!("2: ", $instruction),
                    "3:",
                    recovery!("2b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                    p = inout(reg) p => alive,
                    new = in(reg) new.to_bits(),
                    inout("rax") old.to_bits() => before,
                    register = sym register,
                    options(nostack),
                );
            }
        };
    }
    match T::SIZE {
        1 => sized!("lock cmpxchg byte ptr [{p}], {new:l}", "1"),
        2 => sized!("lock cmpxchg word ptr [{p}], {new:x}", "2"),
        4 => sized!("lock cmpxchg dword ptr [{p}], {new:e}", "4"),
        _ => sized!("lock cmpxchg qword ptr [{p}], {new:r}", "8"),
    }
    let before = T::from_bits(before);
    match alive {
        0 => Err(Faulted),
        _ if before == old => Ok(Ok(before)),
        _ => Ok(Err(before)),
    }
}

/// The instructions that exchange a register with memory.
macro_rules! exchange {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) unsafe fn $name<T: AtomicPrimitive>(p: *mut T, value: T) -> Result<T, Faulted> {
            let alive: usize;
            let before: u64;
            macro_rules! sized {
                ($operands:literal, $window:literal) => {
                    // SAFETY: one locked instruction within `raw`'s contract, which allows any other writer.
                    unsafe {
                        asm!(
                            concat!("2: ", $instruction, " ", $operands),
                            "3:",
                            recovery!("2b" => "3b", set "{p}" = "0", addr "{p}" + $window),
                            p = inout(reg) p => alive,
                            value = inout(reg) value.to_bits() => before,
                            register = sym register,
                            options(nostack),
                        );
                    }
                };
            }
            match T::SIZE {
                1 => sized!("byte ptr [{p}], {value:l}", "1"),
                2 => sized!("word ptr [{p}], {value:x}", "2"),
                4 => sized!("dword ptr [{p}], {value:e}", "4"),
                _ => sized!("qword ptr [{p}], {value:r}", "8"),
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
    swap, "xchg"
}
exchange! {
    /// Adds `value`, wrapping around; returns the value before.
    ///
    /// # Safety
    ///
    /// `raw`'s contract.
    fetch_add, "lock xadd"
}
