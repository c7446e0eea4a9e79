//! Threads that wait, as others see them: what is to happen meanwhile begins when they do, however slow the machine is.

use super::{eventually, read_text};
use nix::unistd::{Pid, gettid};
use std::sync::atomic::{AtomicI32, Ordering};

/// A thread that is about to make a call that waits.
#[derive(Default)]
pub(crate) struct Waiter(AtomicI32);

impl Waiter {
    /// The calling thread makes its call next.
    pub(crate) fn begins(&self) {
        self.0.store(gettid().as_raw(), Ordering::SeqCst);
    }

    /// Waits until the thread waits in its call, for a lock or an event.
    pub(crate) fn until_it_waits(&self) {
        eventually("the thread begins its call", || self.0.load(Ordering::SeqCst) != 0);
        sleeps_in(Pid::from_raw(self.0.load(Ordering::SeqCst)), "its call", "futex");
    }
}

/// Waits until a thread of this process sleeps in a page fault that a userfaultfd has seen: the access or the system call that
/// faults has begun.
pub(crate) fn sleeps_in_fault(thread: Pid) {
    sleeps_in(thread, "its fault", "userfault");
}

fn sleeps_in(thread: Pid, what: &str, function: &str) {
    let mut unnamed = 0;
    eventually(&format!("the thread sleeps in {what}"), || {
        let sleeps = sleeps(thread);
        // Nothing, or 0, where the thread runs, and where the kernel does not tell names of functions. It sleeps for locks
        // on its way, but not for long.
        let place = read_text(format!("/proc/self/task/{thread}/wchan"));
        let is_named = !place.is_empty() && place != "0";
        unnamed = if sleeps && !is_named { unnamed + 1 } else { 0 };
        sleeps && place.contains(function) || unnamed == 20
    });
}

/// True if a thread of this process sleeps.
pub(crate) fn sleeps(thread: Pid) -> bool {
    let stat = read_text(format!("/proc/self/task/{thread}/stat"));
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['S', 'D']))
}
