//! Errors: one enum for each family of verbs, with the numbers in the message and what to do about it.

use crate::gate::HeldGuard;
use crate::sys::SysError;
use std::time::Duration;

/// Building a region failed; nothing was made.
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
        /// Which number.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
        /// The page size, in bytes.
        page: usize,
    },
    /// More than the address space, or than a file, can hold.
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
    /// The strategy cannot be had here; or, where none was asked for, the best one cannot be had now, for want of descriptors or
    /// memory: a weaker one would be the region's for good.
    #[error("strategy {strategy} is not possible: {why}{}; leave the choice to the builder, or see Support", because(.source))]
    Strategy {
        /// What was asked for, or is the best.
        strategy: crate::Strategy,
        /// What is missing.
        why: &'static str,
        /// What the kernel said when it was tried.
        source: Option<SysError>,
    },
    /// The name has a NUL byte.
    #[error("the name {0:?} has a NUL byte in it: leave it out")]
    Name(String),
    /// No monitor could be had.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The signal handlers that accesses recover by could not be installed.
    #[error(transparent)]
    Signal(#[from] crate::signal::SignalError),
    /// A system call failed.
    #[error("cannot make the region: {0}")]
    Sys(#[from] SysError),
}

fn because(source: &Option<SysError>) -> String {
    source.map(|e| format!(": {e}")).unwrap_or_default()
}

/// Mapping a region failed; nothing was mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Nothing to map.
    #[error("a mapping of 0 bytes: give a length, at an offset before the region's end")]
    Empty,
    /// Offsets and lengths of mappings are multiples of the page size.
    #[error("{what} {value:#x} is not a multiple of the page size {page:#x}: round it")]
    Unaligned {
        /// Which number.
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
    /// [`OnDisabled::Block`](crate::OnDisabled): what accesses are to wait in cannot be had.
    #[error("waiting at a disabled region needs a userfaultfd for user-mode faults (Linux 5.11): {source}")]
    Wait {
        /// What failed.
        source: SysError,
    },
    /// Called in a forked child: its parent's monitor cannot serve it.
    #[error("the region is the parent's: a forked child builds one of its own")]
    Forked,
    /// Called from inside a reset callback of the same region, for whose end it would have to wait.
    #[error("called from inside a reset callback of the same region: map it before or after")]
    Reentrant,
    /// The change that it would have to wait for waits for one that the calling thread is making, of a region that changes
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
    /// Rights are those of whole pages.
    #[error("{value:#x} is not a multiple of the page size {page:#x}")]
    Unaligned {
        /// In bytes.
        value: usize,
        /// The region's page size, in bytes.
        page: usize,
    },
    /// More than the mapping was made with.
    #[error("the mapping is read-only: map the region without MapOptions::read_only for rights to write")]
    ReadOnly,
    /// Called in a forked child, which has no such mapping.
    #[error("the mapping is the parent's: a forked child builds a region of its own")]
    Forked,
    /// The system call failed.
    #[error("cannot change the rights: {0}")]
    Sys(SysError),
}

/// A monitor cannot be had or cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MonitorError {
    /// `with_threads(0)`.
    #[error("a monitor of 0 threads: use Monitor::manual() for one that your event loop drives")]
    NoThreads,
    /// The userfaultfd was made by another process, and serves that one.
    #[error("this userfaultfd serves the process that made it: hand on /dev/userfaultfd, see Monitor::from_device")]
    Foreign,
    /// Its userfaultfd was closed behind its back. Its mappings refuse from then on.
    #[error("the monitor's userfaultfd is gone; build the region with another monitor")]
    Dead,
    /// A system call failed.
    #[error("no monitor: {0}")]
    Sys(#[from] SysError),
}

/// Guards that kept a revocation waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holders {
    /// The guards, by thread.
    pub guards: Vec<HeldGuard>,
    /// How many pins.
    pub pins: usize,
}

