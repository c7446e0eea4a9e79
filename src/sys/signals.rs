//! No handler of the application's runs in a thread that must not be interrupted.

use nix::sys::signal::{SIGBUS, SIGSEGV, SigSet, SigmaskHow};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{Ordering, compiler_fence};

thread_local! {
    // No destructor and no lazy initialisation: it may be used at any time in the life of a thread.
    static QUIET: Quiet = const { Quiet { depth: Cell::new(0), before: Cell::new(None) } };
}

/// How many [`WithoutSignals`] the thread has, and its mask before the first. No handler that could use it interrupts a
/// thread whose depth is not 0: the signals are blocked before the depth is raised, and until after it is 0.
struct Quiet {
    depth: Cell<u32>,
    before: Cell<Option<SigSet>>,
}

/// While it lives no handler interrupts the calling thread, except one of SIGBUS and SIGSEGV. Only the first of a thread
/// makes a system call.
#[must_use]
pub(crate) struct WithoutSignals {
    /// The mask is the thread's.
    on_this_thread: PhantomData<*mut ()>,
}

impl WithoutSignals {
    pub(crate) fn new() -> Self {
        QUIET.with(|Quiet { depth, before }| {
            if depth.get() == 0 {
                let mask = block();
                compiler_fence(Ordering::SeqCst);
                before.set(mask);
            }
            depth.set(depth.get() + 1);
        });
        Self { on_this_thread: PhantomData }
    }
}

/// Blocks the signals; returns the mask before.
fn block() -> Option<SigSet> {
    if cfg!(miri) {
        // It has none.
        return None;
    }
    let mut blocked = SigSet::all();
    blocked.remove(SIGBUS);
    blocked.remove(SIGSEGV);
    blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()
}

impl Drop for WithoutSignals {
    fn drop(&mut self) {
        QUIET.with(|Quiet { depth, before }| {
            depth.set(depth.get() - 1);
            if depth.get() == 0 {
                let mask = before.take();
                compiler_fence(Ordering::SeqCst);
                let _ = mask.map(|mask| mask.thread_set_mask());
            }
        });
    }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::*;
    use nix::sys::signal::SIGUSR1;

    fn is_blocked() -> bool {
        SigSet::thread_get_mask().expect("a mask").contains(SIGUSR1)
    }

    #[test]
    fn signals_are_blocked_until_the_last_one_has_gone_whichever_that_is() {
        assert!(!is_blocked());
        let first = WithoutSignals::new();
        let second = WithoutSignals::new();
        drop(first);
        assert!(is_blocked());
        drop(second);
        assert!(!is_blocked());
    }

    #[test]
    fn a_signal_that_was_blocked_before_stays_blocked() {
        let mut mine = SigSet::empty();
        mine.add(SIGUSR1);
        mine.thread_block().expect("a mask");
        drop((WithoutSignals::new(), WithoutSignals::new()));
        assert!(is_blocked());
        mine.thread_unblock().expect("a mask");
    }

    #[test]
    fn a_thread_that_is_started_meanwhile_unblocks_nothing() {
        let _quiet = WithoutSignals::new();
        let theirs = std::thread::spawn(|| {
            drop(WithoutSignals::new());
            is_blocked()
        });
        assert!(theirs.join().expect("no panic"));
    }
}
