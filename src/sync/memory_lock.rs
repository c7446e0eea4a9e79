//! The memory lock: readers that try, and a writer that waits for them, over a word and a futex only.
//!
//! Taking and releasing the read side is async-signal-safe: the fault path of the crate's accessors does it, and those may
//! run in signal handlers. A reader is inside of the crate ([`super::inside`]).
//!
//! UNSAFETY: the value is in an `UnsafeCell`, reached by the guards only.
#![expect(unsafe_code, reason = "a lock of its own: its guards reach the value through a raw pointer")]

#[cfg(all(test, revocable_model))]
mod model;

use super::inside::{self, Inside};
use super::{Mutation, broken};
use crate::sys::futex;
use core::sync::atomic::{AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

/// A writer has the lock.
const WRITER: u32 = 1 << 31;
/// A writer sleeps, and the last reader has to wake it.
const WAITING: u32 = 1 << 30;

/// The word of a lock, on which threads sleep: the model has one of its own.
pub(crate) trait Word {
    fn fetch_update(&self, set: Ordering, fetch: Ordering, next: impl Fn(u32) -> Option<u32>) -> Result<u32, u32>;
    fn fetch_or(&self, bits: u32, order: Ordering) -> u32;
    fn fetch_and(&self, bits: u32, order: Ordering) -> u32;
    fn fetch_sub(&self, number: u32, order: Ordering) -> u32;
    /// Sleeps while the word is `seen`, until a wake or the deadline; may also return for no reason.
    fn sleep(&self, seen: u32, deadline: Option<Instant>);
    fn wake_all(&self);
}

impl Word for AtomicU32 {
    fn fetch_update(&self, set: Ordering, fetch: Ordering, next: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        self.fetch_update(set, fetch, next)
    }

    fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        self.fetch_or(bits, order)
    }

    fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        self.fetch_and(bits, order)
    }

    fn fetch_sub(&self, number: u32, order: Ordering) -> u32 {
        self.fetch_sub(number, order)
    }

    fn sleep(&self, seen: u32, deadline: Option<Instant>) {
        futex::wait(self, seen, deadline);
    }

    fn wake_all(&self) {
        futex::wake_all(self);
    }
}

/// Readers enter while a writer waits, since the writer may depend on them: a reader may have been interrupted by a signal
/// handler that faults, and the monitor resolves that fault as another reader. `Protocol::try_read` keeps away the readers
/// that need not enter.
///
/// # Invariants
///
/// *Counted*: the low bits of `word` are the number of living read guards. *Alone*: `WRITER` is set, by the thread that
/// then has the write guard, only while no reader is counted, and readers are counted only while it is not set.
#[derive(Debug)]
pub(crate) struct FutexRwLock<T, W = AtomicU32> {
    word: W,
    value: UnsafeCell<T>,
}

// SAFETY: *Counted* and *Alone*: the value is shared by readers, or it is one writer's, as in std's RwLock.
unsafe impl<T: Send + Sync, W: Sync> Sync for FutexRwLock<T, W> {}

/// The read side.
pub(crate) struct FutexReadGuard<'a, T, W: Word = AtomicU32> {
    lock: &'a FutexRwLock<T, W>,
    _inside: Inside,
}

/// The write side.
pub(crate) struct FutexWriteGuard<'a, T, W: Word = AtomicU32> {
    lock: &'a FutexRwLock<T, W>,
}

impl<T> FutexRwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }
}

impl<T, W: Word> FutexRwLock<T, W> {
    /// The read side, unless a writer has the lock. Async-signal-safe, and so is the guard's end.
    pub(crate) fn try_read(&self) -> Option<FutexReadGuard<'_, T, W>> {
        let inside = inside::enter();
        let reader = |word| (word & WRITER == 0).then_some(word + 1);
        // Acquire pairs with the Release of the write guard's end: a reader sees the writer's changes.
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, reader).ok()?;
        Some(FutexReadGuard { lock: self, _inside: inside })
    }

    /// The read side, once no writer has the lock: for locks that writers have only for a moment. Async-signal-safe.
    pub(crate) fn read(&self) -> FutexReadGuard<'_, T, W> {
        loop {
            if let Some(guard) = self.try_read() {
                return guard;
            }
            // Relaxed: `try_read` looks again.
            let word = self.word.fetch_or(WAITING, Ordering::Relaxed) | WAITING;
            if word & WRITER != 0 {
                self.word.sleep(word, None);
            }
        }
    }

    /// The write side, however long other threads take.
    pub(crate) fn write(&self) -> FutexWriteGuard<'_, T, W> {
        loop {
            if let Some(guard) = self.write_until(None) {
                return guard;
            }
        }
    }

    /// The write side, if it is free. A reader in a single access is in the way.
    pub(crate) fn try_write(&self) -> Option<FutexWriteGuard<'_, T, W>> {
        let writer = |word| (word & !WAITING == 0).then_some(WRITER);
        // Acquire pairs with the Release of the guards' ends: the writer sees the accesses under them.
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, writer).ok()?;
        Some(FutexWriteGuard { lock: self })
    }

    /// The write side, if it is free before `deadline`.
    pub(crate) fn try_write_until(&self, deadline: Instant) -> Option<FutexWriteGuard<'_, T, W>> {
        self.write_until(Some(deadline))
    }

    fn write_until(&self, deadline: Option<Instant>) -> Option<FutexWriteGuard<'_, T, W>> {
        loop {
            if let Some(guard) = self.try_write() {
                return Some(guard);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // No wake-ups for a writer that has gone. Another writer that sleeps sets the bit again.
                self.word.fetch_and(!WAITING, Ordering::Relaxed);
                if !broken(Mutation::LeaveWake) {
                    self.word.wake_all();
                }
                return None;
            }
            // Relaxed: `try_write` looks again.
            let word = self.word.fetch_or(WAITING, Ordering::Relaxed) | WAITING;
            if word != WAITING {
                self.word.sleep(word, deadline);
            }
        }
    }
}

impl<T, W: Word> Deref for FutexReadGuard<'_, T, W> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: *Counted* and *Alone*: there is no writer while this lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, W: Word> Drop for FutexReadGuard<'_, T, W> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of the next writer.
        let order = if broken(Mutation::ReadRelease) { Ordering::Relaxed } else { Ordering::Release };
        if self.lock.word.fetch_sub(1, order) == WAITING + 1 && !broken(Mutation::LastReaderWake) {
            self.lock.word.wake_all();
        }
    }
}

impl<T, W: Word> Deref for FutexWriteGuard<'_, T, W> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: *Alone*.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, W: Word> DerefMut for FutexWriteGuard<'_, T, W> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: *Alone*.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, W: Word> Drop for FutexWriteGuard<'_, T, W> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of the lock's next holder.
        if self.lock.word.fetch_and(!WRITER, Ordering::Release) & WAITING != 0 {
            self.lock.word.wake_all();
        }
    }
}
