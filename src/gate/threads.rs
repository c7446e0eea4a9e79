//! A small number for every thread that lives: where its counters are, in every gate.
//!
//! Numbers are handed out densely, and handed on when a thread ends, so that a scan over all of them is as long as
//! the process had threads at once, not ever.

use super::slots::Place;

/// The calling thread's place, in all gates alike.
#[inline(always)]
pub(super) fn current() -> Place {
    let place = CURRENT.with(|current| current.get());
    if place == Place::NONE {
        first_use()
    } else {
        place
    }
}

#[cfg(not(revocable_model))]
mod real {
    use super::Place;
    use crate::sync::Mutex;
    use crate::sys::thread::current_tid;
    use std::cell::Cell;

    thread_local! {
        // Without a destructor, so that reading it is one load, at any time of a thread's life.
        pub(in crate::gate) static CURRENT: Cell<Place> = const { Cell::new(Place::NONE) };
        // The destructor is here.
        static HANDED_ON: HandOn = const { HandOn };
    }

    /// Which thread has which number.
    struct Registry {
        /// By number: the thread's id, or 0 if the number is free.
        tids: Vec<i32>,
        free: Vec<usize>,
    }

    static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
        tids: Vec::new(),
        free: Vec::new(),
    });

    #[cold]
    pub(super) fn first_use() -> Place {
        let mut registry = REGISTRY.lock();
        let number = registry.free.pop().unwrap_or_else(|| {
            registry.tids.push(0);
            registry.tids.len() - 1
        });
        registry.tids[number] = current_tid();
        drop(registry);
        let place = Place::of(number);
        CURRENT.set(place);
        // In a thread that is past this destructor (an access from another one's), the number is not handed on:
        // a few bytes lost, and nothing else.
        let _ = HANDED_ON.try_with(|_| ());
        place
    }

    struct HandOn;

    impl Drop for HandOn {
        /// The lock orders everything that this thread did to its counters before what the next owner does.
        ///
        /// A guard that outlives this (one kept in a thread-local, or leaked) makes two threads write the same
        /// `left` counter, which can only lose an increment: the gate then never drains, and says so. It fails
        /// closed.
        fn drop(&mut self) {
            let place = CURRENT.replace(Place::NONE);
            if place != Place::NONE {
                let number = place.number();
                let mut registry = REGISTRY.lock();
                registry.tids[number] = 0;
                registry.free.push(number);
            }
        }
    }

    /// The thread that has this number now; 0 if none has.
    pub(in crate::gate) fn tid_of(place: Place) -> i32 {
        REGISTRY
            .lock()
            .tids
            .get(place.number())
            .copied()
            .unwrap_or(0)
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
