//! Errors of the `kvm` feature.

use crate::protocol::error::RevokeError;
use crate::sys::SysError;

/// A mapping could not be made guest memory; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemslotError {
    /// Guest addresses of memslots are multiples of the page size.
    #[error("guest address {gpa:#x} is not a multiple of the page size {page:#x}")]
    Unaligned {
        /// The guest physical address.
        gpa: u64,
        /// The page size, in bytes.
        page: usize,
    },
    /// Two of the guest's revocable memslots would overlap, or have the same number.
    #[error("slot {slot} at guest address {gpa:#x} would overlap slot {other}")]
    Overlap {
        /// The slot asked for.
        slot: u32,
        /// The guest physical address asked for.
        gpa: u64,
        /// The slot that is in the way.
        other: u32,
    },
    /// A mapping with these options cannot be guest memory.
    #[error("this mapping cannot be guest memory: {0}")]
    Mapping(&'static str),
    /// Called from inside a notifier of the same region, or with a guard that another thread's change waits for.
    #[error(transparent)]
    State(#[from] RevokeError),
    /// KVM refused the memslot.
    #[error("slot {slot} at guest address {gpa:#x}: {source}")]
    Kvm {
        /// The slot asked for.
        slot: u32,
        /// The guest physical address asked for.
        gpa: u64,
        /// KVM's error.
        source: SysError,
    },
}

/// A guest's access could not be answered, and is still open. [`ExitHandler::again`](super::ExitHandler::again) tries it
/// once more; entering the vCPU instead makes it an Unsupported Request, if it had an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExitError {
    /// The region is disabled, and [`WhenDisabled::Fail`](super::WhenDisabled::Fail) was asked for.
    #[error("guest access to disabled memory, slot {slot}{}", At(gpa))]
    Disabled {
        /// The memslot.
        slot: u32,
        /// The guest physical address, if the machine reports it.
        gpa: Option<u64>,
    },
    /// The region was dropped, and the access would have waited for it.
    #[error("guest access to memory whose region is gone, slot {slot}{}", At(gpa))]
    Gone {
        /// The memslot.
        slot: u32,
        /// The guest physical address, if the machine reports it.
        gpa: Option<u64>,
    },
    /// It would wait for the calling thread itself, which changes the region's state (a notifier that runs a vCPU).
    #[error(
        "guest access, slot {slot}, would wait for its own thread, which changes the region's state: run the vCPU elsewhere"
    )]
    Reentrant {
        /// The memslot.
        slot: u32,
    },
    /// It would wait for a change of state that waits for a guard of the calling thread.
    #[error(
        "guest access, slot {slot}, would wait for a change that waits for a guard of this thread's: drop it first"
    )]
    WouldDeadlock {
        /// The memslot.
        slot: u32,
    },
    /// The region is enabled, but its memory gives no page there.
    #[error("no memory at guest address {gpa:#x}, slot {slot}")]
    NoMemory {
        /// The memslot.
        slot: u32,
        /// The guest physical address.
        gpa: u64,
    },
    /// The memslot of a disabled region could not be taken out, so the access keeps exiting without an address.
    #[error("slot {slot} cannot be taken out: {source}")]
    Kvm {
        /// The memslot.
        slot: u32,
        /// KVM's error.
        source: SysError,
    },
}

struct At<'a>(&'a Option<u64>);

impl std::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(gpa) => write!(f, ", guest address {gpa:#x}"),
            None => Ok(()),
        }
    }
}
