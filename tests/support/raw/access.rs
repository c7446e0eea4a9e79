//! Single instructions at an address, as a driver or a guest executes them. Each returns its value, or the signal that it got.
//!
//! UNSAFETY: accesses by address, which the tests take from live mappings (or know to be refused).
#![expect(unsafe_code, reason = "raw accesses")]

use super::catch::{Hit, outcome, resume};
use std::arch::asm;

/// The one instruction between the labels.
#[cfg(target_arch = "x86_64")]
macro_rules! one {
    ($text:literal, $($operands:tt)*) => {
        // SAFETY: if the instruction faults, the handler continues at label 2; the slot is this thread's.
        unsafe {
            asm!("lea {scratch}, [rip + 2f]", "mov [{slot}], {scratch}", $text, "2:",
                scratch = out(reg) _, slot = in(reg) resume(), $($operands)*, options(nostack))
        }
    };
}

/// The one instruction between the labels.
#[cfg(target_arch = "aarch64")]
macro_rules! one {
    ($text:literal, $($operands:tt)*) => {
        // SAFETY: if the instruction faults, the handler continues at label 2; the slot is this thread's.
        unsafe {
            asm!("adr {scratch}, 2f", "str {scratch}, [{slot}]", $text, "2:",
                scratch = out(reg) _, slot = in(reg) resume(), $($operands)*, options(nostack))
        }
    };
}

macro_rules! accesses {
    ($load:ident, $store:ident, $ty:ty, $x86_load:literal, $x86_store:literal, $arm_load:literal, $arm_store:literal) => {
        /// One load.
        pub(crate) fn $load(addr: usize) -> Result<$ty, Hit> {
            let mut value: u64 = 0;
            #[cfg(target_arch = "x86_64")]
            one!($x86_load, p = in(reg) addr, v = inout(reg) value);
            #[cfg(target_arch = "aarch64")]
            one!($arm_load, p = in(reg) addr, v = inout(reg) value);
            let bytes = value.to_le_bytes();
            outcome(<$ty>::from_le_bytes(std::array::from_fn(|i| bytes[i])))
        }

        /// One store.
        pub(crate) fn $store(addr: usize, value: $ty) -> Result<(), Hit> {
            let value = u64::from(value);
            #[cfg(target_arch = "x86_64")]
            one!($x86_store, p = in(reg) addr, v = in(reg) value);
            #[cfg(target_arch = "aarch64")]
            one!($arm_store, p = in(reg) addr, v = in(reg) value);
            outcome(())
        }
    };
}

accesses!(load8, store8, u8, "mov {v:l}, [{p}]", "mov [{p}], {v:l}", "ldrb {v:w}, [{p}]", "strb {v:w}, [{p}]");
accesses!(load16, store16, u16, "mov {v:x}, [{p}]", "mov [{p}], {v:x}", "ldrh {v:w}, [{p}]", "strh {v:w}, [{p}]");
accesses!(load32, store32, u32, "mov {v:e}, [{p}]", "mov [{p}], {v:e}", "ldr {v:w}, [{p}]", "str {v:w}, [{p}]");
accesses!(load64, store64, u64, "mov {v:r}, [{p}]", "mov [{p}], {v:r}", "ldr {v:x}, [{p}]", "str {v:x}, [{p}]");

/// One load of 1, 2, 4 or 8 bytes.
pub(crate) fn load(at: *const u8, width: usize) -> Result<u64, Hit> {
    let addr = at.expose_provenance();
    match width {
        1 => load8(addr).map(u64::from),
        2 => load16(addr).map(u64::from),
        4 => load32(addr).map(u64::from),
        8 => load64(addr),
        _ => panic!("no load of {width} bytes"),
    }
}

/// One store of the lowest 1, 2, 4 or 8 bytes.
pub(crate) fn store(at: *mut u8, width: usize, value: u64) -> Result<(), Hit> {
    let (addr, [b0, b1, b2, b3, ..]) = (at.expose_provenance(), value.to_le_bytes());
    match width {
        1 => store8(addr, b0),
        2 => store16(addr, u16::from_le_bytes([b0, b1])),
        4 => store32(addr, u32::from_le_bytes([b0, b1, b2, b3])),
        8 => store64(addr, value),
        _ => panic!("no store of {width} bytes"),
    }
}

/// `lock xadd`; returns the value before.
#[cfg(target_arch = "x86_64")]
pub(crate) fn exchange_add(at: *mut u8, value: u64) -> Result<u64, Hit> {
    let mut old = value;
    one!("lock xadd [{p}], {v}", p = in(reg) at, v = inout(reg) old);
    outcome(old)
}

/// `lock cmpxchg`; returns the value before.
#[cfg(target_arch = "x86_64")]
pub(crate) fn compare_exchange(at: *mut u8, old: u64, new: u64) -> Result<u64, Hit> {
    let mut found = old;
    one!("lock cmpxchg [{p}], {v}", p = in(reg) at, v = in(reg) new, inout("rax") found);
    outcome(found)
}

/// `rep movsb` of `len` bytes out of region memory.
#[cfg(target_arch = "x86_64")]
pub(crate) fn copy_from(at: *const u8, len: usize) -> Result<(), Hit> {
    let mut buffer = vec![0u8; len];
    let to = buffer.as_mut_ptr();
    one!("rep movsb", inout("rsi") at => _, inout("rdi") to => _, inout("rcx") len => _);
    outcome(())
}

/// An instruction fetch. Only for memory that cannot be executed.
#[cfg(target_arch = "x86_64")]
pub(crate) fn execute(at: *const u8) -> Result<(), Hit> {
    // The fault in the fetch comes after the return address was pushed: the stack pointer is put back.
    // SAFETY: the handler continues at label 2; nothing is ever executed at the address.
    unsafe {
        asm!("lea {scratch}, [rip + 2f]", "mov [{slot}], {scratch}", "mov r12, rsp", "call {p}", "2:", "mov rsp, r12",
            scratch = out(reg) _, slot = in(reg) resume(), p = in(reg) at, out("r12") _)
    };
    outcome(())
}
