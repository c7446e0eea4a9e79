//! The interrupted thread's registers, as the kernel saved them.
#![expect(unsafe_code, reason = "edits the context that a signal handler was given")]
// UNSAFETY: reads and writes the ucontext that the kernel hands to a handler.

use crate::raw::table;
use core::ffi::c_int;
use nix::libc::{self, ucontext_t};

/// The index of each register in the saved context, by its number in an instruction's encoding.
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// True if the fault at `address` was in one of this crate's accesses; the thread then goes on after it.
///
/// # Safety
///
/// `context` is what the kernel passed to the handler of this fault, and nothing else refers to it.
pub(crate) unsafe fn recover(address: usize, context: *mut ucontext_t) -> bool {
    // SAFETY: the caller's contract.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let Some(entry) = table::find(address_in(registers[RIP])) else {
        return false;
    };
    let region_side = address_in(registers[index(entry.addr)]);
    if address.wrapping_sub(region_side) >= usize::from(entry.window) {
        return false;
    }
    registers[index(entry.set)] = entry.value.into();
    registers[RIP] = i64::from_ne_bytes(entry.target().to_ne_bytes());
    true
}

const RIP: usize = libc::REG_RIP.unsigned_abs() as usize;

fn index(register: u8) -> usize {
    REGISTERS[usize::from(register % 16)].unsigned_abs() as usize
}

fn address_in(register: i64) -> usize {
    usize::from_ne_bytes(register.to_ne_bytes())
}