impl std::fmt::Display for Holders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let guards: u64 = self.guards.iter().map(|held| held.count).sum();
        write!(f, "{guards} guard(s) and {} pin(s) held", self.pins)?;
        for HeldGuard { tid, count, held_for_at_least } in &self.guards {
            write!(f, "; thread {tid}: {count} for at least {held_for_at_least:?}")?;
        }
        Ok(())
    }
}

/// Disabling, enabling or resetting a region failed; its state is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeError {
    /// `try_` met somebody else's change of state, a guard, a pin or a reader, and never waits.
    #[error("the region is busy: {0}; try again, or let it wait")]
    Busy(Holders),
    /// `_timeout` gave up.
    #[error("gave up after {waited:?}: {holders}; try again once they are dropped")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
        /// For whom.
        holders: Holders,
    },
    /// The calling thread holds a guard of this region: waiting for it would wait for ever.
    #[error("this thread holds {guards} guard(s) of the region itself: drop them first")]
    WouldDeadlock {
        /// How many.
        guards: u64,
    },
    /// Called from inside a notifier or a reset callback of the same region, or from a signal handler that interrupted a thread
    /// inside of this crate.
    #[error("called from inside a notifier or reset callback of the same region: change its state from elsewhere")]
    Reentrant,
    /// SIGBUS or SIGSEGV no longer reaches the crate's handler, and it could not be put back: a revoked access would end the
    /// process.
    #[error(transparent)]
    Signal(#[from] crate::signal::SignalError),
    /// Called in a forked child: mappings are not inherited.
    #[error("the region is the parent's: a forked child has none of its mappings and cannot change it")]
    Forked,
    /// The kernel refused membarrier(2), which it had granted before (a seccomp filter?): nobody can tell whether guards
    /// are held.
    #[error("membarrier was refused: {0}; let membarrier(2) through the seccomp filter")]
    Barrier(std::io::Error),
    /// The region's file was dropped on revocation; give one with `supply`.
    #[error("the region has no file: it was dropped on revocation, give it one with Region::supply")]
    NoFile,
    /// The region was dropped.
    #[error("the region was dropped: build another")]
    Gone,
    /// A system call failed on one mapping, and everything was put back.
    #[error("mapping at {addr:#x}: {source}")]
    Sys {
        /// The mapping's address.
        addr: usize,
        /// What failed.
        source: SysError,
    },
}

/// One access was refused; memory is unchanged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Not inside the mapping.
    #[error("{size} bytes at offset {offset:#x} are not inside the mapping's {len:#x} bytes")]
    OutOfBounds {
        /// In bytes.
        offset: usize,
        /// In bytes.
        size: usize,
        /// The mapping's length, in bytes.
        len: usize,
    },
    /// Single accesses are naturally aligned.
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
    /// The region is disabled.
    #[error("the region is disabled, and refuses {}: try again after enable()", At(*.offset))]
    Disabled {
        /// In bytes.
        offset: usize,
    },
    /// The region is busy, or its page is not there yet, and the access may not wait.
    #[error("the region is busy, and {} would have to wait: try again, or let it wait", At(*.offset))]
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
    /// The access would have waited for its own thread: it was made by a callback of a change of the region's state, or by a
    /// signal handler that interrupted a thread inside of this crate.
    #[error(
        "{} would wait for its own thread, which changes the region's state or was interrupted inside of this crate: \
         make it later or in another thread, or use the try_ form",
        At(*.offset)
    )]
    Reentrant {
        /// In bytes.
        offset: usize,
    },
    /// Made in a forked child, which has none of its parent's mappings.
    #[error("the region is the parent's, and {} was made in a forked child: build a region there", At(*.offset))]
    Forked {
        /// In bytes.
        offset: usize,
    },
    /// The region was dropped.
    #[error("the region was dropped, and refuses {} for good", At(*.offset))]
    Gone {
        /// In bytes.
        offset: usize,
    },
    /// The change of state that it would have to wait for waits for the calling thread: for a guard that it holds of another region
    /// that changes together with this one, or for a change that it is making of that one.
    #[error(
        "the change under way waits for this thread, for a guard that it holds of a region that changes together with this one: drop it"
    )]
    WouldDeadlock,
    /// The caller's flags contradict themselves.
    #[error(transparent)]
    Flags(crate::fault::IllegalFlags),
    /// The region is enabled, but the memory gives no page there: its file was truncated, or memory ran out.
    #[error("no memory at offset {offset:#x}: the region's file was truncated, or the system is out of memory")]
    NoMemory {
        /// In bytes.
        offset: usize,
    },
}

