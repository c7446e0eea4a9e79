//! The one switch between the real synchronisation primitives and the model checker's.
//!
//! Everything whose interleavings matter (the gate, the memory lock, the waiters) takes its atomics, locks and
//! condition variables from here, so that `--cfg revocable_model` checks the code that ships, with the orderings
//! that ship.

#[cfg(not(revocable_model))]
mod real {
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use std::sync::atomic;
    pub(crate) use std::sync::Arc;
}

#[cfg(not(revocable_model))]
pub(crate) use real::*;
