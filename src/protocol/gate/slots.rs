//! One item per thread, such as a pair of counters, in a table that grows without moving items and without a lock.
//!
//! Each bucket is twice as long as the one before, so a bucket's address never changes once it is there, and a few buckets
//! hold more items than Linux can have threads (2^22).
//!
//! UNSAFETY: buckets are published as raw pointers, so that finding a slot is two loads and only a null check.
#![expect(unsafe_code, reason = "slots are reached through published raw pointers")]

use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::ptr;

/// Slots in the first bucket; each further bucket has twice as many as the one before.
const FIRST: usize = if cfg!(all(test, revocable_model)) { 2 } else { 16 };
/// 16 * (2^19 - 1) slots: twice Linux's highest thread number.
const BUCKETS: usize = if cfg!(all(test, revocable_model)) { 2 } else { 19 };

/// The counters of one thread in one gate: guards entered and guards left, ever.
///
/// # Invariants
///
/// *Owned*: only the thread that has this slot writes here. *Behind*: `left` never exceeds `entered`, and neither ever goes
/// back. *Leaked*: the difference of the two when a thread gets the slot is the number of guards that earlier owners
/// leaked, none of which ever ends. Each slot has a cache line, and its prefetched neighbour, to itself.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct GuardSlot {
    pub(super) entered: AtomicU64,
    pub(super) left: AtomicU64,
    /// The generation of the thread that the counters were last prepared for; 0: none yet.
    owner: AtomicU64,
    /// How many guards of earlier owners are among those that were entered and not left.
    leaked: AtomicU64,
}

impl GuardSlot {
    /// True if the counters were prepared for this thread: only then are the guards that are not leaked its own.
    #[inline(always)]
    pub(super) fn is_owned_by(&self, generation: u64) -> bool {
        // Relaxed, here and below: *Owned*.
        self.owner.load(Ordering::Relaxed) == generation
    }

    /// The generation of the thread that the counters were prepared for. For another thread than that it is only for reports.
    pub(super) fn owner(&self) -> u64 {
        self.owner.load(Ordering::Relaxed)
    }

    /// Prepares the counters for the calling thread, which has just got the slot, or uses this gate for the first time.
    #[cold]
    pub(super) fn prepare(&self, generation: u64) {
        // Sees the last owner's counts: the thread claimed its number after they were written.
        let (entered, left) = (self.entered.load(Ordering::Relaxed), self.left.load(Ordering::Relaxed));
        self.leaked.store(entered.wrapping_sub(left), Ordering::Relaxed);
        self.owner.store(generation, Ordering::Relaxed);
    }

    /// Of `count` guards that were entered and not left, the number of those that were leaked. For another thread than the
    /// owner it is only for reports.
    pub(super) fn leaked_of(&self, count: u64) -> u64 {
        self.leaked.load(Ordering::Relaxed).min(count)
    }
}

/// The position of a thread's items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotAt {
    bucket: u32,
    at: u32,
}

impl SlotAt {
    /// The position of number 0.
    pub(super) const FIRST: Self = Self { bucket: 0, at: 0 };

    pub(super) fn of(number: usize) -> Self {
        let bucket = (number / FIRST + 1).ilog2();
        assert!((bucket as usize) < BUCKETS, "{number} is more threads than Linux can have");
        let at = number - FIRST * ((1 << bucket) - 1);
        Self { bucket, at: u32::try_from(at).expect("a bucket has less than 2^32 slots") }
    }

    /// The position in the first bucket; that bucket's length or more for a position in another.
    #[inline(always)]
    pub(super) fn first_bucket(self) -> usize {
        if self.bucket == 0 { self.at as usize } else { usize::MAX }
    }

    /// What a signal handler may find while the position of `number` is stored over that of number 0.
    #[cfg(all(test, not(revocable_model)))]
    pub(super) fn half_of(number: usize) -> Self {
        Self { bucket: 0, ..Self::of(number) }
    }

    #[cfg(test)]
    pub(super) fn number(self) -> usize {
        FIRST * ((1 << self.bucket) - 1) + self.at as usize
    }
}

/// One item for every thread: all slots of a gate, or the ids of all threads.
///
/// # Invariants
///
/// *Published*: a bucket's pointer is null, or comes from `Box::into_raw` of a boxed slice of `FIRST << bucket`
/// items, and then does not change before the drop.
#[derive(Debug)]
pub(super) struct Buckets<T>([AtomicPtr<T>; BUCKETS]);

