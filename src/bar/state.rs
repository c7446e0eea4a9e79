//! The state of a BAR: all of its areas, as one.

use super::areas::Areas;
use super::shared::Shared;
use crate::protocol::error::RevokeError;
use crate::protocol::{Changes, State, WaitFor};
use crate::region::group::GroupError;
use crate::region::owner::OwnerView;
use crate::sync::wait::Patience;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A BAR, and the right to change its state. Dropping it ends all of its areas: mappings refuse for good, and the memslots
/// are taken out. See the [module](super).
///
/// The verbs are those of a [`ResetGroup`](crate::ResetGroup) of all areas, and refuse what an area that is guarded or pinned
/// refuses. While one is under way, no area comes or goes.
///
/// ```
/// use revocable_mmio::Region;
/// use revocable_mmio::bar::Bar;
/// use std::time::Duration;
///
/// let bar = Bar::builder(1 << 20).area(0, Region::builder(0x4000)).build()?;
/// let blob = bar.areas().insert(0x1_0000, Region::builder(0x4000).name("blob"))?;
///
/// let pin = blob.region().pin(0..0x4000, revocable_mmio::fault::FaultFlags::WAIT)?;
/// let busy = bar.try_disable().unwrap_err();
/// assert!(busy.is_busy() && busy.member == "blob" && bar.is_enabled());
/// assert!(bar.disable_timeout(Duration::from_millis(5)).unwrap_err().is_busy());
/// drop(pin);
///
/// assert!(bar.disable()?);
/// let later = bar.areas().insert(0x2_0000, Region::builder(0x4000))?;
/// assert!(!blob.region().is_enabled() && !later.region().is_enabled());
/// assert!(bar.enable()? && later.region().is_enabled());
/// assert!(!bar.try_enable()? && !bar.enable_timeout(Duration::ZERO)?); // it is enabled already
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Bar {
    areas: Areas,
}

impl Bar {
    pub(super) fn new(areas: Areas) -> Self {
        Self { areas }
    }

    /// What it consists of.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    /// True if it is enabled. Another thread may change that right after.
    pub fn is_enabled(&self) -> bool {
        self.areas.shared.anchor.is_enabled()
    }

    /// Revokes every area, or none. True if this changed anything.
    ///
    /// # Blocking
    /// As [`ResetGroup::disable`](crate::ResetGroup::disable), and for a change of the BAR that another thread is making.
    ///
    /// # Errors
    /// As [`ResetGroup::disable`](crate::ResetGroup::disable). [`RevokeError::Reentrant`] from inside a change of the BAR.
    pub fn disable(&self) -> Result<bool, GroupError> {
        self.change(State::Disabled, Patience::Forever)
    }

    /// [`disable`](Self::disable) that waits for no guard, no pin and no other change.
    ///
    /// # Errors
    /// [Busy](GroupError::is_busy) where `disable` would wait.
    pub fn try_disable(&self) -> Result<bool, GroupError> {
        self.change(State::Disabled, Patience::Never)
    }

    /// [`disable`](Self::disable) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says what it waited for.
    pub fn disable_timeout(&self, patience: Duration) -> Result<bool, GroupError> {
        self.change(State::Disabled, Patience::within(patience))
    }

    /// Gives every area back, or none. True if this changed anything.
    ///
    /// # Blocking
    /// As [`disable`](Self::disable), but guards and pins, of which there are none.
    ///
    /// # Errors
    /// As [`ResetGroup::enable`](crate::ResetGroup::enable).
    pub fn enable(&self) -> Result<bool, GroupError> {
        self.change(State::Enabled, Patience::Forever)
    }

    /// [`enable`](Self::enable) that waits for no other change.
    ///
    /// # Errors
    /// [Busy](GroupError::is_busy) where `enable` would wait.
    pub fn try_enable(&self) -> Result<bool, GroupError> {
        self.change(State::Enabled, Patience::Never)
    }

    /// [`enable`](Self::enable) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] if other threads' changes took longer.
    pub fn enable_timeout(&self, patience: Duration) -> Result<bool, GroupError> {
        self.change(State::Enabled, Patience::within(patience))
    }

    /// Runs `reset` while nothing reaches the memory of any area, and accesses to an enabled BAR wait for its end. It gets
    /// each area's offset in the BAR and its owner's view. As for [`Region::reset`](crate::Region::reset), it must not change
    /// the BAR.
    ///
    /// ```
    /// use revocable_mmio::Region;
    /// use revocable_mmio::bar::Bar;
    ///
    /// let bar = Bar::builder(1 << 20).area(0x1000, Region::builder(0x4000)).build()?;
    /// bar.reset(|memories| memories.iter().try_for_each(|(_, memory)| memory.fill(0, 0, memory.len())))??;
    /// assert_eq!(bar.try_reset(|memories| memories[0].0)?, 0x1000);
    /// bar.reset_timeout(std::time::Duration::from_secs(1), |_| ())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`disable`](Self::disable).
    ///
    /// # Errors
    /// As [`ResetGroup::reset`](crate::ResetGroup::reset).
    pub fn reset<R>(&self, reset: impl FnOnce(&[(u64, &OwnerView)]) -> R) -> Result<R, GroupError> {
        self.reset_within(Patience::Forever, reset)
    }

    /// [`reset`](Self::reset) that waits for no guard, no pin and no other change.
    ///
    /// # Errors
    /// [Busy](GroupError::is_busy) where `reset` would wait: nothing was reset.
    pub fn try_reset<R>(&self, reset: impl FnOnce(&[(u64, &OwnerView)]) -> R) -> Result<R, GroupError> {
        self.reset_within(Patience::Never, reset)
    }

    /// [`reset`](Self::reset) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says what it waited for.
    pub fn reset_timeout<R>(
        &self,
        patience: Duration,
        reset: impl FnOnce(&[(u64, &OwnerView)]) -> R,
    ) -> Result<R, GroupError> {
        self.reset_within(Patience::within(patience), reset)
    }

    fn change(&self, to: State, patience: Patience) -> Result<bool, GroupError> {
        let shared = &self.areas.shared;
        span!(DEBUG, "change", bar = %shared.name, to = ?to);
        let _turn = shared.take_turn(patience).map_err(|source| self.failed(source))?;
        Ok(Changes::make(&shared.members(), to, wait(patience))?)
    }

    fn reset_within<R>(
        &self,
        patience: Patience,
        reset: impl FnOnce(&[(u64, &OwnerView)]) -> R,
    ) -> Result<R, GroupError> {
        let shared = &self.areas.shared;
        span!(DEBUG, "reset", bar = %shared.name);
        let _turn = shared.take_turn(patience).map_err(|source| self.failed(source))?;
        let areas = shared.areas_now();
        let memories: Vec<_> = areas.iter().map(|area| (area.range.start, &area.region.shared.owner)).collect();
        let members = shared.members();
        let (value, released) = Changes::reset(&members, wait(patience), || reset(&memories), |_| None)?;
        Ok(released.map(|()| value)?)
    }

    fn failed(&self, source: RevokeError) -> GroupError {
        GroupError { member: self.areas.shared.name.clone(), source }
    }
}

/// As for a group.
fn wait(patience: Patience) -> WaitFor {
    if patience == Patience::Never { WaitFor::readers_only() } else { patience.into() }
}

impl Shared {
    /// The BAR goes, for good.
    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.anchor.end();
        self.areas_now().iter().for_each(|area| area.region.end());
        self.settle();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if !self.areas.shared.is_inherited() {
            self.areas.shared.end();
        }
    }
}
