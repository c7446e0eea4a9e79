//! What a faulting caller allows, and what happens to its fault: one pure decision for every path.
//!
//! The vocabulary is the kernel's (`FAULT_FLAG_*`, `VM_FAULT_*`). [`Rules`] decide about a contended lock: the kernel's
//! rules for a page that is locked, those that the vfio-pci patch and its review had for a BAR that is being reset, or this
//! crate's, the default. [`on_disabled`] decides about a disabled region, as `handle_userfault` does.
//!
//! # A contended lock, under each of the rules
//!
//! A cell says how the caller sleeps (at once: not at all; locked: with its own lock held; unlocked: with it released), the
//! result, and whether the lock is then held or released. Mapped means that the fault goes on once the contended lock is
//! free. "Cancelled" is a fatal signal during the sleep, here a [`CancelToken`](crate::CancelToken); "killed" in a cell
//! means that it ended the sleep. WRITE, USER and INTERRUPTIBLE make no difference. (A test runs every legal set of flags
//! against a region that is held, and compares.)
//!
//! | flags | PATCH_V1 | PATCH_V2 | REVIEW | PAGE_LOCK | CRATE |
//! |---|---|---|---|---|---|
//! | ALLOW_RETRY, NOWAIT, TRIED, KILLABLE | at once, Retry, held | locked, Mapped, held | at once, Retry, held | locked, Mapped, held | at once, Retry, held |
//! | ALLOW_RETRY, NOWAIT, TRIED, KILLABLE; cancelled | at once, Retry, held | locked, Mapped, held | at once, Retry, held | locked, killed, Retry, released | at once, Retry, held |
//! | ALLOW_RETRY, NOWAIT, TRIED | at once, Retry, held | locked, Mapped, held | at once, Retry, held | locked, Mapped, held | at once, Retry, held |
//! | ALLOW_RETRY, NOWAIT, KILLABLE | at once, Retry, held | locked, Mapped, held | at once, Retry, held | at once, Retry, held | at once, Retry, held |
//! | ALLOW_RETRY, NOWAIT, KILLABLE; cancelled | at once, Retry, held | locked, Mapped, held | at once, Retry, held | at once, Retry, held | at once, Retry, held |
//! | ALLOW_RETRY, NOWAIT | at once, Retry, held | locked, Mapped, held | at once, Retry, held | at once, Retry, held | at once, Retry, held |
//! | ALLOW_RETRY, TRIED, KILLABLE | unlocked, Retry, released | locked, Mapped, held | unlocked, Retry, released | locked, Mapped, held | locked, Mapped, held |
//! | ALLOW_RETRY, TRIED, KILLABLE; cancelled | unlocked, killed, Retry, released | locked, Mapped, held | unlocked, killed, Retry, released | locked, killed, Retry, released | locked, killed, Killed, released |
//! | ALLOW_RETRY, TRIED | unlocked, Retry, released | locked, Mapped, held | unlocked, Retry, released | locked, Mapped, held | locked, Mapped, held |
//! | ALLOW_RETRY, KILLABLE | unlocked, Retry, released | locked, Mapped, held | unlocked, Retry, released | unlocked, Retry, released | unlocked, Retry, released |
//! | ALLOW_RETRY, KILLABLE; cancelled | unlocked, killed, Retry, released | locked, Mapped, held | unlocked, killed, Retry, released | unlocked, killed, Retry, released | unlocked, killed, Killed, released |
//! | ALLOW_RETRY | unlocked, Retry, released | locked, Mapped, held | unlocked, Retry, released | unlocked, Retry, released | unlocked, Retry, released |
//! | KILLABLE | at once, Sigbus, held | locked, Mapped, held | locked, Mapped, held | locked, Mapped, held | locked, Mapped, held |
//! | KILLABLE; cancelled | at once, Sigbus, held | locked, Mapped, held | locked, killed, Retry, released | locked, killed, Retry, released | locked, killed, Killed, released |
//! | none | at once, Sigbus, held | locked, Mapped, held | locked, Mapped, held | locked, Mapped, held | locked, Mapped, held |
//!
//! A decision is data; [`Decision::carry_out`] acts on it, and [`resolve`] is the loop around a fault that the
//! kernel has in `fixup_user_fault` and `faultin_page`.

mod decide;
mod flags;
mod outcome;
mod retry;
#[cfg(all(test, not(revocable_model)))]
mod tests;

pub use decide::{Decision, LockFirst, Rules, Seen, Situation, Sleep, Then};
pub use decide::{decide, on_contention, on_disabled};
pub use flags::{FaultFlags, IllegalFlags};
pub use outcome::{CallerLock, LockAfter, NoLock, Outcome, Woken};
pub use retry::{NotResolved, Resolved, resolve};
