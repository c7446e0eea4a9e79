//! Reset groups: regions that are revoked together or not at all, as a bus reset revokes every function on the bus.
//!
//! The `try_` verbs begin every member's change in one fixed order, and without waiting, before the first member is
//! touched. A member that another thread is changing, or that is guarded or pinned, makes the whole group
//! [`Busy`](GroupError::is_busy), and the changes that were begun are undone in reverse. So two groups that overlap never
//! wait for each other (`vfio_pci_dev_set_hot_reset` does the same with `down_write_trylock`, for the same reason). The
//! verbs that wait begin the changes in the same order.

use super::Region;
use super::owner::OwnerView;
use super::shared::RegionShared;
use crate::protocol::error::RevokeError;
use crate::protocol::{Changes, Failed, State, WaitFor};
use crate::sync::wait::Patience;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A change of a group's state failed. Every member is as before, except those that could not be put back: each method says
/// which state that leaves them in.
///
/// ```
/// use revocable_mmio::{GroupError, ResetGroup};
///
/// fn hot_reset(slot: &ResetGroup) -> Result<(), GroupError> {
///     match slot.try_disable() {
///         Err(e) if e.is_busy() => slot.disable().map(drop), // someone's guard or pin: wait for it
///         other => other.map(drop),
///     }
/// }
/// # let region = revocable_mmio::Region::builder(4096).build()?;
/// # hot_reset(&ResetGroup::new([&region]))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("member {member} of the group: {source}")]
pub struct GroupError {
    /// The name of the region that stood in the way.
    pub member: String,
    /// Why.
    pub source: RevokeError,
}

impl GroupError {
    /// True if trying again later makes sense: another thread is changing a member's state, or a guard or a pin is held.
    pub fn is_busy(&self) -> bool {
        matches!(self.source, RevokeError::Busy(_) | RevokeError::TimedOut { .. })
    }
}

/// Regions that are revoked together or not at all. The guide shows them below
/// [a configuration space of your own](crate::guide::own_config_space).
///
/// A region may be in any number of groups. The group keeps its members' memory, but not the [`Region`]s: if one was
/// dropped, the group fails with [`RevokeError::Gone`].
///
/// ```
/// use revocable_mmio::{MapOptions, Region, ResetGroup};
///
/// let (bar0, bar2) = (Region::builder(4096).name("bar0").build()?, Region::builder(4096).name("bar2").build()?);
/// let function = ResetGroup::new([&bar0, &bar2]);
/// assert!(function.len() == 2 && !function.is_empty());
///
/// let pin = bar2.pin(0..4096, revocable_mmio::fault::FaultFlags::WAIT)?;
/// let failed = function.try_disable().unwrap_err();
/// assert!(failed.is_busy() && failed.member == "bar2");
/// assert!(bar0.is_enabled()); // none, because not all
///
/// drop(pin);
/// function.disable()?;
/// assert!(!bar0.is_enabled() && !bar2.is_enabled());
/// function.enable()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ResetGroup {
    /// Each once, in the one order in which every group and device takes them.
    members: Vec<Arc<RegionShared>>,
}

