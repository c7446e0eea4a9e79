//! System calls that fail on request, and steps of a revocation that are left out. Needs `--cfg revocable_inject`.
#![cfg(revocable_inject)]

#[macro_use]
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod support;

mod fault_injection;
mod held_up;
mod mutants;

use parking_lot::{Mutex, MutexGuard};

/// Injection and the counts are the whole process's, so one test runs at a time.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    support::start();
    ONE.lock()
}
