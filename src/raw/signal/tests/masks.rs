//! A chained handler runs with the signal mask that it would have alone.

use super::handlers::{CALLS, OPEN_UP, foreign_fault, simple_handler};
use crate::raw::signal;
use crate::raw::test_memory::{PAGE, bus, segv};
use nix::libc::{self, c_int, c_void, siginfo_t};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The mask that the last handler ran with.
static MASK: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn mask_now() -> usize {
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) };
    unsafe { (&raw const mask).cast::<usize>().read() }
}

extern "C" fn mask_handler(signal: c_int) {
    MASK[0].store(mask_now(), SeqCst);
    simple_handler(signal);
}

extern "C" fn mask_info_handler(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // The mask that it writes there is in force afterwards, as always.
    let context = context.cast::<libc::ucontext_t>();
    unsafe { libc::sigaddset(&raw mut (*context).uc_sigmask, libc::SIGWINCH) };
    mask_handler(signal);
}

/// Every kind of handler sees, and leaves, the same mask as it does alone.
pub(super) fn masks() {
    let sees = |signal: c_int, flags: c_int, masked: &[c_int], blocked: &[c_int], sent: bool, chained: bool| {
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_flags = flags;
        action.sa_sigaction = match flags & libc::SA_SIGINFO {
            0 => mask_handler as extern "C" fn(c_int) as usize,
            _ => mask_info_handler as extern "C" fn(_, _, _) as usize,
        };
        let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
        masked.iter().for_each(|s| assert_eq!(unsafe { libc::sigaddset(&raw mut action.sa_mask, *s) }, 0));
        blocked.iter().for_each(|s| assert_eq!(unsafe { libc::sigaddset(&raw mut mask, *s) }, 0));
        assert_eq!(unsafe { libc::sigaction(signal, &raw const action, null_mut()) }, 0);
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, null_mut()) };
        if chained {
            signal::install().unwrap();
        }
        let before = CALLS.load(SeqCst);
        match sent {
            true => assert_eq!(unsafe { libc::raise(signal) }, 0),
            false => {
                let page = if signal == libc::SIGSEGV { segv(PAGE) } else { bus(PAGE) };
                OPEN_UP.store(page as usize, SeqCst);
                // SIGBUS: the handler's mprotect changes nothing, so it is only sent.
                foreign_fault(page);
                OPEN_UP.store(0, SeqCst);
            }
        }
        assert_eq!(CALLS.load(SeqCst), before + 1);
        (MASK[0].load(SeqCst), mask_now())
    };
    let mut seen = Vec::new();
    for chained in [false, true] {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            for flags in [0, libc::SA_NODEFER, libc::SA_SIGINFO, libc::SA_SIGINFO | libc::SA_NODEFER] {
                for masked in [&[][..], &[libc::SIGUSR2, libc::SIGRTMAX()], &[signal]] {
                    for blocked in [&[][..], &[libc::SIGUSR1, libc::SIGPROF]] {
                        for sent in [true, false] {
                            if signal == libc::SIGBUS && !sent {
                                continue;
                            }
                            seen.push(sees(signal, flags, masked, blocked, sent, chained));
                        }
                    }
                }
            }
        }
    }
    let (alone, chained) = seen.split_at(seen.len() / 2);
    assert_eq!(alone, chained);
}
