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
//! * A handler that is installed later may call the one that it replaced for what it doesn't know, with the arguments that it
//!   got. Whether it does can't be seen from outside: see below.
//! * The handler runs on the thread's alternate stack if it has one, and so do the earlier handlers that it calls.
//!
//! # Handlers that are installed later
//!
//! A handler that was installed over the crate's, or a signal that was set back to its default, is noticed when a region is
//! built and before each change to disabled (one sigaction(2) for each signal, 0.2 us). The crate's handler is then
//! installed again, in front, and passes on to the one that it found there. If that one calls the crate's in turn, the signal
//! goes to what was there before it, and so on, down to the default action: each handler sees a signal once, and none calls
//! itself in a circle. A handler that takes itself out, by putting back what it had replaced, is out. Between its installation
//! and the next `disable()` a handler that doesn't chain may meet a revoked access; call [`install`] after installing one.
//!
//! None of this happens after [`own_handlers`].
//!
//! # Signal safety
//!
//! While the crate's handler runs every other signal is blocked, except those that an instruction or a system call raises by
//! itself (SIGILL, SIGTRAP, SIGFPE, SIGSYS): no other handler, which might use an accessor, interrupts it. A fault of the handler
//! itself kills. An earlier handler runs with the mask that the kernel would have set for it alone.
//!
//! The accessors of [`Mapping`](crate::Mapping) and [`Register`](crate::Register) may be used in signal handlers; each says so. Four
//! things to know there:
//!
//! * They may change errno, as system calls do. A handler puts it back.
//! * Where an accessor waits ([`Mapping::read`](crate::Mapping::read), while the region is busy or under
//!   [`OnDisabled::Block`](crate::OnDisabled::Block)), it keeps waiting what the handler has interrupted: a lock of the
//!   application, the allocator's. If the thread that changes the region needs that, both wait for ever. It never waits for its own
//!   thread, nor with a lock of this crate held: that is [`AccessError::Reentrant`](crate::AccessError::Reentrant). The `try_` forms
//!   never wait.
//! * Where a change of state has failed half-way, the next access mends its mapping, for which it may allocate.
//! * In a shared object that was loaded by dlopen(3) a thread's first access may allocate its thread-local variables: make one
//!   before the handler does.
//!
//! What changes a region, makes or drops something (regions, mappings, guards, pins) or takes a
//! [`CancelToken`](crate::CancelToken) is not for signal handlers.
#![expect(unsafe_code, reason = "signal handlers are C functions that get raw pointers")]
// UNSAFETY: the sigaction calls, and calls of other handlers by the contract that they were installed with.

use crate::raw;
use crate::sync::inside::Mutex;
use crate::sys::identity::PerProcess;
use core::ffi::{c_int, c_void};
// Not from `crate::sync`: a signal handler reads these, and the model checker's atomics aren't async-signal-safe.
use core::sync::atomic::{AtomicBool, Ordering};
use nix::errno::Errno;
use nix::libc::{SIGBUS, SIGSEGV, siginfo_t};

mod chain;
#[cfg(all(test, not(revocable_model)))]
pub(super) mod tests;

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

/// The process's own handlers ask. A forked child inherits this, as it does the handlers.
static OWN: AtomicBool = AtomicBool::new(false);

/// The crate's handlers were put in place. Inherited likewise.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// One thread at a time installs.
static INSTALLING: PerProcess<Mutex<()>> = PerProcess::new(|| Mutex::new(()));

/// Sees to it that the crate's handlers of SIGBUS and SIGSEGV are the ones in place, in front of whatever was installed
/// meanwhile. The crate calls it when a region is built and before each change to disabled.
///
/// After [`own_handlers`] it does nothing. Where sigaction(2) is refused once they are in place (a seccomp filter), they are
/// taken to be there still.
///
/// # Errors
///
/// [`SignalError::Sigaction`]: some sandbox forbids it.
///
/// # Signal safety
///
/// Not for signal handlers.
pub fn install() -> Result<(), SignalError> {
    const BOTH: [c_int; 2] = [SIGBUS, SIGSEGV];
    // The model's kernel has no signals.
    if cfg!(all(test, revocable_model)) || OWN.load(Ordering::SeqCst) {
        return Ok(());
    }
    let installed = INSTALLED.load(Ordering::SeqCst);
    if installed && BOTH.into_iter().all(|signal| chain::is_in_front(signal).unwrap_or(true)) {
        return Ok(());
    }
    let _installing = INSTALLING.get().lock();
    if OWN.load(Ordering::SeqCst) {
        return Ok(());
    }
    BOTH.into_iter().try_for_each(chain::install)?;
    INSTALLED.store(true, Ordering::SeqCst);
    raw::keep_loaded();
    Ok(())
}

/// Promises that the process's own handlers of SIGBUS and SIGSEGV call [`try_handle`]; the crate then never installs
/// any. A forked child inherits the promise.
///
/// Install them with a full `sa_mask`: a handler that interrupts them, and uses an accessor, would end the process.
///
/// A promise that isn't kept shows as a process that dies of SIGBUS at the first access to revoked memory.
///
/// # Errors
///
/// [`SignalError::Installed`]: too late.
pub fn own_handlers() -> Result<(), SignalError> {
    let _installing = INSTALLING.get().lock();
    if INSTALLED.load(Ordering::SeqCst) {
        return Err(SignalError::Installed);
    }
    OWN.store(true, Ordering::SeqCst);
    Ok(())
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

/// The handler. A C function with `SA_SIGINFO`, on the alternate stack. It may be called by a handler that it has called.
unsafe extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments, or those of a later handler that passes them on.
    if unsafe { try_handle(signal, info, context) } {
        return;
    }
    // SAFETY: likewise.
    unsafe { chain::foreign(signal, info, context) };
}