impl AccessError {
    /// The offset that the error of a guard has: it is about the whole mapping.
    pub const WHOLE: usize = usize::MAX;
}

/// Where an access was, for the messages.
struct At(usize);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == AccessError::WHOLE {
            f.write_str("a guard")
        } else {
            write!(f, "an access at offset {:#x}", self.0)
        }
    }
}

/// A fault could not be tried, or not be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// Not inside the region (or mapping).
    #[error("offset {offset:#x} is beyond its {len:#x} bytes")]
    OutOfBounds {
        /// In bytes.
        offset: usize,
        /// The length of the region or mapping, in bytes.
        len: usize,
    },
    /// The loop around the fault ended without the memory.
    #[error(transparent)]
    NotResolved(#[from] crate::fault::NotResolved),
    /// The flags contradict themselves.
    #[error(transparent)]
    Flags(#[from] crate::fault::IllegalFlags),
}

/// An asynchronous fault was not submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// Not inside the region.
    #[error("offset {offset:#x} is beyond the region's {len:#x} bytes")]
    OutOfBounds {
        /// In bytes.
        offset: usize,
        /// The region's length, in bytes.
        len: usize,
    },
    /// The queue holds as many faults as it may.
    #[error("the queue has its {limit} faults: take completions first, or wait for this fault with Region::fault_in")]
    Full {
        /// The queue's limit.
        limit: usize,
    },
    /// The flags contradict themselves.
    #[error(transparent)]
    Flags(#[from] crate::fault::IllegalFlags),
    /// Called in a forked child, with its parent's region or queue.
    #[error("the region or the queue is the parent's: a forked child makes its own")]
    Forked,
    /// No eventfd.
    #[error("no queue: {0}")]
    Sys(#[from] SysError),
}

/// Nothing was pinned.
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
    /// The region is disabled.
    #[error("the region is disabled: pin it after enable()")]
    Disabled,
    /// The wait was cancelled.
    #[error("the wait was cancelled")]
    Cancelled,
    /// Waiting would have been for the calling thread itself: this is a callback of a change of the region's state, or a signal
    /// handler that interrupted a thread inside of this crate.
    #[error("the pin would wait for its own thread, which changes the region's state: pin later, or in another thread")]
    Reentrant,
    /// The change of state that it would have to wait for waits for the calling thread: for a guard that it holds of another region
    /// that changes together with this one, or for a change that it is making of that one.
    #[error(
        "the change under way waits for this thread, for a guard that it holds of a region that changes together with this one: drop it"
    )]
    WouldDeadlock,
    /// Called in a forked child, which has none of its parent's memory.
    #[error("the region is the parent's: a forked child builds one of its own")]
    Forked,
    /// The file gives no pages there, or the region has no owner's view to reach them by ([`OnRevoke::Drop`](crate::OnRevoke)).
    #[error("the file gives no memory, or the region has no owner's view: {0}")]
    NoMemory(SysError),
    /// The flags contradict themselves.
    #[error(transparent)]
    Flags(crate::fault::IllegalFlags),
}

/// A bulk copy ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{done} bytes were copied, then: {error}")]
pub struct CopyError {
    /// How many bytes were done; none beyond them were.
    pub done: usize,
    /// Why it ended.
    pub error: AccessError,
}
