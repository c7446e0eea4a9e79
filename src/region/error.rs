//! Errors of making, mapping, pinning and faulting in: one enum for each family of verbs, with the numbers in the message
//! and the remedy.

use crate::monitor::MonitorError;
use crate::sys::SysError;
use crate::view::Strategy;

/// Building a region failed; nothing was made.
///
/// ```
/// use revocable_mmio::{Backing, BuildError, Region, Strategy};
///
/// let odd = Region::builder(100).build();
/// assert!(matches!(odd, Err(BuildError::Unaligned { what: "length", value: 100, .. })));
/// match Region::builder(2 << 20).backing(Backing::Huge2M).strategy(Strategy::Detach).build() {
///     Err(e @ BuildError::Strategy { .. }) => println!("{e}"), // not for hugetlb: leave the choice to the builder
///     Err(e) => println!("{e}"), // no huge page is free: see vm.nr_hugepages
///     Ok(_) => unreachable!(),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A region has at least one page.
    #[error("a region of 0 bytes: give the length in bytes, a multiple of {page}")]
    Empty {
        /// The backing's page size, in bytes.
        page: usize,
    },
    /// Lengths and offsets are multiples of the backing's page size.
    #[error("{what} {value:#x} is not a multiple of the page size {page:#x}: round it")]
    Unaligned {
        /// The number that is not a multiple: a length or an offset.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
        /// The page size, in bytes.
        page: usize,
    },
    /// The region is larger than the address space, or than a file, can be.
    #[error("offset {offset:#x} plus length {len:#x} is more than an address space can hold: make the region shorter")]
    TooLarge {
        /// Where the region starts in its file, in bytes.
        offset: u64,
        /// The length asked for, in bytes.
        len: usize,
    },
    /// The caller's file ends before the region does.
    #[error("the file has {file} bytes, the region needs {needed}: grow the file or shorten the region")]
    FileTooShort {
        /// The file's size, in bytes.
        file: u64,
        /// Offset plus length, in bytes.
        needed: u64,
    },
    /// The strategy is not possible here. Or none was asked for, and the best one is not possible at the moment, for lack
    /// of descriptors or memory: a weaker one would stay the region's for good.
    #[error("strategy {strategy} is not possible: {why}{}; leave the choice to the builder, or see Support", because(.source))]
    Strategy {
        /// The strategy that was asked for, or the best one.
        strategy: Strategy,
        /// What is missing.
        why: &'static str,
        /// The kernel's error when it was tried.
        source: Option<SysError>,
    },
    /// The name has a NUL byte.
    #[error("the name {0:?} has a NUL byte in it: leave it out")]
    Name(String),
    /// No monitor could be made.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The signal handlers through which accesses recover could not be installed.
    #[error(transparent)]
    Signal(#[from] crate::raw::signal::SignalError),
    /// A system call failed.
    #[error("cannot make the region: {0}")]
    Sys(#[from] SysError),
}

fn because(source: &Option<SysError>) -> String {
    source.map(|e| format!(": {e}")).unwrap_or_default()
}

/// Mapping a region failed; nothing was mapped.
///
/// ```
/// use revocable_mmio::{MapError, MapOptions};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let page = region.page_size();
/// let error = region.map(MapOptions::new().offset(page / 2)).unwrap_err();
/// assert!(matches!(error, MapError::Unaligned { what: "offset", .. }));
/// let error = region.map(MapOptions::new().len(region.len() + page)).unwrap_err();
/// assert!(matches!(error, MapError::OutOfRange { .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// There is nothing to map: a length of 0.
    #[error("a mapping of 0 bytes: give a length, at an offset before the region's end")]
    Empty,
    /// Offsets and lengths of mappings are multiples of the page size.
    #[error("{what} {value:#x} is not a multiple of the page size {page:#x}: round it")]
    Unaligned {
        /// The number that is not a multiple: a length or an offset.
        what: &'static str,
        /// Its value, in bytes.
        value: usize,
        /// The page size, in bytes.
        page: usize,
    },
    /// The part asked for is not inside the region.
    #[error("offset {offset:#x} plus length {len:#x} is beyond the region's {region:#x} bytes: map a part of it")]
    OutOfRange {
        /// In bytes.
        offset: usize,
        /// In bytes.
        len: usize,
        /// The region's length, in bytes.
        region: usize,
    },
    /// The region can be read only, and the mapping is to be stored to.
    #[error("the region can be read only: map it with MapOptions::read_only")]
    ReadOnly,
    /// [`OnDisabled::Block`](crate::OnDisabled): the userfaultfd in which accesses would wait cannot be opened.
    #[error("waiting at a disabled region needs a userfaultfd for user-mode faults (Linux 5.11): {source}")]
    Wait {
        /// What failed.
        source: SysError,
    },
    /// Called in a forked child: its parent's monitor cannot serve it.
    #[error("the region is the parent's: a forked child builds one of its own")]
    Forked,
    /// Called from inside a reset callback of the same region: it would wait for that callback's end.
    #[error("called from inside a reset callback of the same region: map it before or after")]
    Reentrant,
    /// It would wait for a change which in turn waits for the calling thread, which is changing a region that changes
    /// together with this one.
    #[error("the change under way waits for this thread, which changes a region that changes together with this one")]
    WouldDeadlock,
    /// No monitor thread could be started, or the monitor is gone.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// A system call failed.
    #[error("cannot map {len:#x} bytes: {source}")]
    Sys {
        /// The length, in bytes.
        len: usize,
        /// What failed.
        source: SysError,
    },
}

