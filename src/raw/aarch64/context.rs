//! The interrupted thread's registers, as the kernel saved them.
#![expect(unsafe_code, reason = "edits the context that a signal handler was given")]
// UNSAFETY: reads and writes the ucontext that the kernel hands to a handler.

use crate::raw::table;
use nix::libc::ucontext_t;

/// True if the fault at `address` was in one of this crate's accesses; the thread then goes on after it.
///
/// # Safety
///
/// `context` is what the kernel passed to the handler of this fault, and nothing else refers to it.
pub(crate) unsafe fn recover(address: usize, context: *mut ucontext_t) -> bool {
    // SAFETY: the caller's contract.
    let context = unsafe { &mut (*context).uc_mcontext };
    let Some(entry) = table::find(usize::from_ne_bytes(context.pc.to_ne_bytes())) else {
        return false;
    };
    // Register 31 would be the stack pointer or zero; operands are never there.
    let region_side = context.regs[usize::from(entry.addr % 31)];
    if address.wrapping_sub(usize::from_ne_bytes(region_side.to_ne_bytes())) >= usize::from(entry.window) {
        return false;
    }
    context.regs[usize::from(entry.set % 31)] = i64::from(entry.value) as u64;
    context.pc = u64::from_ne_bytes(entry.target().to_ne_bytes());
    true
}
