//! The signals that aren't ours: who had them before gets them as the kernel would have delivered them.
#![expect(unsafe_code, reason = "sigaction, and calls of foreign handlers")]
// UNSAFETY: async-signal-safe libc functions, and other handlers called by the contract that they were installed with.

use super::{Earlier, SignalError, handler, is_fault};
use crate::access::raw;
use core::ffi::{c_int, c_void};
use core::mem::zeroed;
use core::ptr::{null, null_mut};
use nix::errno::Errno;
use nix::libc::{
    self, SA_NODEFER, SA_ONSTACK, SA_RESETHAND, SA_RESTART, SA_SIGINFO, SIG_DFL, SIG_IGN, sigaction, siginfo_t,
};

/// Puts the crate's handler in front of whatever handles `signal` now.
pub(super) fn install(signal: c_int) -> Result<(), SignalError> {
    let refused = |errno| SignalError::Sigaction { signal, errno };
    // The earlier action is stored before the handler that reads it is in place, and again in case that
    // another thread changed it in between.
    let seen = exchange(signal, None).map_err(refused)?;
    Earlier::of(signal).set(seen);
    let earlier = exchange(signal, Some(&ours(seen.sa_flags))).map_err(refused)?;
    if earlier.sa_sigaction != seen.sa_sigaction || earlier.sa_flags != seen.sa_flags {
        Earlier::of(signal).set(earlier);
    }
    raw::keep_loaded();
    Ok(())
}

/// The crate's action. Its mask is empty: beyond the signal itself nothing is blocked, so that the mask that an
/// earlier handler asked for can be added, and no more. Not `SA_NODEFER`: signals that are sent in quick succession
/// would nest until the stack is full. `SA_RESTART` as the earlier one: a sent signal then interrupts the same system
/// calls.
fn ours(earlier_flags: c_int) -> sigaction {
    // SAFETY: all zeroes is a valid sigaction, with an empty mask.
    let mut action: sigaction = unsafe { zeroed() };
    action.sa_sigaction = (handler as unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void)) as usize;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | (earlier_flags & SA_RESTART);
    action
}

/// Delivers a signal that isn't for this crate.
///
/// # Safety
///
/// The arguments of a handler that is running now, in the thread that the signal was delivered to.
pub(super) unsafe fn foreign(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last_raw();
    let slot = Earlier::of(signal);
    let earlier = match slot.get() {
        Some(action) if action.sa_flags & SA_RESETHAND != 0 => slot.take(),
        earlier => earlier,
    };
    // SAFETY: the caller's contract.
    let fault = is_fault(signal, unsafe { &*info });
    match earlier {
        Some(action) if action.sa_sigaction == SIG_IGN && !fault => {}
        Some(action) if action.sa_sigaction != SIG_IGN && action.sa_sigaction != SIG_DFL => {
            // As the kernel does it; the mask goes back to what it was when the outermost handler returns.
            // SAFETY: a valid set; only this thread's mask changes.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const action.sa_mask, null_mut()) };
            // SAFETY: a valid set and signal number.
            let in_mask = unsafe { libc::sigismember(&raw const action.sa_mask, signal) } == 1;
            if action.sa_flags & SA_NODEFER != 0 && !in_mask {
                unblock(signal);
            }
            Errno::set_raw(errno);
            // SAFETY: the handler was installed for this signal, with these flags, and gets what the kernel gave us.
            unsafe { call(action, signal, info, context) };
            stay(signal, slot);
            return;
        }
        // The default, or a fault that is ignored, which the kernel treats as the default.
        _ => {
            let _ = exchange(signal, Some(&default_action()));
            if !fault {
                // SAFETY: the caller's contract.
                unsafe { send_again(signal, info) };
            }
            // A fault happens again when the handler returns, and then kills, with the right address in the core.
        }
    }
    Errno::set_raw(errno);
}

/// Lets `signal` interrupt the rest of this handler.
fn unblock(signal: c_int) {
    // SAFETY: all zeroes is a valid, empty set.
    let mut only = unsafe { zeroed() };
    // SAFETY: a valid set and signal number.
    unsafe { libc::sigaddset(&raw mut only, signal) };
    // SAFETY: a valid set; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, null_mut()) };
}

/// Calls an earlier handler.
///
/// # Safety
///
/// `action` was installed for `signal` and is not SIG_DFL or SIG_IGN; the rest are a running handler's arguments.
unsafe fn call(action: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if action.sa_flags & SA_SIGINFO != 0 {
        // SAFETY: SA_SIGINFO says that it's such a function.
        let handler = unsafe {
            core::mem::transmute::<usize, unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(action.sa_sigaction)
        };
        // SAFETY: its own contract, with the kernel's arguments.
        unsafe { handler(signal, info, context) };
    } else {
        // SAFETY: without SA_SIGINFO it's such a function.
        let handler = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(c_int)>(action.sa_sigaction) };
        // SAFETY: its own contract.
        unsafe { handler(signal) };
    }
}

/// Keeps the crate's handler when an earlier one, called by it, reset the signal to its default: that was meant for
/// itself. (Rust's own handler does, for every signal that isn't a stack overflow.) The default action is then what
/// the crate passes signals on to.
fn stay(signal: c_int, slot: &Earlier) {
    let errno = Errno::last_raw();
    if let Ok(now) = exchange(signal, None) {
        if now.sa_sigaction == SIG_DFL {
            slot.reset();
            let _ = exchange(signal, Some(&ours(0)));
        }
    }
    Errno::set_raw(errno);
}

/// Sends a signal to this thread again, as it came, to meet the default action.
///
/// # Safety
///
/// `info` is valid.
unsafe fn send_again(signal: c_int, info: *mut siginfo_t) {
    // System calls, as what libc offers may be cached and stale in a forked child.
    // SAFETY: no arguments, can't fail.
    let process = unsafe { libc::syscall(libc::SYS_getpid) };
    // SAFETY: no arguments, can't fail.
    let thread = unsafe { libc::syscall(libc::SYS_gettid) };
    // SAFETY: valid arguments. A process may send itself any siginfo.
    let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) };
    if sent != 0 {
        // SAFETY: async-signal-safe.
        unsafe { libc::raise(signal) };
    }
}

fn default_action() -> sigaction {
    // SAFETY: all zeroes is a valid sigaction: SIG_DFL.
    unsafe { zeroed() }
}

/// `sigaction(2)`: the action before.
fn exchange(signal: c_int, new: Option<&sigaction>) -> Result<sigaction, Errno> {
    // SAFETY: all zeroes is a valid sigaction.
    let mut before: sigaction = unsafe { zeroed() };
    let new = new.map_or(null(), core::ptr::from_ref);
    // SAFETY: null or valid pointers; the new handler keeps to the rules of handlers, by this module's construction.
    let result = unsafe { sigaction(signal, new, &raw mut before) };
    Errno::result(result).map(|_| before)
}
