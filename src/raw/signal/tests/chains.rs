//! Handlers that are installed over the crate's: the crate's goes in front again, and each is called once.

use super::handlers::{
    CALLS, Info, foreign_fault, no_action, raise, recovers, set_handler, simple_handler, vmm_handler, vmm_without_us,
};
use crate::raw::signal;
use crate::raw::test_memory::{PAGE, segv};
use nix::libc::{self, c_int, c_void, siginfo_t};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The handlers that `chain_x` and `chain_y` have displaced, and how often each was called.
static OVER: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static XY: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn chain(which: usize, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    assert!(XY[which].fetch_add(1, SeqCst) < 5, "it goes round");
    let over = OVER[which].load(SeqCst);
    // SAFETY: the address of the handler that this one has displaced: the crate's, or the other of the two. Both take these
    // arguments.
    let over = unsafe { std::mem::transmute::<usize, Info>(over) };
    over(signal, info, context);
}

extern "C" fn chain_x(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    chain(0, signal, info, context);
}

extern "C" fn chain_y(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    chain(1, signal, info, context);
}

/// What `takes_itself_out` has displaced.
// SAFETY: all zeroes is a valid sigaction.
static mut REPLACED: libc::sigaction = unsafe { std::mem::zeroed() };
static RAISES: AtomicUsize = AtomicUsize::new(0);

/// Like a crash reporter: puts back the handler that it replaced, which then gets the signal.
extern "C" fn takes_itself_out(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    assert!(CALLS.fetch_add(1, SeqCst) < 5, "it goes round");
    let replaced = &raw const REPLACED;
    // SAFETY: an action that was in force before; this thread, which writes it, is the one interrupted here.
    assert_eq!(unsafe { libc::sigaction(signal, replaced, null_mut()) }, 0);
    if RAISES.load(SeqCst) > 0 {
        raise(signal);
    }
}

/// Dispositions that do not know the crate: the first revoked access would end the process.
pub(super) fn displaced() {
    signal::install().unwrap();
    for disposition in [libc::SIG_DFL, libc::SIG_IGN, vmm_without_us as extern "C" fn(c_int) as usize] {
        for signal in [libc::SIGBUS, libc::SIGSEGV] {
            set_handler(signal, disposition, 0);
        }
        signal::install().unwrap();
        recovers();
    }
}

/// After the promise the crate leaves the process's own handlers alone.
pub(super) fn displaced_own() {
    signal::own_handlers().unwrap();
    let theirs = vmm_handler as extern "C" fn(_, _, _) as usize;
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        set_handler(signal, theirs, libc::SA_SIGINFO);
    }
    signal::install().unwrap();
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        assert_eq!(set_handler(signal, theirs, libc::SA_SIGINFO), theirs, "left alone, as promised");
    }
}

/// Two handlers and the crate's displace each other over and over.
pub(super) fn in_front_of_a_chain() {
    set_handler(libc::SIGBUS, simple_handler as extern "C" fn(c_int) as usize, 0);
    signal::install().unwrap();
    for round in 1..20 {
        // Each round displaces the crate's handler, and is displaced by it.
        let chains = [chain_x as extern "C" fn(_, _, _) as usize, chain_y as extern "C" fn(_, _, _) as usize];
        let which = usize::from(round % 3 == 0);
        let over = set_handler(libc::SIGBUS, chains[which], libc::SA_SIGINFO);
        OVER[which].store(over, SeqCst);
        for in_front in [false, true] {
            if in_front {
                signal::install().unwrap();
            }
            CALLS.store(0, SeqCst);
            XY.iter().for_each(|calls| calls.store(0, SeqCst));
            raise(libc::SIGBUS);
            assert_eq!(CALLS.load(SeqCst), 1, "the first, round {round} {in_front}");
            assert_eq!(XY[0].load(SeqCst), 1, "X, round {round} {in_front}");
            let y = usize::from(round >= 3);
            assert_eq!(XY[1].load(SeqCst), y, "Y, round {round} {in_front}");
            recovers();
        }
    }
}

/// The crate's handler is in front of one that removes itself at its first signal.
pub(super) fn takes_itself_out_of_the_chain(raises: bool) {
    signal::install().unwrap();
    RAISES.store(usize::from(raises), SeqCst);
    for _ in 0..9 {
        let out = takes_itself_out as extern "C" fn(_, _, _) as usize;
        let mut action = no_action();
        action.sa_sigaction = out;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        let replaced = &raw mut REPLACED;
        // SAFETY: a handler that takes the arguments of SA_SIGINFO. What it displaces is written before it can run, and
        // nothing else touches that.
        assert_eq!(unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, replaced) }, 0);
        signal::install().unwrap();
        recovers();
    }
    foreign_fault(segv(PAGE));
}
