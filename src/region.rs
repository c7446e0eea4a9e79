//! Regions: device memory, its state, its mappings.

pub(crate) mod access_error;
pub(crate) mod around;
pub(crate) mod backing;
mod builder;
pub(crate) mod core;
mod ending;
pub(crate) mod error;
mod fault;
mod fault_async;
pub(crate) mod group;
pub(crate) mod mapping;
pub(crate) mod not_restored;
pub(crate) mod notify;
pub(crate) mod offsets;
pub(crate) mod owner;
pub(crate) mod pin;
pub(crate) mod pin_table;
pub(crate) mod placed;
pub(crate) mod question;
mod reset;
pub(crate) mod served;
pub(crate) mod share;
pub(crate) mod shared;
pub(crate) mod subscription;
#[cfg(test)]
mod tests;

pub use builder::RegionBuilder;

use self::error::MapError;
use self::mapping::{MapOptions, Mapping};
use self::owner::OwnerView;
use self::shared::RegionShared;
use crate::protocol::error::RevokeError;
use crate::protocol::{Changes, State, WaitFor};
use crate::stats::RegionStats;
use crate::sync::wait::Patience;
use crate::sys::known::KnownFile;
use crate::view::Strategy;
use std::fmt;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

/// Device memory that can be taken away from everything that has it mapped, and given back.
///
/// Dropping a region revokes it for good: its mappings stay and refuse accesses until they are dropped too. The drop waits for
/// faults that are being resolved, for ten seconds at most. Guards and pins keep what they promise: while there are any, or a
/// group's change is under way, the drop returns, and the region is revoked when that has ended.
///
/// A forked child inherits no mapping: at the address of its parent's mapping it has nothing, or later something else. It
/// may drop what it has inherited, which does nothing, and must not access it. It can build regions of its own. (In a child
/// whose parent's threads were just queueing for a lock of the crate `parking_lot`, of this crate's or of others, a thread
/// that has to queue for one may wait for ever.)
///
/// ```
/// use revocable_mmio::{AccessError, MapOptions, Region};
///
/// let bar = Region::builder(64 << 10).name("bar0").build()?;
/// let mapping = bar.map(MapOptions::new())?;
/// mapping.write(0x10, 7_u32)?;
///
/// assert!(bar.disable()?); // true: this call changed the state
/// assert!(!bar.is_enabled());
/// assert!(matches!(mapping.read::<u32>(0x10), Err(AccessError::Disabled { offset: 0x10 })));
/// assert_eq!(bar.owner().read::<u32>(0x10)?, 7); // the device's own side goes on
///
/// assert!(bar.enable()?);
/// assert_eq!(mapping.read::<u32>(0x10)?, 7);
///
/// drop(bar); // for good; the mapping stays, and refuses
/// assert!(matches!(mapping.read::<u32>(0x10), Err(AccessError::Gone { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Region {
    pub(crate) shared: Arc<RegionShared>,
}

impl Region {
    /// Starts making a region of `len` bytes, a multiple of the page size.
    pub fn builder(len: usize) -> RegionBuilder {
        RegionBuilder::new(len)
    }

