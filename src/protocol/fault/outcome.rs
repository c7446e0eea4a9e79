//! How a fault ends, and the lock that its caller holds.

/// How one try at a fault ended.
///
/// ```
/// use revocable_mmio::fault::{FaultFlags, LockAfter, NoLock, Outcome};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// match region.fault(0, FaultFlags::NOWAIT, &mut NoLock::default())? {
///     Outcome::Mapped => {} // repeat the access
///     Outcome::Retry { lock: LockAfter::Held } => {} // NOWAIT: later
///     Outcome::Retry { lock: LockAfter::Released } => {} // look everything up again, and add TRIED
///     Outcome::Sigbus => {} // refuse the access
///     other => eprintln!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum Outcome {
    /// The memory is there: repeat the access (`VM_FAULT_NOPAGE`). The caller's lock is held.
    Mapped,
    /// Not decided: try again, at once or later (`VM_FAULT_RETRY`).
    Retry {
        /// Whether the caller still holds its lock.
        lock: LockAfter,
    },
    /// The region refuses, or there is no memory (`VM_FAULT_SIGBUS`). The caller's lock is held.
    Sigbus,
    /// The wait was cancelled. The caller's lock is released, as the kernel does for a killed wait.
    Killed,
    /// It would wait for the calling thread itself, which runs a callback of a change of the region's state, or a signal
    /// handler that interrupted a thread inside of this crate. The caller's lock is held. The kernel has no such case.
    Reentrant,
    /// It would wait for a change of state which in turn waits for the calling thread: for a guard that it holds of another
    /// region that changes together with this one. The caller's lock is held. The kernel has no such case.
    WouldDeadlock,
}

/// Whether the caller's lock is still held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAfter {
    /// The caller still holds it.
    Held,
    /// It was released; what it protected may have changed.
    Released,
}

/// The lock that a caller holds across a fault: a VMM's address-space lock, where the kernel has mmap_lock.
///
/// A fault that has to wait releases it, if the caller's flags allow, so that the thread that holds up the fault can make
/// progress. It is the outermost lock: no lock of this crate is held when `acquire` is called.
///
/// ```
/// use revocable_mmio::fault::{CallerLock, FaultFlags, Outcome};
/// use std::sync::{RwLock, RwLockReadGuard};
///
/// /// A VMM's lock of its address space, held for reading.
/// struct AddressSpace<'a> {
///     lock: &'a RwLock<()>,
///     held: Option<RwLockReadGuard<'a, ()>>,
/// }
///
/// impl CallerLock for AddressSpace<'_> {
///     fn release(&mut self) {
///         self.held = None;
///     }
///     fn acquire(&mut self) {
///         self.held = Some(self.lock.read().unwrap());
///     }
///     fn is_held(&self) -> bool {
///         self.held.is_some()
///     }
/// }
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let lock = RwLock::new(());
/// let mut space = AddressSpace { lock: &lock, held: Some(lock.read().unwrap()) };
/// // Where it would have to wait it would release the lock first, and tell.
/// assert!(!region.fault_in(0, FaultFlags::DEFAULT, &mut space)?.unlocked);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait CallerLock {
    /// Releases it. Called at most once per try, and only while it is held.
    fn release(&mut self);
    /// Takes it again. What was looked up under it before has to be looked up again.
    fn acquire(&mut self);
    /// True if it is held now.
    fn is_held(&self) -> bool;
}

/// For a caller without a lock. It only remembers whether the lock would have been released.
///
/// ```
/// use revocable_mmio::fault::{CallerLock, FaultFlags, NoLock};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let mut none = NoLock::default();
/// region.fault_in(0, FaultFlags::WAIT, &mut none)?;
/// assert!(none.is_held());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLock {
    released: bool,
}

impl CallerLock for NoLock {
    fn release(&mut self) {
        self.released = true;
    }

    fn acquire(&mut self) {
        self.released = false;
    }

    fn is_held(&self) -> bool {
        !self.released
    }
}

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Woken {
    /// The awaited event has happened, or may have.
    Done,
    /// The caller was cancelled.
    Killed,
}
