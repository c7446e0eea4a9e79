//! Errors of ioeventfds.

use crate::protocol::error::RevokeError;
use crate::sys::SysError;

/// Ioeventfds could not be added, moved or removed; they are as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoEventFdError {
    /// There is one already for the same offset, width and value.
    #[error("there is an ioeventfd at offset {offset:#x} for that width and value already")]
    Exists {
        /// The offset in the BAR, in bytes.
        offset: u64,
    },
    /// There is none for that offset, width and value.
    #[error("there is no ioeventfd at offset {offset:#x} for that width and value")]
    NotFound {
        /// The offset in the BAR, in bytes.
        offset: u64,
    },
    /// Not inside the BAR, or the BAR not below the last guest address.
    #[error("offset {offset:#x} is beyond the BAR, or the BAR at guest address {gpa:#x} beyond the last address")]
    OutOfRange {
        /// The offset in the BAR, in bytes.
        offset: u64,
        /// The BAR's guest physical address.
        gpa: u64,
    },
    /// Called from inside a notifier of the same region, with a guard that another thread's change waits for, or in a forked
    /// child.
    #[error(transparent)]
    State(#[from] RevokeError),
    /// Out of descriptors.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The hypervisor refused one.
    #[error("the ioeventfd at guest address {gpa:#x}: {source}")]
    Vm {
        /// The guest physical address.
        gpa: u64,
        /// The hypervisor's error.
        source: SysError,
    },
}
