//! The primitives that ship: parking_lot, std, and a futex where a notifier or a signal handler must not block on a lock.

#![expect(unused_imports, reason = "the set that the rest of the crate may use, used or not")]

use std::time::Instant;

pub(crate) use super::inside::{Mutex, MutexGuard};
pub(crate) use super::memory_lock::{
    FutexReadGuard as RwLockReadGuard, FutexRwLock as RwLock, FutexWriteGuard as RwLockWriteGuard,
};
pub(crate) use crate::sys::thread::current_tid;
pub(crate) use std::sync::{Arc, atomic, atomic::fence};
pub(crate) use std::{hint::spin_loop, thread::yield_now, thread_local};

/// A lock without a value that is also tried: the model has one of its own. Its holder runs callbacks, and is not inside.
pub(crate) type TryMutex = parking_lot::Mutex<()>;
pub(crate) type TryMutexGuard<'a> = parking_lot::MutexGuard<'a, ()>;

use super::Mutation;
use crate::sys::futex;
use atomic::{AtomicU32, Ordering};

/// True if a step is left out: never in the code that ships.
#[inline(always)]
pub(crate) const fn broken(_: Mutation) -> bool {
    false
}

/// A number that only advances; threads can sleep until it does.
///
/// A futex and not a mutex with a condition variable, because a thread that must not sleep (a refused NOWAIT
/// entry) still has to notify: here that is an addition and a wake, which never block.
#[derive(Debug, Default)]
pub(crate) struct Generation(AtomicU32);

impl Generation {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The number now. Acquire: pairs with the Release of [`Generation::advance`], so that a thread that sees an advance
    /// also sees the changes before it.
    pub(crate) fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Advances by one. Release: pairs with [`Generation::load`].
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    /// Wakes every thread that sleeps in [`Generation::sleep`]. Never blocks.
    pub(crate) fn wake_all(&self) {
        futex::wake_all(&self.0);
    }

    /// Sleeps while the number is `seen`, at most until `deadline`. May return for no reason.
    pub(crate) fn sleep(&self, seen: u32, deadline: Option<Instant>) {
        futex::wait(&self.0, seen, deadline);
    }
}
