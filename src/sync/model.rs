//! The same primitives over loom, in the shape of the real ones (parking_lot's: no poison, `Option` from `try_`).
//!
//! loom looks for other orders of two operations only if both are operations to it, and a lock's release is none: a try
//! would be made before and after another thread's critical section, and never inside. So [`RwLock`] has [`Tries`] beside
//! it, for which a release and a try are operations that depend on each other. And loom blocks a try like any other
//! operation if another thread takes the lock just before it: [`TryMutex`] is made of parts that are never tried, and the
//! holder of an `RwLock`'s write side waits for no thread that tries it.
//!
//! Timed waits have no clock here: they are plain waits that never time out. So a program that only its timeouts keep alive
//! deadlocks in the model, and is reported.

#![expect(dead_code, unused_imports, reason = "the set that the rest of the crate may use, used or not")]

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

pub(crate) use super::checker::sync::{Arc, atomic, atomic::fence};
pub(crate) use super::checker::{hint::spin_loop, thread::yield_now, thread_local};

use super::{Mutation, checker};
use atomic::{AtomicU32, Ordering};

/// The number of the step that is left out in this process, or one that no step has. std's: it orders nothing in a model.
static LEFT_OUT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(u32::MAX);

/// True if a step is left out in the models of this process.
pub(crate) fn broken(step: Mutation) -> bool {
    LEFT_OUT.load(Ordering::Relaxed) == step as u32
}

checker::thread_local! {
    static NUMBER: Cell<i32> = Cell::new(0);
}

/// The calling thread's number, from 1: loom runs all threads of a model in one.
pub(crate) fn current_tid() -> i32 {
    NUMBER.with(|number| number.get())
}

/// Gives the calling thread a number, from 0.
pub(crate) fn adopt(number: usize) {
    NUMBER.with(|mine| mine.set(i32::try_from(number + 1).unwrap_or(i32::MAX)));
}

/// Leaves the step of this number out of every model that this process runs from here on.
#[cfg(test)]
pub(super) fn sabotage(step: u8) {
    LEFT_OUT.store(step.into(), Ordering::Relaxed);
}

/// As the real one; the lock and the condition variable are the kernel's futex queue.
#[derive(Debug)]
pub(crate) struct Generation {
    word: AtomicU32,
    queue: Mutex<()>,
    wake: Condvar,
}

impl Generation {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0), queue: Mutex::new(()), wake: Condvar::new() }
    }

    pub(crate) fn load(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    pub(crate) fn advance(&self) {
        self.word.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn wake_all(&self) {
        let _queue = self.queue.lock();
        self.wake.notify_all();
    }

    pub(crate) fn sleep(&self, seen: u32, deadline: Option<Instant>) {
        let mut queue = self.queue.lock();
        // Relaxed: the queue's lock orders it with the waker; the waiter's own load orders the rest.
        if self.word.load(Ordering::Relaxed) == seen {
            match deadline {
                Some(deadline) => drop(self.wake.wait_until(&mut queue, deadline)),
                None => self.wake.wait(&mut queue),
            }
        }
    }
}

/// The word in a lock: written before the lock is taken and before it is released, read by each try and by the code that
/// follows a failed try. Relaxed read-modify-writes: they order nothing between threads that have no fences of their own,
/// and there is only one value to read.
#[derive(Debug)]
struct Tries(AtomicU32);

impl Tries {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn operation(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T>(Option<checker::sync::MutexGuard<'a, T>>);

const WAITING: &str = "the guard is only away inside Condvar::wait";

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(checker::sync::Mutex::new(value))
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("loom does not poison")))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect(WAITING)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(WAITING)
    }
}

/// A lock that is also tried: see the module.
#[derive(Debug)]
pub(crate) struct TryMutex {
    taken: Mutex<bool>,
    free: Condvar,
}

#[derive(Debug)]
pub(crate) struct TryMutexGuard<'a>(&'a TryMutex);

impl TryMutex {
    pub(crate) fn new((): ()) -> Self {
        Self { taken: Mutex::new(false), free: Condvar::new() }
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> TryMutexGuard<'_> {
        let mut taken = self.taken.lock();
        while *taken {
            self.free.wait(&mut taken);
        }
        *taken = true;
        TryMutexGuard(self)
    }

    pub(crate) fn try_lock(&self) -> Option<TryMutexGuard<'_>> {
        let was = std::mem::replace(&mut *self.taken.lock(), true);
        (!was).then(|| TryMutexGuard(self))
    }

    /// As patient as `lock`: see the module.
    #[track_caller]
    pub(crate) fn try_lock_until(&self, _: Instant) -> Option<TryMutexGuard<'_>> {
        Some(self.lock())
    }
}

impl Drop for TryMutexGuard<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            *self.0.taken.lock() = false;
            self.0.free.notify_one();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(checker::sync::Condvar);

/// Never timed out: see the module.
#[derive(Debug)]
pub(crate) struct WaitTimeoutResult;

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(checker::sync::Condvar::new())
    }

    #[track_caller]
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.0.take().expect(WAITING);
        guard.0 = Some(self.0.wait(inner).expect("loom does not poison"));
    }

    #[track_caller]
    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    #[track_caller]
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// loom's lock has no fairness: a new reader does not queue after a waiting writer, so a read lock taken twice by one
/// thread is not caught here.
#[derive(Debug)]
pub(crate) struct RwLock<T> {
    lock: checker::sync::RwLock<T>,
    tries: Tries,
}

#[derive(Debug)]
pub(crate) struct RwLockReadGuard<'a, T> {
    guard: checker::sync::RwLockReadGuard<'a, T>,
    tries: &'a Tries,
}

#[derive(Debug)]
pub(crate) struct RwLockWriteGuard<'a, T> {
    guard: checker::sync::RwLockWriteGuard<'a, T>,
    tries: &'a Tries,
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.tries.operation();
        }
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.tries.operation();
        }
    }
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { lock: checker::sync::RwLock::new(value), tries: Tries::new() }
    }

    #[track_caller]
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        RwLockReadGuard { guard: self.lock.read().expect("loom does not poison"), tries: &self.tries }
    }

    #[track_caller]
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.tries.operation();
        RwLockWriteGuard { guard: self.lock.write().expect("loom does not poison"), tries: &self.tries }
    }

    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.tries.operation();
        let Ok(guard) = self.lock.try_read() else {
            self.tries.operation();
            return None;
        };
        Some(RwLockReadGuard { guard, tries: &self.tries })
    }

    /// As patient as `write`: see the module.
    #[track_caller]
    pub(crate) fn try_write_until(&self, _: Instant) -> Option<RwLockWriteGuard<'_, T>> {
        Some(self.write())
    }

    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.tries.operation();
        self.lock.try_write().ok().map(|guard| RwLockWriteGuard { guard, tries: &self.tries })
    }
}
