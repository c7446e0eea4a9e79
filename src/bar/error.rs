//! Errors of areas.

use crate::memslot::MemslotError;
use crate::protocol::error::RevokeError;
use crate::region::error::{BuildError, MapError};
use std::ops::Range;

/// A BAR's areas could not be changed; nothing was, unless a verb says otherwise.
///
/// ```
/// use revocable_mmio::Region;
/// use revocable_mmio::bar::{Area, Areas, Bar, BarError};
///
/// fn map_blob(areas: &Areas, offset: u64) -> Result<Area, BarError> {
///     match areas.try_insert(offset, Region::builder(0x4000)) {
///         Err(e) if e.is_busy() => areas.insert(offset, Region::builder(0x4000)), // a reset: wait for its end
///         other => other, // the caller's mistake, or no memory
///     }
/// }
///
/// let bar = Bar::builder(1 << 20).build()?;
/// let _blob = map_blob(bar.areas(), 0x1_0000)?;
/// let twice = map_blob(bar.areas(), 0x1_2000);
/// assert!(matches!(twice, Err(BarError::Overlap { other, .. }) if other == (0x1_0000..0x1_4000)));
/// # Ok::<(), BarError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarError {
    /// A BAR has at least one byte, and its pages are in an address space.
    #[error("a BAR of {size:#x} bytes: from 1 byte to 2^63")]
    Size {
        /// In bytes.
        size: u64,
    },
    /// An area begins at a multiple of the page size.
    #[error(
        "offset {offset:#x} is not a multiple of the page size {page:#x}: let the area begin before, and trap the rest"
    )]
    Unaligned {
        /// In bytes.
        offset: u64,
        /// In bytes.
        page: u64,
    },
    /// An area or a trap is not inside of the BAR, or empty.
    #[error("{range:#x?} is not inside of the BAR's {size:#x} bytes, or empty")]
    OutOfRange {
        /// The bytes asked for.
        range: Range<u64>,
        /// The size of the BAR, in bytes.
        size: u64,
    },
    /// Two areas, or two traps, would have the same bytes.
    #[error("{range:#x?} overlaps {other:#x?}: remove that first")]
    Overlap {
        /// The bytes asked for.
        range: Range<u64>,
        /// The bytes that are taken.
        other: Range<u64>,
    },
    /// The numbers for memslots are used up.
    #[error(
        "an area of {needed} memslots, and {left} number(s) left of those that the BAR was given (BarBuilder::memslots)"
    )]
    OutOfMemslots {
        /// How many the area needs.
        needed: usize,
        /// How many numbers are free.
        left: usize,
    },
    /// The area's region could not be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The area could not be mapped for the guest.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A memslot could not be added, moved or removed.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// The BAR is being changed: by another thread that the call does not wait for, or by this one, or the BAR is gone, or
    /// the process is a forked child.
    #[error(transparent)]
    State(#[from] RevokeError),
}

impl BarError {
    /// True if trying again later makes sense: another thread is changing the BAR.
    pub fn is_busy(&self) -> bool {
        matches!(self, BarError::State(RevokeError::Busy(_) | RevokeError::TimedOut { .. }))
    }
}
