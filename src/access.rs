//! Accesses to a mapping.
//!
//! The fast path (`typed.rs`) is one comparison, which checks bounds and state together, and one instruction, which
//! recovers if it faults ([`crate::raw`]). Out of line (`slow.rs`) are the results of refused accesses, and the waits. On
//! architectures without such instructions an access is made under the memory lock (`locked.rs`), as accesses on a caller's
//! behalf are everywhere (`behalf.rs`).

mod behalf;
pub(crate) mod guard;
mod locked;
pub(crate) mod register;
mod slow;
mod typed;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessKind {
    Load,
    Store,
}
