//! SIGBUS and SIGSEGV: how an access to revoked memory returns an error.
//!
//! The handler asks one question: did this fault happen in one of the crate's accesses, at an address that this access may
//! touch? If so, the thread goes on after the access. Every other signal goes to the earlier handler of that signal, as the
//! kernel would have delivered it: with that handler's calling convention, mask and flags, or to the default action with
//! the right signal.
//!
//! The guide has a page for programs with [signals of their own](crate::guide::signals). The rules for a process:
//!
//! * A thread that accesses revocable memory does not block SIGBUS or SIGSEGV: the kernel kills a thread whose synchronous
//!   signal is blocked. That includes handlers of these two signals, which block their own signal unless they are
//!   installed with `SA_NODEFER`.
//! * A handler that is installed later may call the one that it replaced for signals that it does not know, with the
//!   arguments that it got. Whether it does cannot be seen from outside: see below.
//! * The handler runs on the thread's alternate stack if it has one, and so do the earlier handlers that it calls. Beside the
//!   kernel's frame (`AT_MINSIGSTKSZ` in getauxval(3); 3.4 KiB on x86-64 with AVX-512 or protection keys) it takes at most
//!   1.5 KiB, and 0.5 KiB of that while an earlier handler runs. An earlier handler that uses an accessor needs room for a
//!   second frame and 1 KiB more: the 8 KiB of Rust's threads are enough for one such handler.
//!
//! # Handlers that are installed later
//!
//! A later handler over the crate's, or a signal that was reset to its default, is noticed when a region is built and
//! before each change to disabled (one sigaction(2) for each signal, 0.2 us). The crate's handler is then installed again,
//! in front, and passes signals on to the one that it found there. If that one calls the crate's in turn, the signal goes
//! to the handler before it, and so on, down to the default action: each handler sees a signal once, and none calls itself
//! in a circle. A handler that removes itself, by putting back what it had replaced, stays removed. Until the next
//! `disable()`, a new handler that does not chain may get the fault of a revoked access; call [`install`] after installing
//! one.
//!
//! None of this happens after [`own_handlers`].
//!
//! # Signal safety
//!
//! While the crate's handler runs, every other signal is blocked, except those that an instruction or a system call itself
//! raises (SIGILL, SIGTRAP, SIGFPE, SIGSYS). So no other handler, which might use an accessor, interrupts it. A fault of
//! the handler itself kills. An earlier handler runs with the mask that the kernel would have set for it alone.
//!
//! The accessors of [`Mapping`](crate::Mapping) and [`Register`](crate::Register) may be used in signal handlers; each says
//! so. Four rules apply there:
//!
//! * They may change errno, as system calls do. A handler restores it.
//! * Where an accessor waits ([`Mapping::read`](crate::Mapping::read), while the region is busy or under
//!   [`OnDisabled::Block`](crate::OnDisabled::Block)), the interrupted code waits too, with all its locks held: the
//!   application's, the allocator's. If the thread that changes the region needs one of those, both wait for ever. An
//!   accessor never waits for its own thread, nor with a lock of this crate held: it then returns
//!   [`AccessError::Reentrant`](crate::AccessError::Reentrant). The `try_` forms never wait.
//! * Where a change of state has failed half-way, the next access repairs its mapping, and may allocate to do so.
//! * In a shared object that was loaded by dlopen(3), a thread's first access may allocate its thread-local variables: make
//!   one access before the handler does.
//!
//! Calls that change a region, that make or drop regions, mappings, guards or pins, or that take a
//! [`CancelToken`](crate::CancelToken) are not for signal handlers.
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

/// Why the handlers could not be installed.
///
/// ```
/// use revocable_mmio::signal::{self, SignalError};
///
/// signal::install()?;
/// assert_eq!(signal::own_handlers(), Err(SignalError::Installed)); // too late
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

/// A memory error that the kernel reports early, wherever the thread happens to be (`BUS_MCEERR_AO` in sigaction(2)).
const BUS_MCEERR_AO: c_int = 5;

/// The process's own handlers call [`try_handle`]. A forked child inherits this, as it does the handlers.
static OWN: AtomicBool = AtomicBool::new(false);

/// The crate's handlers were installed. Inherited likewise.
static INSTALLED: AtomicBool = AtomicBool::new(false);

/// Held by the one thread that installs.
static INSTALLING: PerProcess<Mutex<()>> = PerProcess::new(|| Mutex::new(()));

/// Installs the crate's handlers of SIGBUS and SIGSEGV in front of all others, if they are not in front already. The crate
/// calls it when a region is built and before each change to disabled.
///
/// After [`own_handlers`] it does nothing. If sigaction(2) is refused after the handlers were installed (a seccomp filter),
/// they are assumed to be in place.
///
/// ```
/// # // SAFETY: the default action is no code of ours.
/// # unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGBUS, nix::sys::signal::SigHandler::SigDfl) }?;
/// // After another library has installed a handler of SIGBUS that does not chain:
/// revocable_mmio::signal::install()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`SignalError::Sigaction`]: a sandbox forbids sigaction(2).
///
/// # Signal safety
///
/// Not for signal handlers.
pub fn install() -> Result<(), SignalError> {
    const BOTH: [c_int; 2] = [SIGBUS, SIGSEGV];
    // The model's kernel has no signals, nor has Miri.
    if cfg!(any(miri, all(test, revocable_model))) || OWN.load(Ordering::SeqCst) {
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

/// Promises that the process's own handlers of SIGBUS and SIGSEGV call [`try_handle`]; the crate then never installs any. A
/// forked child inherits the promise.
///
/// Install them with a full `sa_mask`: another handler that interrupts them and uses an accessor would end the process.
///
/// If the promise is not kept, the process dies of SIGBUS at the first access to revoked memory.
///
/// ```
/// use nix::libc::{c_int, c_void, siginfo_t};
/// use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
/// use revocable_mmio::{AccessError, MapOptions, Region, signal};
///
/// extern "C" fn on_fault(number: c_int, info: *mut siginfo_t, context: *mut c_void) {
///     // SAFETY: the kernel's arguments.
///     if !unsafe { signal::try_handle(number, info, context) } {
///         std::process::abort(); // or the program's own business
///     }
/// }
///
/// signal::own_handlers()?; // before the first region
/// let action = SigAction::new(SigHandler::SigAction(on_fault), SaFlags::SA_ONSTACK, SigSet::all());
/// for number in [Signal::SIGBUS, Signal::SIGSEGV] {
///     // SAFETY: `on_fault` is async-signal-safe.
///     unsafe { sigaction(number, &action) }?;
/// }
/// let region = Region::builder(4096).build()?;
/// let mapping = region.map(MapOptions::new())?;
/// region.disable()?;
/// assert!(matches!(mapping.read::<u8>(0), Err(AccessError::Disabled { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`SignalError::Installed`]: the crate's handlers are installed already.
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
/// `true`: the context was changed so that the thread goes on after the access; return from the handler at once. `false`:
/// nothing was changed, the signal is not about one of the accesses.
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

/// True if the kernel raised the signal for the instruction at the program counter; false if it was sent.
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
