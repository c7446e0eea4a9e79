//! Recoverable accesses on x86-64: ordinary `mov`s and locked instructions.
//!
//! x86 orders loads with loads and stores with stores by itself; locked instructions are full fences.
#![expect(unsafe_code, reason = "inline assembly")]
// UNSAFETY: the instructions that `raw`'s contract is about.

use super::contract::Accesses;
use super::table::text::{access_by_size, loads_and_stores};
use super::{AtomicPrimitive, Faulted, Primitive};

mod bulk;
mod context;

pub(crate) use super::table::{RECOVERABLE, keep_loaded, recover};

/// The numbers of the registers, as in an instruction's encoding.
macro_rules! register_numbers {
    () => {
        ".set .Lrevocable_gpr_rax, 0
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
        .set .Lrevocable_gpr_r15, 15"
    };
}
pub(super) use register_numbers;

/// Calls `register` with the bounds of the table.
macro_rules! hand_over {
    () => {
        "endbr64
        lea rdi, [rip + __start_revocable_mmio_recovery_1]
        lea rsi, [rip + __stop_revocable_mmio_recovery_1]
        jmp {register}@PLT"
    };
}
pub(super) use hand_over;

/// The instructions.
pub(super) enum Cpu {}

/// An instruction that exchanges a register with memory.
macro_rules! exchange {
    ($name:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $name<T: AtomicPrimitive>(p: *mut T, value: u64) -> Result<u64, Faulted> {
            let before;
            access_by_size!(
                [
                    concat!($instruction, " byte ptr [{p}], {value:l}"),
                    concat!($instruction, " word ptr [{p}], {value:x}"),
                    concat!($instruction, " dword ptr [{p}], {value:e}"),
                    concat!($instruction, " qword ptr [{p}], {value:r}")
                ],
                T, at p, faults at ["2b"],
                value = inout(reg) value => before,
                options(nostack),
            )?;
            Ok(before)
        }
    };
}

impl Accesses for Cpu {
    loads_and_stores! {
        load: "movzx {bits:e}, byte ptr [{p}]", "movzx {bits:e}, word ptr [{p}]",
            "mov {bits:e}, dword ptr [{p}]", "mov {bits:r}, qword ptr [{p}]";
        store: "mov byte ptr [{p}], {value:l}", "mov word ptr [{p}], {value:x}",
            "mov dword ptr [{p}], {value:e}", "mov qword ptr [{p}], {value:r}";
    }

    #[inline(always)]
    unsafe fn compare_exchange<T: AtomicPrimitive>(p: *mut T, old: u64, new: u64) -> Result<u64, Faulted> {
        let before;
        access_by_size!(
            [
                "lock cmpxchg byte ptr [{p}], {new:l}",
                "lock cmpxchg word ptr [{p}], {new:x}",
                "lock cmpxchg dword ptr [{p}], {new:e}",
                "lock cmpxchg qword ptr [{p}], {new:r}"
            ],
            T, at p, faults at ["2b"],
            new = in(reg) new,
            inout("rax") old => before,
            options(nostack),
        )?;
        Ok(before)
    }

    exchange!(swap, "xchg");
    exchange!(fetch_add, "lock xadd");
}
