//! Errors of memslots and exits.

use crate::protocol::error::RevokeError;
use crate::sys::SysError;

/// A memslot could not be changed; the guest's memory map is as before, unless a variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemslotError {
    /// Guest addresses of memslots are multiples of the page size, and end below 2^64.
    #[error("guest address {gpa:#x} is not a multiple of the page size {page:#x}, or too high")]
    Unaligned {
        /// The guest physical address.
        gpa: u64,
        /// The page size, in bytes.
        page: usize,
    },
    /// Another memslot of the set has the same number, or is installed where this one is to be.
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
    /// Called from inside a notifier of the same region, with a guard that another thread's change waits for, or in a forked
    /// child.
    #[error(transparent)]
    State(#[from] RevokeError),
    /// The hypervisor refused to install, move or remove the memslot.
    #[error("slot {slot} at guest address {gpa:#x}: {source}")]
    Vm {
        /// The slot asked for.
        slot: u32,
        /// The guest physical address asked for.
        gpa: u64,
        /// The hypervisor's error.
        source: SysError,
    },
}

/// A guest's access could not be answered, and is still open. Asking again (`kvm::ExitHandler::again`, or
/// [`Exits::mmio_read`](super::Exits::mmio_read) with the same exit) tries it once more; entering the vCPU instead makes it
/// an Unsupported Request, if it had an address, and executes the instruction again, if not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExitError {
    /// The region is disabled, and [`WhenDisabled::Fail`](super::WhenDisabled::Fail) was asked for.
    #[error("guest access to disabled memory{}", At(*slot, *gpa))]
    Disabled {
        /// The memslot; `None` if the exit has no address, and the access may be to any of several disabled ones.
        slot: Option<u32>,
        /// The guest physical address, if the machine reports it.
        gpa: Option<u64>,
    },
    /// The region was dropped, and the access would have waited for it.
    #[error("guest access to memory whose region is gone{}", At(*slot, *gpa))]
    Gone {
        /// As in [`Disabled`](Self::Disabled).
        slot: Option<u32>,
        /// The guest physical address, if the machine reports it.
        gpa: Option<u64>,
    },
    /// The hypervisor cannot emulate the guest's instruction (SSE, AVX, x87), and the memslot of the disabled region is
    /// not there. [`Retention::AllOnes`](super::Retention::AllOnes) needs no emulation, and with a mapping of policy
    /// `AllOnes` the slot would have been put back.
    #[error(
        "the guest's instruction cannot be emulated over disabled memory{}: use Retention::AllOnes",
        At(*slot, None)
    )]
    NotEmulated {
        /// As in [`Disabled`](Self::Disabled).
        slot: Option<u32>,
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
    /// The vCPU's state could not be changed, to execute its instruction again.
    #[error("the vCPU cannot be made to execute its instruction again: {source}")]
    Vcpu {
        /// The hypervisor's error.
        source: SysError,
    },
    /// The memslot of a disabled region could not be taken out or put back, so the access cannot be answered.
    #[error("slot {slot} cannot be changed: {source}")]
    Vm {
        /// The memslot.
        slot: u32,
        /// The hypervisor's error.
        source: SysError,
    },
}

struct At(Option<u32>, Option<u64>);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(slot) => write!(f, ", slot {slot}")?,
            None => f.write_str(", one of several slots")?,
        }
        self.1.map_or(Ok(()), |gpa| write!(f, ", guest address {gpa:#x}"))
    }
}
