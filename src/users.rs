//! Users' code: traits, closures and wakers of a user's, called and dropped.
//!
//! One rule for all of them: they run under no lock of the crate, they may panic (so may their destructors), and they may
//! drop anything. A verb that would have to wait for the call that it is made from returns an error.
//!
//! - [`guarded`] and [`discard`] end a panic where the call was made.
//! - [`Theirs`] holds an object of a user's: a panic of its destructor goes no further. It is dropped after locks are.
//! - [`turn`]: who may change what users' code follows.
//! - [`Calling`] remembers the objects for which the calling thread is in users' code, where no lock's owner shows it.

pub(crate) mod turn;

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
            // A panic's payload is the user's too, and its destructor may panic in turn.
            if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
                std::mem::forget(another);
            }
            None
        }
    }
}

/// Drops a value that may be a user's.
pub(crate) fn discard<T>(value: T) {
    let _ = guarded(|| drop(value));
}

/// A user's object, shared. It must not be dropped under a lock.
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

/// How many nested calls are told apart.
const DEPTH: usize = 16;

// No destructor, no allocation: a signal handler may read it.
std::thread_local! {
    static INSIDE: Cell<(usize, [usize; DEPTH])> = const { Cell::new((0, [0; DEPTH])) };
}

/// While it lives, the calling thread is in users' code on behalf of an object, which is known by its address. (The crate's
/// own code is another matter: [`crate::sync::inside`].)
pub(crate) struct Calling {
    /// The thread's earlier calls.
    before: (usize, [usize; DEPTH]),
}

impl Calling {
    pub(crate) fn of<T>(object: &T) -> Self {
        // A signal handler must not see it half-written.
        let _inside = inside::enter();
        let before = INSIDE.get();
        let (depth, mut objects) = before;
        // Calls that are nested deeper than `DEPTH` are not remembered.
        if let Some(place) = objects.get_mut(depth) {
            *place = std::ptr::from_ref(object).addr();
            INSIDE.set((depth + 1, objects));
        }
        Self { before }
    }

    /// True if the calling thread is in the middle of a call on behalf of this object.
    pub(crate) fn is_in<T>(object: &T) -> bool {
        let (depth, objects) = INSIDE.get();
        objects[..depth].contains(&std::ptr::from_ref(object).addr())
    }

    /// True if it is, on behalf of any object.
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
