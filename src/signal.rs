//! SIGBUS and SIGSEGV: how an access that met revoked memory comes back as an error.
//!
//! The handler asks one question: did this fault happen in one of the crate's accesses, at an address that this
//! access may touch? If so the thread goes on behind the access. Everything else belongs to whoever handled the
//! signal before, and reaches it as the kernel would have delivered it: its kind of handler, its mask, its flags, or
//! the default action with the right signal.
//!
//! What a process has to keep to:
//!
//! * A thread that accesses revocable memory doesn't block SIGBUS or SIGSEGV: the kernel kills a thread whose
//!   synchronous signal is blocked. That includes handlers of these two signals, which block their own unless they're
//!   installed with `SA_NODEFER`.
//! * A handler that is installed later either calls the one that it replaced for what it doesn't know, or calls
//!   [`try_handle`] first.
//! * The handler runs on the thread's alternate stack if it has one, and so do the earlier handlers that it calls.
#![expect(unsafe_code, reason = "signal handlers are C functions that get raw pointers")]
// UNSAFETY: the sigaction calls, and calls of other handlers by the contract that they were installed with.

use crate::access::raw;
use core::ffi::{c_int, c_void};
// Not from `crate::sync`: a signal handler reads these, and the model checker's atomics aren't async-signal-safe.
use core::sync::atomic::{AtomicPtr, Ordering};
use nix::errno::Errno;
use nix::libc::{SIGBUS, SIGSEGV, sigaction, siginfo_t};
use std::sync::OnceLock;

mod chain;
#[cfg(all(test, not(revocable_model)))]
mod tests;

/// Why the handlers are not in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignalError {
    /// The system call refused.
    #[error(
        "sigaction for signal {signal} failed: {errno}; call signal::try_handle from a handler of your own instead"
    )]
    Sigaction {
        /// The signal's number.
        signal: i32,
        /// Why.
        errno: Errno,
    },
    /// The crate's own handlers are already in place.
    #[error("the crate's signal handlers are installed already; call signal::own_handlers before the first access")]
    Installed,
}

/// A memory error that the kernel tells of early, wherever the thread happens to be (`BUS_MCEERR_AO` in sigaction(2)).
const BUS_MCEERR_AO: c_int = 5;

/// Whether, and how, the signals are taken care of.
static HANDLERS: OnceLock<Result<(), SignalError>> = OnceLock::new();

/// Installs the handlers of SIGBUS and SIGSEGV, once for the process. The crate calls it before the first access that
/// needs it.
///
/// After [`own_handlers`] it does nothing.
///
/// # Errors
///
/// [`SignalError::Sigaction`]: some sandbox forbids it.
pub fn install() -> Result<(), SignalError> {
    *HANDLERS.get_or_init(|| {
        chain::install(SIGBUS)?;
        chain::install(SIGSEGV)
    })
}

/// Promises that the process's own handlers of SIGBUS and SIGSEGV call [`try_handle`]; the crate then never installs
/// any.
///
/// A promise that isn't kept shows as a process that dies of SIGBUS at the first access to revoked memory.
///
/// # Errors
///
/// [`SignalError::Installed`]: too late.
pub fn own_handlers() -> Result<(), SignalError> {
    HANDLERS.set(Ok(())).map_err(|_| SignalError::Installed)
}

/// Recovers if the signal is the fault of one of this crate's accesses; for a program that has its own handlers.
///
/// `true`: the context was changed so that the thread goes on behind the access; return from the handler at once.
/// `false`: nothing was changed, the signal means something else.
///
/// # Signal safety
///
/// Async-signal-safe: no lock, no allocation, no system call; errno is kept.
///
/// # Safety
///
/// The arguments are those of a handler that was installed with `SA_SIGINFO` and is running now, in the thread that
/// the signal was delivered to.
pub unsafe fn try_handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) -> bool {
    if signal != SIGBUS && signal != SIGSEGV {
        return false;
    }
    // SAFETY: the caller's contract: a valid siginfo.
    let info = unsafe { &*info };
    if !is_fault(signal, info) {
        return false;
    }
    // SAFETY: synchronous SIGBUS and SIGSEGV carry an address.
    let address = unsafe { info.si_addr() }.addr();
    // SAFETY: the caller's contract: the context of this signal.
    unsafe { raw::recover(address, context.cast()) }
}

/// Whether the kernel raised the signal for the instruction at the program counter, rather than someone having sent it.
fn is_fault(signal: c_int, info: &siginfo_t) -> bool {
    info.si_code > 0 && !(signal == SIGBUS && info.si_code == BUS_MCEERR_AO)
}

/// The handler. A C function with `SA_SIGINFO`, on the alternate stack; it may nest, as it keeps no state.
unsafe extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments, or those of a later handler that passes them on.
    if unsafe { try_handle(signal, info, context) } {
        return;
    }
    // SAFETY: likewise.
    unsafe { chain::foreign(signal, info, context) };
}

/// What was installed before the crate's handler: a pointer to a leaked `sigaction`, so that a handler can read it.
struct Earlier(AtomicPtr<sigaction>);

static EARLIER_SIGBUS: Earlier = Earlier(AtomicPtr::new(core::ptr::null_mut()));
static EARLIER_SIGSEGV: Earlier = Earlier(AtomicPtr::new(core::ptr::null_mut()));

impl Earlier {
    fn of(signal: c_int) -> &'static Self {
        if signal == SIGBUS { &EARLIER_SIGBUS } else { &EARLIER_SIGSEGV }
    }

    /// The action; `None` is the default action.
    fn get(&self) -> Option<&'static sigaction> {
        // Acquire: partner of the Release in `set`.
        // SAFETY: null, or a leaked box that nobody writes any more.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// The action, with the default action in its place from now on: one caller gets it (`SA_RESETHAND`).
    fn take(&self) -> Option<&'static sigaction> {
        // SAFETY: as `get`.
        unsafe { self.0.swap(core::ptr::null_mut(), Ordering::AcqRel).as_ref() }
    }

    /// Not for signal handlers: it allocates.
    fn set(&self, action: sigaction) {
        self.0.store(Box::into_raw(Box::new(action)), Ordering::Release);
    }

    /// Back to the default action.
    fn reset(&self) {
        self.0.store(core::ptr::null_mut(), Ordering::Release);
    }
}