impl ResetGroup {
    /// A group of these regions.
    pub fn new<'a>(regions: impl IntoIterator<Item = &'a Region>) -> Self {
        let mut members: Vec<_> = regions.into_iter().map(|region| Arc::clone(&region.shared)).collect();
        in_order(&mut members);
        Self { members }
    }

    /// How many regions the group has.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// True if the group has no member.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Revokes every member, or none. True if this call changed anything: a group whose members are all disabled is left
    /// alone, and no notifier is told.
    ///
    /// # Blocking
    /// As [`Region::disable`], for each member, in the order that all groups share.
    ///
    /// # Errors
    /// Every member is as before, except one whose memory cannot be given back: that one stays disabled.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn disable(&self) -> Result<bool, GroupError> {
        self.change(State::Disabled, Patience::Forever)
    }

    /// [`disable`](Self::disable) that waits for no guard, no pin and no other change.
    ///
    /// # Blocking
    /// At most 100 ms, for single accesses that other threads are in the middle of.
    ///
    /// # Errors
    /// [Busy](GroupError::is_busy) where `disable` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_disable(&self) -> Result<bool, GroupError> {
        self.change(State::Disabled, WaitFor::readers_only())
    }

    /// [`disable`](Self::disable) that gives up after `patience`, for all members together.
    ///
    /// ```
    /// use revocable_mmio::{Region, ResetGroup, RevokeError};
    /// use std::time::Duration;
    ///
    /// let bars = [Region::builder(4096).build()?, Region::builder(4096).build()?];
    /// let function = ResetGroup::new(&bars);
    /// let pin = bars[1].pin(0..4096, revocable_mmio::fault::FaultFlags::WAIT)?;
    /// let failed = function.disable_timeout(Duration::from_millis(5)).unwrap_err();
    /// assert!(matches!(failed.source, RevokeError::TimedOut { .. }));
    /// assert!(function.reset_timeout(Duration::ZERO, |_| ()).unwrap_err().is_busy());
    /// assert!(function.try_reset(|_| ()).unwrap_err().is_busy());
    ///
    /// drop(pin);
    /// assert!(function.disable_timeout(Duration::from_secs(1))?);
    /// assert!(function.enable_timeout(Duration::from_secs(1))?);
    /// assert!(!function.try_enable()?); // it is enabled already
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says what it waited for.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn disable_timeout(&self, patience: Duration) -> Result<bool, GroupError> {
        self.change(State::Disabled, Patience::within(patience))
    }

    /// Gives every member back, or none. True if this call changed anything.
    ///
    /// # Blocking
    /// As [`Region::enable`], for each member.
    ///
    /// # Errors
    /// Every member is as before, except one that cannot be revoked again: that one stays enabled.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn enable(&self) -> Result<bool, GroupError> {
        self.change(State::Enabled, Patience::Forever)
    }

    /// [`enable`](Self::enable) that waits for no other change.
    ///
    /// # Blocking
    /// As [`try_disable`](Self::try_disable).
    ///
    /// # Errors
    /// [Busy](GroupError::is_busy) where `enable` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_enable(&self) -> Result<bool, GroupError> {
        self.change(State::Enabled, WaitFor::readers_only())
    }

    /// [`enable`](Self::enable) that gives up after `patience`, for all members together.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] if other threads' changes took longer.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn enable_timeout(&self, patience: Duration) -> Result<bool, GroupError> {
        self.change(State::Enabled, Patience::within(patience))
    }

    /// Runs `reset` while nothing reaches the memory of any member through any mapping. Accesses to enabled members wait
    /// for its end; disabled members stay disabled. `reset` gets the owner's view of each member, in the group's order. As
    /// for [`Region::reset`], it must not change a member's state, and a panic in it passes on once the mappings are back.
    ///
    /// ```
    /// use revocable_mmio::{Region, ResetGroup};
    ///
    /// let bars = [Region::builder(4096).build()?, Region::builder(4096).build()?];
    /// let function = ResetGroup::new(&bars);
    /// function.reset(|memories| memories.iter().try_for_each(|memory| memory.fill(0, 0, memory.len())))??;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`disable`](Self::disable).
    ///
    /// # Errors
    /// Nothing was reset; or a member's memory could not be given back: that member is disabled, the others are as before.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn reset<R>(&self, reset: impl FnOnce(&[&OwnerView]) -> R) -> Result<R, GroupError> {
        self.reset_with(Patience::Forever, reset)
    }

    /// [`reset`](Self::reset) that waits for no guard, no pin and no other change.
    ///
    /// # Blocking
    /// As [`try_disable`](Self::try_disable).
    ///
    /// # Errors
    /// [Busy](GroupError::is_busy) where `reset` would wait: nothing was reset.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_reset<R>(&self, reset: impl FnOnce(&[&OwnerView]) -> R) -> Result<R, GroupError> {
        self.reset_with(WaitFor::readers_only(), reset)
    }

    /// [`reset`](Self::reset) that gives up after `patience`, for all members together.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says what it waited for.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn reset_timeout<R>(
        &self,
        patience: Duration,
        reset: impl FnOnce(&[&OwnerView]) -> R,
    ) -> Result<R, GroupError> {
        self.reset_with(Patience::within(patience), reset)
    }

    fn change(&self, to: State, wait: impl Into<WaitFor>) -> Result<bool, GroupError> {
        span!(DEBUG, "change", group = ?self, to = ?to);
        Ok(Changes::make(&self.members, to, wait)?)
    }

    fn reset_with<R>(&self, wait: impl Into<WaitFor>, reset: impl FnOnce(&[&OwnerView]) -> R) -> Result<R, GroupError> {
        span!(DEBUG, "reset", group = ?self);
        let views: Vec<_> = self.members.iter().map(|member| &member.owner).collect();
        let (value, released) = Changes::reset(&self.members, wait, || reset(&views), |_| None)?;
        Ok(released.map(|()| value)?)
    }
}

impl fmt::Debug for ResetGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.name)).finish()
    }
}

/// Sorts members into the one order in which every group and device takes them, and drops duplicates.
pub(crate) fn in_order(members: &mut Vec<Arc<RegionShared>>) {
    members.sort_by_key(|member| Arc::as_ptr(member).addr());
    members.dedup_by(|a, b| Arc::ptr_eq(a, b));
}

impl From<Failed<Arc<RegionShared>>> for GroupError {
    fn from(failed: Failed<Arc<RegionShared>>) -> Self {
        Self { member: failed.member.name.clone(), source: failed.source }
    }
}
