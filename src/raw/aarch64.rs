//! Recoverable accesses on aarch64: plain loads and stores, and exclusive pairs for the atomic operations.
//!
//! Loads and stores are unordered, like volatile ones; the atomic operations acquire and release. Exclusive pairs
//! need normal memory: on device memory the architecture doesn't promise them, nor accesses that aren't aligned,
//! which the bulk copies make.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::contract::Accesses;
use super::table::text::{access_by_size, loads_and_stores};
use super::{AtomicPrimitive, Faulted, Primitive};

mod bulk;
mod context;

pub(crate) use super::table::{RECOVERABLE, keep_loaded, recover};

/// The numbers of the registers.
macro_rules! register_numbers {
    () => {
        ".irp number,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
        .set .Lrevocable_gpr_x\\number, \\number
        .endr"
    };
}
pub(super) use register_numbers;

/// Calls `register` with the bounds of the table.
macro_rules! hand_over {
    () => {
        "hint #34
        adrp x0, __start_revocable_mmio_recovery_1
        add x0, x0, :lo12:__start_revocable_mmio_recovery_1
        adrp x1, __stop_revocable_mmio_recovery_1
        add x1, x1, :lo12:__stop_revocable_mmio_recovery_1
        b {register}"
    };
}
pub(super) use hand_over;

/// The instructions.
pub(super) enum Cpu {}

/// An exclusive pair for the size of `$T`, with `$compute` in between. Either of the pair may fault.
macro_rules! exclusive_pair {
    ($compute:literal, $T:ty, at $p:ident, [$($option:ident),+], $($operands:tt)+) => {
        access_by_size!(
            [
                exclusive_pair!("b", "w", $compute),
                exclusive_pair!("h", "w", $compute),
                exclusive_pair!("", "w", $compute),
                exclusive_pair!("", "x", $compute)
            ],
            $T, at $p, faults at ["2b", "4b"],
            $($operands)+
            refused = out(reg) _,
            options($($option),+),
        )
    };
    ($suffix:literal, $width:literal, $compute:literal) => {
        concat!(
            "ldaxr", $suffix, " {before:", $width, "}, [{p}]\n",
            $compute, "\n",
            "4: stlxr", $suffix, " {refused:w}, {new:", $width, "}, [{p}]\n",
            "cbnz {refused:w}, 2b"
        )
    };
}

/// An operation that stores whatever the memory held before.
macro_rules! exchange {
    ($name:ident, $compute:literal) => {
        #[inline]
        unsafe fn $name<T: AtomicPrimitive>(p: *mut T, value: u64) -> Result<u64, Faulted> {
            let before;
            exclusive_pair!(
                $compute, T, at p, [nostack, preserves_flags],
                value = in(reg) value,
                before = out(reg) before,
                new = out(reg) _,
            )?;
            Ok(before)
        }
    };
}

impl Accesses for Cpu {
    loads_and_stores! {
        load: "ldrb {bits:w}, [{p}]", "ldrh {bits:w}, [{p}]", "ldr {bits:w}, [{p}]", "ldr {bits:x}, [{p}]";
        store: "strb {value:w}, [{p}]", "strh {value:w}, [{p}]", "str {value:w}, [{p}]", "str {value:x}, [{p}]";
    }

    /// Compares the zero-extended values whole.
    #[inline]
    unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: u64, new: u64) -> Result<u64, Faulted> {
        let before;
        exclusive_pair!(
            "cmp {before}, {old}\nb.ne 3f", T, at p, [nostack],
            old = in(reg) old,
            new = in(reg) new,
            before = out(reg) before,
        )?;
        Ok(before)
    }

    exchange!(swap, "mov {new}, {value}");
    exchange!(fetch_add, "add {new}, {before}, {value}");
}