impl<T: Default> Buckets<T> {
    #[cfg(not(all(test, revocable_model)))]
    pub(super) const fn new() -> Self {
        Self([const { AtomicPtr::new(ptr::null_mut()) }; BUCKETS])
    }

    /// loom's atomics cannot be constants.
    #[cfg(all(test, revocable_model))]
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())))
    }

    #[inline(always)]
    pub(super) fn get(&self, place: SlotAt) -> &T {
        // Acquire pairs with the Release in `grow`: the slots are initialised.
        let mut bucket = self.0[place.bucket as usize].load(Ordering::Acquire);
        if bucket.is_null() {
            bucket = self.grow(place.bucket as usize);
        }
        // SAFETY: *Published*: the bucket has `FIRST << place.bucket` slots, and `SlotAt::of` stays below that.
        let slot = unsafe { bucket.add(place.at as usize) };
        // SAFETY: *Published*: initialised, and lives as long as `self`; every thread accesses it atomically.
        unsafe { &*slot }
    }

    /// The item, if its bucket exists.
    pub(super) fn peek(&self, place: SlotAt) -> Option<&T> {
        // Acquire: as in `get`.
        let bucket = self.0[place.bucket as usize].load(Ordering::Acquire);
        debug_assert!((place.at as usize) < FIRST << place.bucket, "half of a position");
        let slot = bucket.wrapping_add(place.at as usize);
        // SAFETY: *Published*: initialised, and lives as long as `self`; every thread accesses it atomically.
        (!bucket.is_null()).then(|| unsafe { &*slot })
    }

    #[cold]
    fn grow(&self, bucket: usize) -> *mut T {
        let fresh: Box<[T]> = (0..FIRST << bucket).map(|_| T::default()).collect();
        let fresh = Box::into_raw(fresh);
        let published =
            // Release pairs with the Acquire in `get` and `each`; on failure the Acquire pairs with the Release of
            // the thread that was faster.
            self.0[bucket].compare_exchange(ptr::null_mut(), fresh.cast(), Ordering::Release, Ordering::Acquire);
        match published {
            Ok(_) => fresh.cast(),
            Err(theirs) => {
                // SAFETY: it was not published, so this is the only pointer to it.
                drop(unsafe { Box::from_raw(fresh) });
                theirs
            }
        }
    }

    /// Every slot that exists now, with its position.
    ///
    /// A bucket that is published later is not seen. Its thread published it before its light barrier, so the gate's cases
    /// hold for the bucket as they do for its counters.
    pub(super) fn each(&self) -> impl Iterator<Item = (SlotAt, &T)> {
        (0u32..).zip(&self.0).flat_map(|(bucket, pointer)| {
            // Acquire pairs with the Release in `grow`.
            let first = pointer.load(Ordering::Acquire);
            let len = if first.is_null() { 0 } else { FIRST << bucket };
            (0u32..).take(len).map(move |at| {
                // SAFETY: *Published*: not null, and `at` is below the bucket's length.
                let slot = unsafe { first.add(at as usize) };
                // SAFETY: *Published*: initialised, lives as long as `self`, and is accessed atomically.
                (SlotAt { bucket, at }, unsafe { &*slot })
            })
        })
    }
}

impl<T> Drop for Buckets<T> {
    fn drop(&mut self) {
        for (bucket, pointer) in self.0.iter().enumerate() {
            // Relaxed: `&mut self` comes after every other use, by whatever passed it on.
            let first = pointer.load(Ordering::Relaxed);
            if !first.is_null() {
                let slots = ptr::slice_from_raw_parts_mut(first, FIRST << bucket);
                // SAFETY: *Published*: it came from `Box::into_raw` with this length; no reference is left, as they
                // borrow `self`.
                drop(unsafe { Box::from_raw(slots) });
            }
        }
    }
}

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::*;

    #[test]
    fn places_are_dense_and_reach_beyond_every_thread_number() {
        for number in (0..if cfg!(miri) { 300 } else { 10_000 }).chain((0..23).map(|bit| 1 << bit)) {
            let place = SlotAt::of(number);
            assert_eq!(place.number(), number);
            let first = place.first_bucket();
            assert!(if number < FIRST { first == number } else { first >= FIRST }, "{number} is said to be {first}");
            assert!((place.at as usize) < FIRST << place.bucket, "{number} is outside of its bucket");
        }
        const { assert!(FIRST * ((1 << BUCKETS) - 1) > 1 << 22) };
    }
}