/// The rights of a part of a mapping are as before.
///
/// ```
/// use revocable_mmio::{MapOptions, Prot, ProtectError};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let page = region.page_size();
/// let mapping = region.map(MapOptions::new().read_only())?;
/// assert_eq!(mapping.protect(0..page, Prot::ReadWrite), Err(ProtectError::ReadOnly));
/// assert_eq!(mapping.protect(0..100, Prot::None), Err(ProtectError::Unaligned { value: 100, page }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// Empty, or not inside the mapping.
    #[error("{start:#x}..{end:#x} is empty or not inside the mapping's {len:#x} bytes")]
    OutOfRange {
        /// In bytes.
        start: usize,
        /// In bytes.
        end: usize,
        /// The mapping's length, in bytes.
        len: usize,
    },
    /// Rights are set for whole pages.
    #[error("{value:#x} is not a multiple of the page size {page:#x}")]
    Unaligned {
        /// In bytes.
        value: usize,
        /// The region's page size, in bytes.
        page: usize,
    },
    /// The rights exceed those that the mapping was made with.
    #[error("the mapping is read-only: map the region without MapOptions::read_only for rights to write")]
    ReadOnly,
    /// Called in a forked child, which does not have the mapping.
    #[error("the mapping is the parent's: a forked child builds a region of its own")]
    Forked,
    /// The system call failed.
    #[error("cannot change the rights: {0}")]
    Sys(SysError),
}

/// A fault could not be tried, or not be resolved.
///
/// ```
/// use revocable_mmio::FaultError;
/// use revocable_mmio::fault::{FaultFlags, NoLock, NotResolved};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// region.disable()?;
/// let refused = region.fault_in(0, FaultFlags::WAIT, &mut NoLock::default());
/// assert_eq!(refused, Err(FaultError::NotResolved(NotResolved::Sigbus)));
/// let illegal = region.fault_in(0, FaultFlags::RETRY_NOWAIT, &mut NoLock::default());
/// assert!(matches!(illegal, Err(FaultError::Flags(_))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// The offset is not inside the region or mapping.
    #[error("offset {offset:#x} is beyond its {len:#x} bytes")]
    OutOfBounds {
        /// In bytes.
        offset: usize,
        /// The length of the region or mapping, in bytes.
        len: usize,
    },
    /// The loop around the fault ended without the memory.
    #[error(transparent)]
    NotResolved(#[from] crate::protocol::fault::NotResolved),
    /// The flags contradict themselves.
    #[error(transparent)]
    Flags(#[from] crate::protocol::fault::IllegalFlags),
}

/// Nothing was pinned.
///
/// ```
/// use revocable_mmio::PinError;
/// use revocable_mmio::fault::FaultFlags;
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// region.reset(|_| {
///     let busy = region.pin(0..4096, FaultFlags::NOWAIT);
///     assert_eq!(busy.unwrap_err(), PinError::WouldBlock); // later
/// })?;
/// region.disable()?;
/// let disabled = region.pin(0..4096, FaultFlags::WAIT);
/// assert_eq!(disabled.unwrap_err(), PinError::Disabled); // after enable()
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// Empty, or not inside the region.
    #[error("{start:#x}..{end:#x} is empty or not inside the region's {len:#x} bytes")]
    OutOfRange {
        /// In bytes.
        start: usize,
        /// In bytes.
        end: usize,
        /// The region's length, in bytes.
        len: usize,
    },
    /// The region is busy (or disabled, for a caller that would wait), and the flags forbid waiting.
    #[error("the region is busy and the caller may not wait: try again, or use flags that wait")]
    WouldBlock,
    /// The region is disabled, or its device has turned the memory off by itself
    /// ([`RegionBuilder::memory_enabled`](crate::RegionBuilder::memory_enabled)).
    #[error("the region is disabled, or its device is off: pin it after enable(), with the device on")]
    Disabled,
    /// The wait was cancelled.
    #[error("the wait was cancelled")]
    Cancelled,
    /// It would wait for the calling thread itself: this is a callback of a change of the region's state, or a signal
    /// handler that interrupted a thread inside of this crate.
    #[error("the pin would wait for its own thread, which changes the region's state: pin later, or in another thread")]
    Reentrant,
    /// It would wait for a change of state which in turn waits for the calling thread: for a guard that it holds of another
    /// region that changes together with this one, or for a change that it is making of that region.
    #[error(
        "the change under way waits for this thread, for a guard that it holds of a region that changes together with this one: drop it"
    )]
    WouldDeadlock,
    /// Called in a forked child, which has none of its parent's memory.
    #[error("the region is the parent's: a forked child builds one of its own")]
    Forked,
    /// The file gives no pages there, or the region has no owner's view ([`OnRevoke::Drop`](crate::OnRevoke)).
    #[error("the file gives no memory, or the region has no owner's view: {0}")]
    NoMemory(SysError),
    /// The flags contradict themselves.
    #[error(transparent)]
    Flags(crate::protocol::fault::IllegalFlags),
}
