//! Handlers that are not the crate's, as the scenarios install them.

use crate::raw::test_memory::{PAGE, bus, segv};
use crate::raw::{self, Faulted, signal};
use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};

/// A handler that was installed with SA_SIGINFO.
pub(super) type Info = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

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
        // SAFETY: a page that only the scenario knows, and that only its interrupted access uses.
        unsafe { libc::mprotect(page as *mut c_void, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
    }
}

/// The same with SA_SIGINFO; checks its arguments.
pub(super) extern "C" fn info_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    assert!(!context.is_null());
    let page = OPEN_UP.load(SeqCst);
    if page != 0 {
        // SAFETY: the siginfo of this signal, from the kernel or from the handler that passes it on.
        let info = unsafe { &*info };
        // SAFETY: the signal is a fault's, so it has an address.
        assert_eq!(unsafe { info.si_addr() } as usize, page);
    }
    let mask = SigSet::thread_get_mask().unwrap();
    assert!(mask.contains(Signal::try_from(signal).unwrap()), "its own signal is blocked");
    assert!(mask.contains(Signal::SIGUSR2), "its mask is in force");
    simple_handler(signal);
}

/// A foreign handler that uses the crate.
pub(super) extern "C" fn nesting_handler(signal: c_int) {
    let p = bus(PAGE);
    // SAFETY: `raw`'s contract: the start of a page that only this call knows.
    assert_eq!(unsafe { raw::load(p.cast::<u32>()) }, Err(Faulted));
    // SAFETY: `raw`'s contract: the start of a page that only this call knows.
    assert_eq!(unsafe { raw::store(p.cast::<u64>(), 1) }, Err(Faulted));
    simple_handler(signal);
}

/// Calls the handler that it replaced, at `OPEN_UP`, for every signal.
pub(super) extern "C" fn later_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    // SAFETY: the address of the crate's handler, which takes these arguments.
    let earlier = unsafe { std::mem::transmute::<usize, Info>(OPEN_UP.load(SeqCst)) };
    earlier(signal, info, context);
}

/// A VMM's own: asks the crate, and aborts for a fault that is not the crate's.
pub(super) extern "C" fn vmm_handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    CALLS.fetch_add(1, SeqCst);
    // SAFETY: the kernel's arguments; this handler is installed with SA_SIGINFO.
    if !unsafe { signal::try_handle(signal, info, context) } {
        std::process::abort();
    }
}

/// An asynchronous handler that uses the crate, on the revoked memory at `OPEN_UP`.
pub(super) extern "C" fn accesses(_: c_int) {
    CALLS.fetch_add(1, SeqCst);
    let p = OPEN_UP.load(SeqCst) as *const u32;
    // SAFETY: `raw`'s contract: an aligned address in a page of the scenario's, which stays mapped.
    assert_eq!(unsafe { raw::load(p.wrapping_add(1)) }, Err(Faulted));
}

/// A handler that does not know the crate: ends the process.
pub(super) extern "C" fn vmm_without_us(_: c_int) {
    std::process::abort();
}

/// The default action, without flags and with an empty mask.
pub(super) fn no_action() -> libc::sigaction {
    // SAFETY: all zeroes is a valid sigaction.
    unsafe { std::mem::zeroed() }
}

/// Adds a signal to a set; one that nix has no name for, too.
pub(super) fn add(set: &mut libc::sigset_t, signal: c_int) {
    // SAFETY: a live set.
    assert_eq!(unsafe { libc::sigaddset(set, signal) }, 0);
}

/// Sends a signal to the calling thread.
pub(super) fn raise(signal: c_int) {
    // SAFETY: a system call on a number; what handles the signal is the scenario's business.
    assert_eq!(unsafe { libc::raise(signal) }, 0);
}

/// Sets a disposition; returns the one before.
pub(super) fn set_handler(signal: c_int, handler: usize, flags: c_int) -> usize {
    let mut action = no_action();
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    add(&mut action.sa_mask, libc::SIGUSR2);
    let mut before = no_action();
    // SAFETY: a valid action, whose handler takes the arguments that its flags ask for; all handlers of the scenarios may
    // interrupt any code of theirs.
    assert_eq!(unsafe { libc::sigaction(signal, &raw const action, &raw mut before) }, 0);
    before.sa_sigaction
}

/// A fault that is not the crate's.
pub(super) fn foreign_fault(p: *mut u8) {
    // SAFETY: a page that only the scenario knows. The instruction faults; a handler opens the page up, or the process ends.
    unsafe { p.write_volatile(1) };
}

/// Both signals are recovered from.
pub(super) fn recovers() {
    // SAFETY: `raw`'s contract: the start of a page that only this call knows.
    assert_eq!(unsafe { raw::load(bus(PAGE)) }, Err(Faulted));
    // SAFETY: `raw`'s contract: the start of a page that only this call knows.
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
