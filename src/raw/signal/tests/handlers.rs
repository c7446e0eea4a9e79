//! Handlers that are not the crate's, as the scenarios install them.

use crate::raw::test_memory::{PAGE, bus, segv};
use crate::raw::{self, Faulted, signal};
use nix::libc::{self, c_int, c_void, siginfo_t};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

/// How often a handler was called.
pub(super) static CALLS: AtomicUsize = AtomicUsize::new(0);
/// The last signal that a handler was called for.
pub(super) static SEEN: AtomicI32 = AtomicI32::new(0);
/// An address for the handlers, each of which says what it is; 0 for none.
pub(super) static OPEN_UP: AtomicUsize = AtomicUsize::new(0);

/// A C library's handler: counts, and makes the page at `OPEN_UP` accessible so that the fault ends.
pub(super) extern "C" fn simple_handler(signal: c_int) {
    CALLS.fetch_add(1, SeqCst);
    SEEN.store(signal, SeqCst);
    let page = OPEN_UP.load(SeqCst);
    if page != 0 {
        unsafe { libc::mprotect(page as *mut c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
    }
}

/// The same with SA_SIGINFO; checks its arguments.
pub(super) extern "C" fn info_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    assert!(!context.is_null());
    let page = OPEN_UP.load(SeqCst);
    if page != 0 {
        assert_eq!(unsafe { (*info).si_addr() } as usize, page);
    }
    let mut mask = unsafe { std::mem::zeroed() };
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
    assert_eq!(unsafe { libc::sigismember(&raw const mask, signal) }, 1, "its own signal is blocked");
    assert_eq!(unsafe { libc::sigismember(&raw const mask, libc::SIGUSR2) }, 1, "its mask is in force");
    simple_handler(signal);
}

/// A foreign handler that uses the crate.
pub(super) extern "C" fn nesting_handler(signal: c_int) {
    let p = bus(PAGE);
    assert_eq!(unsafe { raw::load(p.cast::<u32>()) }, Err(Faulted));
    assert_eq!(unsafe { raw::store(p.cast::<u64>(), 1) }, Err(Faulted));
    simple_handler(signal);
}

/// Calls the handler that it replaced, at `OPEN_UP`, for every signal.
pub(super) extern "C" fn later_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    let earlier = unsafe {
        std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(OPEN_UP.load(SeqCst))
    };
    earlier(signal, info, context);
}

/// A VMM's own: asks the crate, and aborts for a fault that is not the crate's.
pub(super) extern "C" fn vmm_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    if !unsafe { signal::try_handle(signal, info, context) } {
        std::process::abort();
    }
}

/// An asynchronous handler that uses the crate, on the revoked memory at `OPEN_UP`.
pub(super) extern "C" fn accesses(_: c_int) {
    CALLS.fetch_add(1, SeqCst);
    assert_eq!(unsafe { raw::load((OPEN_UP.load(SeqCst) as *const u32).wrapping_add(1)) }, Err(Faulted));
}

/// A handler that does not know the crate: ends the process.
pub(super) extern "C" fn vmm_without_us(_: c_int) {
    std::process::abort();
}

/// Sets a disposition; returns the one before.
pub(super) fn set_handler(signal: c_int, handler: usize, flags: c_int) -> usize {
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    unsafe { libc::sigaddset(&raw mut action.sa_mask, libc::SIGUSR2) };
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, &raw mut before) }, 0);
    before.sa_sigaction
}

/// A fault that is not the crate's.
pub(super) fn foreign_fault(p: *mut u8) {
    unsafe { p.write_volatile(1) };
}

/// Both signals are recovered from.
pub(super) fn recovers() {
    assert_eq!(unsafe { raw::load(bus(PAGE)) }, Err(Faulted));
    assert_eq!(unsafe { raw::load(segv(PAGE)) }, Err(Faulted));
}

/// Installs the handlers; returns from the test, saying why, where the portable accessors are built: nothing recovers there.
macro_rules! needs_recovery {
    () => {
        if !$crate::raw::RECOVERABLE {
            eprintln!("skipped: this build has no recoverable accesses (they hold a guard instead)");
            return;
        }
        $crate::raw::signal::install().unwrap();
    };
}

pub(in crate::raw) use needs_recovery;
