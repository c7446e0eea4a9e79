//! Errors of changes of state, and of asynchronous faults.

use super::gate::HeldGuard;
use crate::sync::wait::Patience;
use crate::sys::SysError;
use nix::errno::Errno;
use std::time::{Duration, Instant};

/// Guards that kept a revocation waiting.
///
/// ```
/// use revocable_mmio::fault::FaultFlags;
/// use revocable_mmio::{HeldGuard, RevokeError};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let pin = region.pin(0..4096, FaultFlags::WAIT)?;
/// let guard = mapping.try_access()?;
/// # std::thread::scope(|threads| threads.spawn(|| {
/// let Err(RevokeError::Busy(holders)) = region.try_disable() else { unreachable!() };
/// for HeldGuard { tid, count, held_for_at_least, .. } in &holders.guards {
///     eprintln!("thread {tid} holds {count} guards, the oldest for {held_for_at_least:?}");
/// }
/// # assert!(holders.guards.len() == 1 && holders.to_string().contains("1 guard(s) and "));
/// # }).join().unwrap());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holders {
    /// The guards, one entry a thread.
    pub guards: Vec<HeldGuard>,
    /// How many pins are held.
    pub pins: usize,
    /// Another process is in a system call on the file of a [shared](crate::RegionBuilder::shared) region: a write(2) to
    /// it, say, whose source does not arrive. Ending that process ends it.
    pub peers: bool,
    /// The ids of the processes that have that file open for writing, one of which it is, as far as /proc shows them to this
    /// process; empty otherwise.
    pub peer_pids: Vec<i32>,
}

impl Holders {
    pub(super) fn of_peers(peer_pids: Vec<i32>) -> Self {
        Self { peers: true, peer_pids, ..Self::default() }
    }
}

impl std::fmt::Display for Holders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let guards: u64 = self.guards.iter().map(|held| held.count).sum();
        write!(f, "{guards} guard(s) and {} pin(s) held", self.pins)?;
        if self.peers {
            f.write_str("; another process is in a system call on the shared file")?;
            if !self.peer_pids.is_empty() {
                write!(f, " (open for writing in {:?})", self.peer_pids)?;
            }
        }
        for HeldGuard { tid, count, held_for_at_least } in &self.guards {
            write!(f, "; thread {tid}: {count} for at least {held_for_at_least:?}")?;
        }
        Ok(())
    }
}

/// Disabling, enabling or resetting a region failed; its state is as before, except with
/// [`NotRestored`](Self::NotRestored). The guide says [what to do](crate::guide::errors).
///
/// ```
/// use revocable_mmio::{Region, RevokeError};
///
/// /// The guest has cleared the memory bit.
/// fn clear_memory_bit(bar: &Region) -> Result<(), RevokeError> {
///     match bar.try_disable() {
///         // A guard or a pin, held for a moment: wait. The error says by which threads.
///         Err(RevokeError::Busy(_)) => bar.disable().map(drop),
///         // This thread's own guard: dropping it is up to the caller.
///         Err(e @ RevokeError::WouldDeadlock { .. }) => Err(e),
///         other => other.map(drop),
///     }
/// }
/// # clear_memory_bit(&Region::builder(4096).build()?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RevokeError {
    /// A `try_` verb found another thread's change of state, a guard, a pin or a reader, and does not wait.
    #[error("the region is busy: {0}; try again, or let it wait")]
    Busy(Holders),
    /// A `_timeout` verb gave up.
    #[error("gave up after {waited:?}: {holders}; try again once they are dropped")]
    TimedOut {
        /// How long it waited.
        waited: Duration,
        /// What it waited for.
        holders: Holders,
    },
    /// The change would wait for the calling thread: it holds a guard of this region, or it holds a guard of, or is
    /// changing, a region that changes together with this one.
    #[error("the change would wait for this thread, {}", own(*.guards))]
    WouldDeadlock {
        /// How many guards of this region it holds; may be 0 if other regions change together with this one.
        guards: u64,
    },
    /// Called from inside a notifier or a reset callback of the same region, or from a signal handler that interrupted a
    /// thread inside of this crate.
    #[error("called from inside a notifier or reset callback of the same region: change its state from elsewhere")]
    Reentrant,
    /// The crate's handler is no longer in front for SIGBUS or SIGSEGV, and could not be put back: a revoked access would
    /// end the process.
    #[error(transparent)]
    Signal(#[from] crate::raw::signal::SignalError),
    /// Called in a forked child: mappings are not inherited.
    #[error("the region is the parent's: a forked child has none of its mappings and cannot change it")]
    Forked,
    /// The kernel refused membarrier(2), which it had granted before (a seccomp filter?). Without it a revocation cannot
    /// tell whether guards are held.
    #[error("membarrier was refused: {0}; let membarrier(2) through the seccomp filter")]
    Barrier(std::io::Error),
    /// The region's file was dropped on revocation; give it one with [`Region::supply`](crate::Region::supply).
    #[error("the region has no file: it was dropped on revocation, give it one with Region::supply")]
    NoFile,
    /// The region is enabled, or reset: its mappings are back. But a DMA mapping of it could not be put back into the IOMMU:
    /// the error says which, and [`DmaSpace::unmapped`](crate::pci::DmaSpace::unmapped) lists all.
    #[error("the memory is back, but not everything that reaches it: {source}")]
    NotRestored {
        /// What failed first.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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
    /// The file of a [shared](crate::RegionBuilder::shared) region could not be emptied, or filled again, and everything
    /// was put back.
    #[error("the shared window: {source}")]
    Window {
        /// What failed.
        source: SysError,
    },
}

/// An asynchronous fault was not submitted.
///
/// ```
/// use revocable_mmio::fault::FaultFlags;
/// use revocable_mmio::{FaultQueue, SubmitError};
/// # let region = revocable_mmio::Region::builder(4096).disabled().build()?;
/// let queue = FaultQueue::new(64)?;
/// let beyond = region.fault_async(region.len(), FaultFlags::DEFAULT, &queue);
/// assert_eq!(beyond.unwrap_err(), SubmitError::OutOfBounds { offset: 4096, len: 4096 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    /// The queue has as many faults as its limit allows.
    #[error("the queue has its {limit} faults: take completions first, or wait for this fault with Region::fault_in")]
    Full {
        /// The queue's limit.
        limit: usize,
    },
    /// The flags contradict themselves.
    #[error(transparent)]
    Flags(#[from] crate::protocol::fault::IllegalFlags),
    /// Called in a forked child with its parent's region or queue.
    #[error("the region or the queue is the parent's: a forked child makes its own")]
    Forked,
    /// No eventfd could be made.
    #[error("no queue: {0}")]
    Sys(#[from] SysError),
}

impl RevokeError {
    /// True if another process has held the change up, and nothing has changed.
    pub(super) fn is_held_up(&self) -> bool {
        matches!(self, Self::Window { source } if source.errno == Errno::EBUSY)
    }

    /// The error of a change that has waited as long as `patience` allows.
    pub(crate) fn gave_up(patience: Patience, since: Instant, holders: Holders) -> Self {
        match patience {
            Patience::Never => Self::Busy(holders),
            Patience::Forever | Patience::Until(_) => Self::TimedOut { waited: since.elapsed(), holders },
        }
    }
}

fn own(guards: u64) -> String {
    match guards {
        0 => "which guards or changes another region that changes together with this one: end that first".to_owned(),
        guards => format!("which holds {guards} guard(s) of the region: drop them first"),
    }
}
