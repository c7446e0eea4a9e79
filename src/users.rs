//! Users' code: traits, closures and wakers that a user hands in, called and dropped.
//!
//! One rule for all of them: they run under no lock of the crate, they may panic (so may their destructors), they may drop
//! anything, and a verb that would have to wait for the call that they are part of says so instead.
//!
//! - [`guarded`] and [`discard`] end a panic where the call was made.
//! - [`Theirs`] is what is kept of a user's: its destructor's panic goes no further. It is dropped after locks are.
//! - [`Calling`] remembers what the calling thread is in the middle of, where no lock's owner does.

use crate::sync::inside;
use std::cell::Cell;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Runs users' code; `None` if it panicked.
pub(crate) fn guarded<R>(run: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Some(value),
        Err(panic) => {
            // What a panic carries is the user's too, and its destructor may panic in turn.
            if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(another);
            }
            None
        }
    }
}

/// Drops what may be a user's.
pub(crate) fn discard<T>(value: T) {
    let _ = guarded(|| drop(value));
}

/// A user's object, shared. Not to be dropped under a lock.
pub(crate) struct Theirs<T: ?Sized>(Option<Arc<T>>);

impl<T: ?Sized> Theirs<T> {
    pub(crate) fn new(object: Arc<T>) -> Self {
        Self(Some(object))
    }
}

impl<T: ?Sized> Deref for Theirs<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.0 {
            Some(object) => object,
            None => unreachable!("taken by the destructor only"),
        }
    }
}

impl<T: ?Sized> Clone for Theirs<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: ?Sized> Drop for Theirs<T> {
    fn drop(&mut self) {
        discard(self.0.take());
    }
}

/// How many calls inside of each other are told apart.
const DEPTH: usize = 16;

// No destructor, no allocation: a signal handler may look.
std::thread_local! {
    static INSIDE: Cell<(usize, [usize; DEPTH])> = const { Cell::new((0, [0; DEPTH])) };
}

/// While it lives, the calling thread is in a user's code on behalf of an object, which is known by its address. (Calling of the
/// crate's own code is another: [`crate::sync::inside`].)
pub(crate) struct Calling {
    /// Where the thread was before.
    before: (usize, [usize; DEPTH]),
}

impl Calling {
    pub(crate) fn of<T>(object: &T) -> Self {
        // A signal handler must not see half of it.
        let _inside = inside::enter();
        let before = INSIDE.get();
        let (depth, mut objects) = before;
        // Calls that are nested deeper than this are not remembered.
        if let Some(place) = objects.get_mut(depth) {
            *place = std::ptr::from_ref(object).addr();
            INSIDE.set((depth + 1, objects));
        }
        Self { before }
    }

    /// Is the calling thread in the middle of a call on behalf of this object?
    pub(crate) fn is_in<T>(object: &T) -> bool {
        let (depth, objects) = INSIDE.get();
        objects[..depth].contains(&std::ptr::from_ref(object).addr())
    }

    /// Of any object?
    pub(crate) fn is_any() -> bool {
        INSIDE.get().0 > 0
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        let _inside = inside::enter();
        INSIDE.set(self.before);
    }
}
