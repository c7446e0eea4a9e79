//! What a faulting caller allows, and what its fault meets: one pure decision for every path.
//!
//! The vocabulary is the kernel's (`FAULT_FLAG_*`, `VM_FAULT_*`), and so are the tables: [`on_contention`] is
//! `__folio_lock_or_retry` of mm/filemap.c, [`on_disabled`] is `handle_userfault` of fs/userfaultfd.c. Where this
//! crate departs from the kernel on purpose, the departure is a field of [`Rules`].
//!
//! A decision is data; [`Decision::carry_out`] acts on it, and [`resolve`] is the loop around a fault that the
//! kernel has in `fixup_user_fault` and `faultin_page`.

mod decide;
mod flags;
mod outcome;
mod retry;
#[cfg(all(test, not(revocable_model)))]
mod tests;

pub use decide::{
    Decision, LockFirst, RuleKilled, RuleNoRetry, RuleNowait, Rules, Seen, Situation, Sleep, Then,
};
pub use decide::{decide, on_contention, on_disabled};
pub use flags::{FaultFlags, IllegalFlags};
pub use outcome::{CallerLock, LockAfter, NoLock, Outcome, Woken};
pub use retry::{NotResolved, Resolved, resolve};
