//! Threads that wait, as others see them: what is to happen meanwhile begins when they do, however slow the machine is.

use super::{eventually, raw, read_text};
use nix::unistd::{Pid, gettid};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::thread;

/// A thread that is about to wait. A clone is the same thread's.
#[derive(Clone, Default)]
pub(crate) struct Waiter(Arc<AtomicI32>);

impl Waiter {
    /// The calling thread makes the call or the access next that waits.
    pub(crate) fn begins(&self) {
        self.0.store(gettid().as_raw(), Ordering::SeqCst);
    }

    /// Waits until the thread waits in its call, for a lock or an event.
    pub(crate) fn until_it_waits(&self) {
        self.until_it_sleeps("its call", "futex");
    }

    /// Waits until the thread sleeps in a page fault that a userfaultfd has seen: the access or the system call that faults
    /// has begun.
    pub(crate) fn until_it_faults(&self) {
        self.until_it_sleeps("its fault", "userfault");
    }

    fn until_it_sleeps(&self, what: &str, function: &str) {
        eventually("the thread begins", || self.0.load(Ordering::SeqCst) != 0);
        let thread = Pid::from_raw(self.0.load(Ordering::SeqCst));
        let mut unnamed = 0;
        eventually(&format!("the thread sleeps in {what}"), || {
            let sleeps = sleeps(thread);
            // Nothing, or 0, where the thread runs, and where the kernel does not tell names of functions. It sleeps for
            // locks on its way, but not for long.
            let place = read_text(format!("/proc/self/task/{thread}/wchan"));
            let is_named = !place.is_empty() && place != "0";
            unnamed = if sleeps && !is_named { unnamed + 1 } else { 0 };
            sleeps && place.contains(function) || unnamed == 20
        });
    }
}

/// Runs `body` while another thread loads from an address again and again, whatever is there; no load waits for ever.
pub(crate) fn while_loaded(at: usize, body: impl FnOnce()) {
    let (loads, end) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                let _ = raw::load64(at);
                loads.fetch_add(1, Ordering::Relaxed);
            }
        });
        eventually("the thread loads", || loads.load(Ordering::Relaxed) > 0);
        body();
        let before = loads.load(Ordering::Relaxed);
        eventually("the thread loads on", || loads.load(Ordering::Relaxed) > before + 1);
        end.store(true, Ordering::Relaxed);
    });
}

/// True if a thread of this process sleeps.
pub(crate) fn sleeps(thread: Pid) -> bool {
    let stat = read_text(format!("/proc/self/task/{thread}/stat"));
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['S', 'D']))
}
