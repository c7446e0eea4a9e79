//! A memslot's counters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a [`Memslot`](super::Memslot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemslotStats {
    /// How often it was put into the guest's memory map, or moved there.
    pub installs: u64,
    /// How often it was taken out.
    pub removals: u64,
    /// How often an exit took it out ([`Retention::Keep`](super::Retention::Keep)); included in `removals`.
    pub withdrawn: u64,
    /// Changes of the region's state that the slot could not follow. The memory is revoked all the same, and the exits'
    /// handler makes accesses to enabled memory.
    pub degraded: u64,
    /// Guest accesses that were made on the guest's behalf.
    pub served: u64,
    /// Guest accesses that were answered as Unsupported Requests.
    pub unsupported: u64,
}

#[derive(Default)]
pub(super) struct SlotCounters {
    pub(super) installs: AtomicU64,
    pub(super) removals: AtomicU64,
    pub(super) withdrawn: AtomicU64,
    pub(super) degraded: AtomicU64,
    pub(super) served: AtomicU64,
    pub(super) unsupported: AtomicU64,
}

impl SlotCounters {
    pub(super) fn read(&self) -> MemslotStats {
        MemslotStats {
            installs: self.installs.load(Ordering::Relaxed),
            removals: self.removals.load(Ordering::Relaxed),
            withdrawn: self.withdrawn.load(Ordering::Relaxed),
            degraded: self.degraded.load(Ordering::Relaxed),
            served: self.served.load(Ordering::Relaxed),
            unsupported: self.unsupported.load(Ordering::Relaxed),
        }
    }
}
