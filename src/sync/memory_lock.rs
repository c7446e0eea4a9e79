//! The memory lock: readers that try, and a writer that waits for them, with nothing between them but a word and a futex.
//!
//! Taking the read side and letting it go is async-signal-safe: the fault path of the crate's accessors does it, and those may
//! run in signal handlers. A reader is inside of the crate ([`super::inside`]).
//!
//! UNSAFETY: the value is behind an `UnsafeCell`, reached by the guards only.
#![expect(unsafe_code, reason = "a lock of its own: its guards reach the value through a raw pointer")]

use super::inside::{self, Inside};
use crate::sys::futex;
use core::sync::atomic::{AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::time::Instant;

/// A writer has the lock, or waits for the last reader. No new reader comes then.
const WRITER: u32 = 1 << 31;

/// # Invariants
///
/// *Counted*: the low bits of `word` are the read guards that live. *Alone*: a write guard lives only while `WRITER` is set by
/// its own thread and the low bits have been seen 0 since then; readers are counted in only while `WRITER` is not set.
#[derive(Debug)]
pub(crate) struct RwLock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: *Counted* and *Alone*: the value is shared by readers or one writer's, as std's RwLock has it.
unsafe impl<T: Send + Sync> Sync for RwLock<T> {}

/// The read side.
pub(crate) struct RwLockReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    _inside: Inside,
}

/// The write side.
pub(crate) struct RwLockWriteGuard<'a, T> {
    lock: &'a RwLock<T>,
}

impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// The read side, unless a writer has the lock or waits for it. Async-signal-safe, as the guard's end is.
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        let inside = inside::enter();
        let reader = |word| (word & WRITER == 0).then_some(word + 1);
        // Acquire pairs with the Release of the write guard's end: a reader sees what the writer did.
        self.word.fetch_update(Ordering::Acquire, Ordering::Relaxed, reader).ok()?;
        Some(RwLockReadGuard { lock: self, _inside: inside })
    }

    /// The read side, however long a writer takes.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_read() {
                return guard;
            }
            self.sleep_while(|word| word & WRITER != 0, None);
        }
    }

    /// The write side, however long others take.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        loop {
            if let Some(guard) = self.write_until(None) {
                return guard;
            }
        }
    }

    /// The write side, if it is free. A reader in a single access is in the way.
    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        // Acquire pairs with the Release of the guards' ends: the writer sees what was done under them.
        self.word.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(RwLockWriteGuard { lock: self })
    }

    /// The write side, if it can be had until then.
    pub(crate) fn try_write_until(&self, deadline: Instant) -> Option<RwLockWriteGuard<'_, T>> {
        self.write_until(Some(deadline))
    }

    fn write_until(&self, deadline: Option<Instant>) -> Option<RwLockWriteGuard<'_, T>> {
        // Relaxed: the readers that are left are waited for below; another writer's end is, too.
        while self.word.fetch_or(WRITER, Ordering::Relaxed) & WRITER != 0 {
            if !self.sleep_while(|word| word & WRITER != 0, deadline) {
                return None;
            }
        }
        // From here on the guard's end clears `WRITER`, whatever becomes of the wait.
        let guard = RwLockWriteGuard { lock: self };
        let alone = self.sleep_while(|word| word != WRITER, deadline);
        // Acquire, as in `try_write`: the last load that `sleep_while` made.
        core::sync::atomic::fence(Ordering::Acquire);
        alone.then_some(guard)
    }

    /// False if the deadline came first.
    fn sleep_while(&self, unwanted: impl Fn(u32) -> bool, deadline: Option<Instant>) -> bool {
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if !unwanted(word) {
                return true;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return false;
            }
            futex::wait(&self.word, word, deadline);
        }
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: *Counted* and *Alone*: no writer while this lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of the next writer.
        if self.lock.word.fetch_sub(1, Ordering::Release) == WRITER + 1 {
            futex::wake_all(&self.lock.word);
        }
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: *Alone*.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: *Alone*.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        // Release pairs with the Acquire of who has the lock next. Readers may be left where the wait for them timed out.
        self.lock.word.fetch_and(!WRITER, Ordering::Release);
        futex::wake_all(&self.lock.word);
    }
}
