//! Whether the calling thread is inside of the crate: it holds, or is about to take, what another thread may wait for.
//!
//! A signal handler may interrupt a thread anywhere. If it then waits for a region, whose changer waits for a lock that the
//! interrupted code holds, both wait for ever. So such a thread waits for no region: `Protocol::wait_while` asks here, and
//! the caller gets an error. The locks of this module mark their holders as inside, and so does the memory lock's read
//! side. A thread that runs callbacks in the middle of a change of state is not inside, as callbacks may wait for other
//! regions; for its own region the protocol names the thread.

// Not from `crate::sync`: the model checker has no signal handlers, and runs all of its threads in one.
use crate::sys::signals::WithoutSignals;
use core::sync::atomic::{AtomicU32, Ordering, compiler_fence};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

thread_local! {
    // No destructor and no lazy initialisation: signal handlers read it.
    static DEPTH: AtomicU32 = const { AtomicU32::new(0) };
}

/// Marks the calling thread as inside while it lives.
#[must_use]
pub(crate) struct Inside(PhantomData<*mut ()>);

pub(crate) fn enter() -> Inside {
    // Relaxed, and in two steps: only this thread writes here, and a handler that comes in between restores the count. The
    // fences keep the compiler from moving the code after this, or before it, out of sight of a handler.
    DEPTH.with(|depth| depth.store(depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
    compiler_fence(Ordering::SeqCst);
    Inside(PhantomData)
}

impl Drop for Inside {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        DEPTH.with(|depth| depth.store(depth.load(Ordering::Relaxed) - 1, Ordering::Relaxed));
    }
}

/// True if the calling thread is inside, or was when the running signal handler interrupted it.
pub(crate) fn is_inside() -> bool {
    !cfg!(all(test, revocable_model)) && DEPTH.with(|depth| depth.load(Ordering::Relaxed)) > 0
}

/// A lock's guard, and the mark that its holder is inside. The lock is released first.
pub(crate) struct LockHeld<G, K = Inside>(G, K);

impl<G: Deref, K> Deref for LockHeld<G, K> {
    type Target = G::Target;
    fn deref(&self) -> &G::Target {
        &self.0
    }
}

impl<G: DerefMut, K> DerefMut for LockHeld<G, K> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.0
    }
}

impl<G: fmt::Debug, K> fmt::Debug for LockHeld<G, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn held<G>(take: impl FnOnce() -> G) -> LockHeld<G> {
    let inside = enter();
    LockHeld(take(), inside)
}

/// parking_lot's mutex, whose holder is inside.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

pub(crate) type MutexGuard<'a, T> = LockHeld<parking_lot::MutexGuard<'a, T>>;

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        held(|| self.0.lock())
    }

    /// Locks without signals, for a lock that the changer of a region's state takes while the write side is held: a handler
    /// that interrupted another holder could fault, and that fault would wait for the changer.
    pub(crate) fn lock_quietly(&self) -> LockHeld<parking_lot::MutexGuard<'_, T>, WithoutSignals> {
        let quiet = WithoutSignals::new();
        LockHeld(self.0.lock(), quiet)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inside = enter();
        Some(LockHeld(self.0.try_lock()?, inside))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

/// parking_lot's lock, for data that a monitor reads to resolve a fault. No handler interrupts its other holders: the
/// monitor could not resolve that handler's faults. The memory lock is another type: `crate::sync::RwLock`.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(parking_lot::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }

    /// For the monitor, whose threads take no signals, or under another lock that every writer holds.
    pub(crate) fn read(&self) -> parking_lot::RwLockReadGuard<'_, T> {
        self.0.read()
    }

    /// Async-signal-safe.
    pub(crate) fn try_read(&self) -> Option<parking_lot::RwLockReadGuard<'_, T>> {
        self.0.try_read()
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// For threads other than the monitor's.
    pub(crate) fn look(&self) -> LockHeld<parking_lot::RwLockReadGuard<'_, T>, WithoutSignals> {
        let quiet = WithoutSignals::new();
        LockHeld(self.0.read(), quiet)
    }

    pub(crate) fn write(&self) -> LockHeld<parking_lot::RwLockWriteGuard<'_, T>, WithoutSignals> {
        let quiet = WithoutSignals::new();
        LockHeld(self.0.write(), quiet)
    }
}
