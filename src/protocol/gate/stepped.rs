//! A signal after each instruction, for tests of what handlers find.
//!
//! UNSAFETY: the processor's trap flag, and a handler for its signal.
#![expect(unsafe_code, reason = "the trap flag has no safe form")]

use core::arch::asm;
use nix::libc::c_int;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::{Mutex, PoisonError};

/// Runs `run`, and the handler after each of its instructions. The handler has to be async-signal-safe.
pub(super) fn stepped(handler: extern "C" fn(c_int), run: impl FnOnce()) {
    // One at a time: the handler is the process's.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let action = SigAction::new(SigHandler::Handler(handler), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is async-signal-safe, and nothing else in these tests has this signal.
    let before = unsafe { sigaction(Signal::SIGTRAP, &action) }.unwrap();
    // SAFETY: sets the trap flag, which the handler's frame does not have.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    run();
    // SAFETY: clears it.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    // SAFETY: as it was.
    unsafe { sigaction(Signal::SIGTRAP, &before) }.unwrap();
}
