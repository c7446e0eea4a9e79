//! Errors of accesses, and the check that every access begins with.

use crate::protocol::fault::NotResolved;
use crate::protocol::gate::Phase;
use crate::raw::Primitive;

/// An access was refused; it has not changed the memory. The guide says [what to do](crate::guide::errors).
///
/// ```
/// use revocable_mmio::{AccessError, Mapping};
///
/// /// What a bus gives the CPU.
/// fn on_the_bus(bar: &Mapping, offset: usize) -> Result<u32, AccessError> {
///     match bar.read::<u32>(offset) {
///         Err(AccessError::Disabled { .. } | AccessError::Gone { .. }) => Ok(u32::MAX), // no device answers
///         other => other, // the caller's mistake, or no memory
///     }
/// }
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// # region.disable()?;
/// assert_eq!(on_the_bus(&mapping, 0), Ok(u32::MAX));
/// assert_eq!(on_the_bus(&mapping, 2), Err(AccessError::Misaligned { offset: 2, align: 4 }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The access is not inside the mapping.
    #[error("{size} bytes at offset {offset:#x} are not inside the mapping's {len:#x} bytes")]
    OutOfBounds {
        /// In bytes.
        offset: usize,
        /// In bytes.
        size: usize,
        /// The mapping's length, in bytes.
        len: usize,
    },
    /// The access is not naturally aligned.
    #[error("offset {offset:#x} is not a multiple of {align}")]
    Misaligned {
        /// In bytes.
        offset: usize,
        /// In bytes.
        align: usize,
    },
    /// A store through a read-only mapping.
    #[error("a store at offset {offset:#x} of a read-only mapping: map it without MapOptions::read_only")]
    ReadOnly {
        /// In bytes.
        offset: usize,
    },
    /// The rights of that part of the mapping do not allow it: see [`Mapping::protect`](crate::Mapping::protect).
    #[error("the rights at offset {offset:#x} do not allow it (Mapping::protect)")]
    Protected {
        /// In bytes.
        offset: usize,
    },
    /// The region is disabled, or its device has turned the memory off by itself
    /// ([`RegionBuilder::memory_enabled`](crate::RegionBuilder::memory_enabled)).
    #[error("the region is disabled, or its device is off, and refuses {}: try again after enable()", AtOffset(*.offset))]
    Disabled {
        /// In bytes.
        offset: usize,
    },
    /// The region is busy, or the page is not there yet, and the access may not wait.
    #[error("the region is busy, and {} would have to wait: try again, or let it wait", AtOffset(*.offset))]
    WouldBlock {
        /// In bytes.
        offset: usize,
    },
    /// The wait was cancelled.
    #[error("the wait for offset {offset:#x} was cancelled")]
    Cancelled {
        /// In bytes.
        offset: usize,
    },
    /// The access would wait for its own thread: it was made by a callback of a change of the region's state, or by a
    /// signal handler that interrupted a thread inside of this crate.
    #[error(
        "{} would wait for its own thread, which changes the region's state or was interrupted inside of this crate: \
         make it later or in another thread, or use the try_ form",
        AtOffset(*.offset)
    )]
    Reentrant {
        /// In bytes.
        offset: usize,
    },
    /// Made in a forked child, which has none of its parent's mappings.
    #[error("the region is the parent's, and {} was made in a forked child: build a region there", AtOffset(*.offset))]
    Forked {
        /// In bytes.
        offset: usize,
    },
    /// The region was dropped.
    #[error("the region was dropped, and refuses {} for good", AtOffset(*.offset))]
    Gone {
        /// In bytes.
        offset: usize,
    },
    /// It would wait for a change of state which in turn waits for the calling thread: for a guard that it holds of another
    /// region that changes together with this one, or for a change that it is making of that region.
    #[error(
        "the change under way waits for this thread, for a guard that it holds of a region that changes together with this one: drop it"
    )]
    WouldDeadlock,
    /// The caller's flags contradict themselves.
    #[error(transparent)]
    Flags(crate::protocol::fault::IllegalFlags),
    /// The region is enabled, but there is no page: its file was truncated, or memory ran out; in an owner's view also: its
    /// device has turned the memory off by itself.
    #[error(
        "no memory at offset {offset:#x}: the region's file was truncated, its device is off, or the system is out of memory"
    )]
    NoMemory {
        /// In bytes.
        offset: usize,
    },
}

impl AccessError {
    /// The error of an access that was not made, at `offset` of a region in this phase.
    pub(crate) fn of_refused(refused: NotResolved, phase: Phase, offset: usize) -> Self {
        match refused {
            NotResolved::Sigbus if phase == Phase::Gone => AccessError::Gone { offset },
            NotResolved::Sigbus => AccessError::Disabled { offset },
            NotResolved::WouldBlock => AccessError::WouldBlock { offset },
            NotResolved::Killed => AccessError::Cancelled { offset },
            NotResolved::Reentrant => AccessError::Reentrant { offset },
            NotResolved::WouldDeadlock => AccessError::WouldDeadlock,
            NotResolved::Illegal(flags) => AccessError::Flags(flags),
        }
    }

    /// The offset in the error of a guard, which is about the whole mapping.
    pub const WHOLE: usize = usize::MAX;
}

/// The offset of an access, for the messages.
struct AtOffset(usize);

impl std::fmt::Display for AtOffset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == AccessError::WHOLE {
            f.write_str("a guard")
        } else {
            write!(f, "an access at offset {:#x}", self.0)
        }
    }
}

/// A bulk copy ended early.
///
/// ```
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let mut buffer = [0; 8192];
/// # region.disable()?;
/// if let Err(e) = mapping.read_slice(0, &mut buffer) {
///     println!("{} bytes are in the buffer; then: {}", e.done, e.error);
/// #   assert_eq!(e.done, 0);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{done} bytes were copied, then: {error}")]
pub struct CopyError {
    /// How many bytes were copied; none beyond them were.
    pub done: usize,
    /// Why it ended.
    pub error: AccessError,
}

/// Checks the bounds and the natural alignment of one access.
pub(crate) fn check<T: Primitive>(offset: usize, len: usize) -> Result<(), AccessError> {
    let size = size_of::<T>();
    if offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(AccessError::OutOfBounds { offset, size, len });
    }
    if offset % size != 0 {
        return Err(AccessError::Misaligned { offset, align: size });
    }
    Ok(())
}
