//! A small number for every thread that lives: where its counters are, in every gate.
//!
//! Numbers are handed out densely, and handed on when a thread ends, so that a scan over all of them is as long as
//! the process had threads at once, not ever.

use super::slots::Place;

/// The calling thread's place, in all gates alike.
#[inline(always)]
pub(super) fn current() -> Place {
    let place = CURRENT.with(|current| current.get());
    if place == Place::NONE { first_use() } else { place }
}

#[cfg(not(revocable_model))]
mod real {
    use super::super::slots::Buckets;
    use super::Place;
    use crate::sync::atomic::{AtomicI32, Ordering};
    use crate::sys::thread::current_tid;
    use std::cell::Cell;

    thread_local! {
        // Without a destructor, so that reading it is one load, at any time of a thread's life.
        pub(in crate::gate) static CURRENT: Cell<Place> = const { Cell::new(Place::NONE) };
        // The destructor is here.
        static HANDED_ON: HandOn = const { HandOn };
    }

    /// Which thread has which number; 0 is nobody. No lock: a thread that must not sleep may come here too.
    static OWNERS: Buckets<AtomicI32> = Buckets::new();

    #[cold]
    pub(super) fn first_use() -> Place {
        let tid = current_tid();
        let place = (0..)
            .map(Place::of)
            .find(|place| {
                // Acquire pairs with the Release in `HandOn`: this thread goes on counting where the last left off.
                let claim = OWNERS.get(*place).compare_exchange(0, tid, Ordering::Acquire, Ordering::Relaxed);
                claim.is_ok()
            })
            .expect("Place::of panics first");
        CURRENT.set(place);
        // In a thread that is past this destructor (an access from another one's), the number is not handed on:
        // a few bytes lost, and nothing else.
        let _ = HANDED_ON.try_with(|_| ());
        place
    }

    struct HandOn;

    impl Drop for HandOn {
        /// A guard that outlives this (one kept in a thread-local, or leaked) makes two threads write the same
        /// `left` counter, which can only lose an increment: the gate then never drains, and says so. It fails
        /// closed.
        fn drop(&mut self) {
            let place = CURRENT.replace(Place::NONE);
            if place != Place::NONE {
                // Release pairs with the Acquire in `first_use`.
                OWNERS.get(place).store(0, Ordering::Release);
            }
        }
    }

    /// The thread that has this number now; 0 if none has.
    pub(in crate::gate) fn tid_of(place: Place) -> i32 {
        // Relaxed: for reports.
        OWNERS.get(place).load(Ordering::Relaxed)
    }
}

#[cfg(not(revocable_model))]
pub(super) use real::tid_of;
#[cfg(not(revocable_model))]
use real::{CURRENT, first_use};

/// In the model each thread says which number it has: handing them out is not what is checked.
#[cfg(revocable_model)]
mod model {
    use super::Place;
    use std::cell::Cell;

    loom::thread_local! {
        pub(in crate::gate) static CURRENT: Cell<Place> = Cell::new(Place::NONE);
    }

    pub(in crate::gate) fn adopt(number: usize) {
        CURRENT.with(|current| current.set(Place::of(number)));
    }

    pub(super) fn first_use() -> Place {
        panic!("this model thread has not adopted a number");
    }

    pub(in crate::gate) fn tid_of(place: Place) -> i32 {
        i32::try_from(place.number()).unwrap_or(0)
    }
}

#[cfg(revocable_model)]
pub(super) use model::*;
