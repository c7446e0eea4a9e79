//! A chained handler runs with the signal mask that it would have alone.

use super::handlers::{CALLS, OPEN_UP, add, foreign_fault, no_action, raise, simple_handler};
use crate::raw::signal;
use crate::raw::test_memory::{PAGE, bus, segv};
use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::signal::SigSet;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The mask that the last handler ran with.
static MASK: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

fn mask_now() -> usize {
    let mask = *SigSet::thread_get_mask().unwrap().as_ref();
    // SAFETY: a set begins with the kernel's word, which has all signals, and is aligned for it.
    unsafe { (&raw const mask).cast::<usize>().read() }
}

extern "C" fn mask_handler(signal: c_int) {
    MASK[0].store(mask_now(), SeqCst);
    simple_handler(signal);
}

extern "C" fn mask_info_handler(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // The mask that it writes there is in force afterwards, as always.
    // SAFETY: the context of this signal, which a handler may change.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    add(&mut context.uc_sigmask, libc::SIGWINCH);
    mask_handler(signal);
}

/// Every kind of handler sees, and leaves, the same mask as it does alone.
pub(super) fn masks() {
    let sees = |signal: c_int, flags: c_int, masked: &[c_int], blocked: &[c_int], sent: bool, chained: bool| {
        let mut action = no_action();
        action.sa_flags = flags;
        action.sa_sigaction = match flags & libc::SA_SIGINFO {
            0 => mask_handler as extern "C" fn(c_int) as usize,
            _ => mask_info_handler as extern "C" fn(_, _, _) as usize,
        };
        let mut mask = no_action().sa_mask;
        masked.iter().for_each(|s| add(&mut action.sa_mask, *s));
        blocked.iter().for_each(|s| add(&mut mask, *s));
        // SAFETY: a valid action, whose handler takes the arguments that its flags ask for.
        assert_eq!(unsafe { libc::sigaction(signal, &raw const action, null_mut()) }, 0);
        // SAFETY: a live set; the signals in it are none that the thread's faults raise.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, null_mut()) };
        if chained {
            signal::install().unwrap();
        }
        let before = CALLS.load(SeqCst);
        match sent {
            true => raise(signal),
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
