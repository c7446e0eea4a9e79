//! Model-checked: the memory lock that ships, over a word of the model's.
//!
//! The value is one that reports two accesses at a time, or two that are not ordered, one of which changes it. A thread that
//! sleeps for ever is a deadlock, which loom reports. There is no clock: a deadline has passed, or never comes.

use super::*;
use crate::sync::checker::sync::Arc;
use crate::sync::checker::sync::atomic as model;
use crate::sync::checker::thread;
use crate::sync::explore::{explore, fails_without};
use crate::sync::{Condvar, Mutex, checker};

/// A futex: its queue is a lock with a condition variable.
struct Futex {
    word: model::AtomicU32,
    queue: Mutex<()>,
    wake: Condvar,
}

impl Word for Futex {
    fn fetch_update(&self, set: Ordering, fetch: Ordering, next: impl Fn(u32) -> Option<u32>) -> Result<u32, u32> {
        self.word.fetch_update(set, fetch, next)
    }

    fn fetch_or(&self, bits: u32, order: Ordering) -> u32 {
        self.word.fetch_or(bits, order)
    }

    fn fetch_and(&self, bits: u32, order: Ordering) -> u32 {
        self.word.fetch_and(bits, order)
    }

    fn fetch_sub(&self, number: u32, order: Ordering) -> u32 {
        self.word.fetch_sub(number, order)
    }

    fn sleep(&self, seen: u32, deadline: Option<Instant>) {
        let mut queue = self.queue.lock();
        // Relaxed: the queue's lock orders it with the waker.
        if deadline.is_none() && self.word.load(Ordering::Relaxed) == seen {
            self.wake.wait(&mut queue);
        }
    }

    fn wake_all(&self) {
        let _queue = self.queue.lock();
        self.wake.notify_all();
    }
}

type Value = checker::cell::UnsafeCell<u32>;
type Lock = FutexRwLock<Value, Futex>;

fn lock() -> Arc<Lock> {
    let word = Futex { word: model::AtomicU32::new(0), queue: Mutex::new(()), wake: Condvar::new() };
    Arc::new(Lock { word, value: UnsafeCell::new(Value::new(0)) })
}

fn load(value: &Value) -> u32 {
    // SAFETY: a read side or the write side is held, which loom checks.
    value.with(|value| unsafe { *value })
}

fn add(value: &Value) {
    // SAFETY: the write side is held, which loom checks.
    value.with_mut(|value| unsafe { *value += 1 });
}

#[test]
fn the_model_has_one_writer_or_readers_and_wakes_them() {
    explore(3, || {
        let lock = lock();
        let [its, theirs] = [(); 2].map(|()| Arc::clone(&lock));
        let reader = thread::spawn(move || load(&its.read()));
        let writer = thread::spawn(move || add(&theirs.write()));
        add(&lock.write());
        assert!(reader.join().expect("no panic") <= 2);
        writer.join().expect("no panic");
        assert_eq!(load(&lock.read()), 2, "a change is lost");
    });
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_notices_a_read_side_that_orders_nothing() {
    let test = "sync::memory_lock::model::the_model_has_one_writer_or_readers_and_wakes_them";
    fails_without(Mutation::ReadRelease, test, &["Causality violation"]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_notices_a_writer_that_nobody_wakes() {
    let test = "sync::memory_lock::model::the_model_has_one_writer_or_readers_and_wakes_them";
    fails_without(Mutation::LastReaderWake, test, &["deadlock"]);
}

/// A writer that gives up takes no wake-up away from one that does not.
#[test]
fn the_model_wakes_a_writer_beside_one_that_gives_up() {
    explore(3, || {
        let lock = lock();
        let [its, theirs] = [(); 2].map(|()| Arc::clone(&lock));
        let reading = lock.read();
        let patient = thread::spawn(move || add(&its.write()));
        let hasty = thread::spawn(move || {
            let got = theirs.try_write_until(Instant::now());
            got.as_deref().map(add).is_some()
        });
        load(&reading);
        drop(reading);
        patient.join().expect("no panic");
        let more = hasty.join().expect("no panic");
        assert_eq!(load(&lock.read()), 1 + u32::from(more), "a change is lost");
    });
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no process")]
fn the_model_notices_a_wake_up_that_is_taken_away() {
    let test = "sync::memory_lock::model::the_model_wakes_a_writer_beside_one_that_gives_up";
    fails_without(Mutation::LeaveWake, test, &["deadlock"]);
}
