//! The turn to change something, whose holder may run users' code: one thread at a time, and not from inside of it.

use crate::sync::current_tid;
use crate::sync::wait::Patience;
use std::sync::atomic::{AtomicI32, Ordering};

#[derive(Default)]
pub(crate) struct Turn {
    taken: parking_lot::Mutex<()>,
    by: AtomicI32,
}

pub(crate) struct TurnGuard<'a> {
    turn: &'a Turn,
    _taken: parking_lot::MutexGuard<'a, ()>,
}

impl Turn {
    pub(crate) fn try_take(&self) -> Option<TurnGuard<'_>> {
        self.taken.try_lock().map(|taken| self.guard(taken))
    }

    pub(crate) fn take(&self, patience: Patience) -> Option<TurnGuard<'_>> {
        let taken = match patience {
            Patience::Forever => Some(self.taken.lock()),
            Patience::Never => self.taken.try_lock(),
            Patience::Until(deadline) => self.taken.try_lock_until(deadline),
        };
        taken.map(|taken| self.guard(taken))
    }

    /// True if it is the calling thread's turn.
    pub(crate) fn is_caller(&self) -> bool {
        // Relaxed, here and below: only ever compared with the reading thread's own id.
        self.by.load(Ordering::Relaxed) == current_tid()
    }

    fn guard<'a>(&'a self, taken: parking_lot::MutexGuard<'a, ()>) -> TurnGuard<'a> {
        self.by.store(current_tid(), Ordering::Relaxed);
        TurnGuard { turn: self, _taken: taken }
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        self.turn.by.store(0, Ordering::Relaxed);
    }
}