    /// Maps the region, or a part of it, whether it is enabled or disabled. Waits while the region is busy.
    ///
    /// ```
    /// use revocable_mmio::{MapError, MapOptions};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let page = region.page_size();
    /// let second = region.map(MapOptions::new().offset(page).len(page))?;
    /// second.write(0, 1_u8)?;
    /// assert_eq!(region.owner().read::<u8>(page)?, 1);
    ///
    /// let beyond = region.map(MapOptions::new().offset(region.len() + page).len(page));
    /// assert!(matches!(beyond, Err(MapError::OutOfRange { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Nothing is mapped.
    /// * [`MapError::Empty`], [`MapError::Unaligned`], [`MapError::OutOfRange`]: the part asked for; the numbers are
    ///   in the error.
    /// * [`MapError::Wait`]: the policy Block, without a userfaultfd in which accesses could wait. Choose another
    ///   policy.
    /// * [`MapError::Sys`]: out of address space, mappings or descriptors. Its message names the limit to raise.
    /// * [`MapError::Monitor`]: the monitor is dead, or its thread cannot be started. Build the region with another
    ///   one.
    /// * [`MapError::Reentrant`], [`MapError::WouldDeadlock`]: called in a callback of this region's change, or while
    ///   the thread changes a region that changes together with this one. Map it before or after.
    /// * [`MapError::Forked`]: the region is the parent's.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn map(&self, options: MapOptions) -> Result<Mapping, MapError> {
        Mapping::new(&self.shared, options)
    }

    /// True if the memory is reachable through its mappings. During a change, returns the previous state.
    pub fn is_enabled(&self) -> bool {
        self.shared.protocol.was_enabled()
    }

    /// Revokes every mapping. When it returns, nothing reaches the memory through any of them until
    /// [`enable`](Self::enable). True if this call changed the state.
    ///
    /// # Blocking
    /// Waits, as long as it takes, for guards and pins to be dropped, for another thread's change of state, and for single
    /// accesses that are made under the memory lock: those on a caller's behalf, and on architectures other than x86-64 and
    /// aarch64 every access (of a bulk copy, the page that is being copied).
    ///
    /// # Errors
    /// The state is as before.
    /// * [`RevokeError::WouldDeadlock`]: this thread holds a guard of the region, or of one that changes with it.
    ///   Drop it first.
    /// * [`RevokeError::Reentrant`]: called in a callback of the region's own change. Call it afterwards.
    /// * [`RevokeError::Sys`], [`RevokeError::Window`]: the kernel refused, for want of memory or mappings, or
    ///   because a peer holds the shared file; the message says what to do. Try again.
    /// * [`RevokeError::Signal`], [`RevokeError::Barrier`]: a sandbox forbids sigaction(2) or membarrier(2) by now.
    ///   Allow it.
    /// * [`RevokeError::Forked`]: the region is the parent's.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn disable(&self) -> Result<bool, RevokeError> {
        self.change(State::Disabled, Patience::Forever)
    }

    /// [`disable`](Self::disable) that never waits.
    ///
    /// ```
    /// use revocable_mmio::{MapOptions, RevokeError};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let guard = mapping.try_access()?;
    /// # std::thread::scope(|threads| threads.spawn(|| {
    /// // In another thread, while the guard is held:
    /// match region.try_disable() {
    ///     Err(RevokeError::Busy(holders)) => assert_eq!(holders.guards.len(), 1), // whose guards, and how many
    ///     other => unreachable!("{other:?}"),
    /// }
    /// # }).join().unwrap());
    /// drop(guard);
    /// assert!(region.try_disable()?);
    /// assert!(region.try_enable()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `disable` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_disable(&self) -> Result<bool, RevokeError> {
        self.change(State::Disabled, Patience::Never)
    }

    /// [`disable`](Self::disable) that gives up after `patience`.
    ///
    /// ```
    /// use revocable_mmio::RevokeError;
    /// use revocable_mmio::fault::FaultFlags;
    /// use std::time::Duration;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let pin = region.pin(0..4096, FaultFlags::WAIT)?; // a device's DMA, say
    /// let patience = Duration::from_millis(5);
    /// assert!(matches!(region.disable_timeout(patience), Err(RevokeError::TimedOut { .. })));
    /// assert!(region.is_enabled()); // nothing has changed
    ///
    /// drop(pin);
    /// assert!(region.disable_timeout(patience)?);
    /// assert!(region.enable_timeout(patience)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says what it waited for.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn disable_timeout(&self, patience: Duration) -> Result<bool, RevokeError> {
        self.change(State::Disabled, Patience::within(patience))
    }

    /// Gives every mapping its memory back, with the content it had. True if this call changed the state.
    ///
    /// # Blocking
    /// Waits only for another thread's change of state.
    ///
    /// # Errors
    /// The region stays disabled.
    /// * [`RevokeError::Sys`], [`RevokeError::Window`]: a mapping could not be given back, for want of memory or
    ///   mappings (the message names the limit), or the device refuses. Try again.
    /// * [`RevokeError::NoFile`]: its device was dropped on revocation. Call [`supply`](Self::supply) first.
    /// * [`RevokeError::Reentrant`], [`RevokeError::WouldDeadlock`], [`RevokeError::Forked`]: as for
    ///   [`disable`](Self::disable).
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn enable(&self) -> Result<bool, RevokeError> {
        self.change(State::Enabled, Patience::Forever)
    }

    /// [`enable`](Self::enable) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `enable` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_enable(&self) -> Result<bool, RevokeError> {
        self.change(State::Enabled, Patience::Never)
    }

    /// [`enable`](Self::enable) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] if another thread's change took longer.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn enable_timeout(&self, patience: Duration) -> Result<bool, RevokeError> {
        self.change(State::Enabled, Patience::within(patience))
    }

    /// A region is a group of one.
    fn change(&self, to: State, wait: impl Into<WaitFor>) -> Result<bool, RevokeError> {
        span!(DEBUG, "change", region = %self.shared.name, to = ?to);
        Changes::make(slice::from_ref(&self.shared), to, wait).map_err(|failed| failed.source)
    }

    /// Gives the region a file again, before `enable()`, after revocation has dropped its device
    /// ([`OnRevoke::Drop`](crate::OnRevoke)). An `enable()` that fails drops the file again.
    ///
    /// ```
    /// use revocable_mmio::{Backing, OnRevoke, Region, RevokeError};
    /// use std::os::fd::OwnedFd;
    /// # let device: OwnedFd = nix::sys::memfd::memfd_create(c"bar", nix::sys::memfd::MFdFlags::empty())?.into();
    /// # nix::unistd::ftruncate(&device, 4096)?;
    ///
    /// let again = device.try_clone()?;
    /// let backing = Backing::File { fd: device, offset: 0, device: Some(OnRevoke::Drop) };
    /// let bar = Region::builder(4096).backing(backing).build()?;
    /// bar.disable()?; // the descriptor is closed
    /// assert!(matches!(bar.enable(), Err(RevokeError::NoFile)));
    ///
    /// bar.supply(again).map_err(|_| "it has a file")?;
    /// bar.enable()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The region has a file already; `device` is returned.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn supply(&self, device: OwnedFd) -> Result<(), OwnedFd> {
        let mut file = self.shared.file.lock_quietly();
        match *file {
            Some(_) => Err(device),
            None => {
                *file = Some(Arc::new(KnownFile::new(device)));
                Ok(())
            }
        }
    }

    /// The device's own view of the memory, which no revocation touches.
    pub fn owner(&self) -> &OwnerView {
        &self.shared.owner
    }

    /// The length, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> usize {
        self.shared.len
    }

    /// The page size of its memory, in bytes. Offsets and lengths of mappings are multiples of it.
    pub fn page_size(&self) -> usize {
        self.shared.page
    }

    /// False if the region can be read only: see [`RegionBuilder::read_only`].
    pub fn is_writable(&self) -> bool {
        self.shared.writable
    }

    /// The name that the builder was given.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The strategy by which its mappings are revoked.
    pub fn strategy(&self) -> Strategy {
        self.shared.strategy
    }

    /// Counters and latencies.
    ///
    /// ```
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// region.disable()?;
    /// let _ = mapping.read::<u32>(0);
    /// let stats = region.stats();
    /// assert_eq!((stats.disables, stats.refused, stats.mappings), (1, 1, 1));
    /// println!("{}, by {}: {:?}", region.name(), region.strategy(), stats.disable);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn stats(&self) -> RegionStats {
        use std::sync::atomic::Ordering::Relaxed;
        let c = &self.shared.counters;
        let mappings = self.shared.mappings.lock_quietly();
        RegionStats {
            disables: c.disables.load(Relaxed),
            enables: c.enables.load(Relaxed),
            resets: c.resets.load(Relaxed),
            faults_mapped: c.faults_mapped.load(Relaxed),
            pages_mapped: c.pages_mapped.load(Relaxed),
            faults_parked: c.faults_parked.load(Relaxed),
            faults_failed: c.faults_failed.load(Relaxed),
            refused: self.shared.protocol.gate.turned_away(),
            degraded: c.degraded.load(Relaxed),
            lost: c.lost.load(Relaxed),
            peer_waits: c.peer_waits.load(Relaxed),
            notifier_errors: self.shared.notifiers.errors.load(Relaxed),
            notifier_panics: self.shared.notifiers.panics.load(Relaxed),
            mappings: mappings.len(),
            guards: self.shared.protocol.gate.held_guards().iter().map(|held| held.count).sum(),
            pins: self.shared.protocol.pins(),
            alias_bytes: mappings.values().map(|m| m.view.aside_bytes()).sum(),
            page_tables_kept: mappings.values().map(|m| m.view.page_tables_kept()).sum(),
            disable: c.disable.snapshot(),
            enable: c.enable.snapshot(),
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        let mappings = shared.shown_mappings();
        f.debug_struct("Region")
            .field("name", &shared.name)
            .field("len", &shared.len)
            .field("state", &shared.protocol.phase())
            .field("strategy", &shared.strategy)
            .field("memory", &shared.kind)
            .field("page", &shared.page)
            .field("mappings", &mappings)
            .field("pins", &shared.protocol.pins())
            .finish_non_exhaustive()
    }
}
