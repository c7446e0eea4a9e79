//! Resets: the owner works on the memory while nothing else reaches it.

use super::Region;
use super::owner::OwnerView;
use crate::protocol::Changes;
use crate::protocol::error::RevokeError;
use crate::sync::wait::Patience;
use std::slice;
use std::time::Duration;

impl Region {
    /// Runs `reset` while nothing reaches the memory through any mapping. Accesses to an enabled region wait for its end,
    /// and none is refused; a disabled region stays disabled.
    ///
    /// `reset` gets the owner's view. It must not change this region's state, and must touch its mappings by `try_`
    /// accesses only: any other access would wait for `reset` itself. A panic in it passes on to the caller once the
    /// mappings are back.
    ///
    /// ```
    /// use revocable_mmio::{AccessError, RevokeError};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// mapping.write(0, 7_u32)?;
    /// let before = region.reset(|memory| {
    ///     assert!(matches!(mapping.try_read::<u32>(0), Err(AccessError::WouldBlock { .. }))); // busy, not disabled
    ///     assert!(matches!(region.try_disable(), Err(RevokeError::Reentrant)));
    ///     let before = memory.read::<u32>(0);
    ///     memory.fill(0, 0, memory.len()).map(|()| before)
    /// })??;
    /// assert_eq!(before, Ok(7));
    /// assert_eq!(mapping.read::<u32>(0)?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As [`disable`](Self::disable).
    ///
    /// # Errors
    /// The region is as before, except that a [`RevokeError::Sys`] or [`RevokeError::Window`] from giving the memory back leaves it disabled.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn reset<R>(&self, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::Forever, reset)
    }

    /// [`reset`](Self::reset) that never waits.
    ///
    /// ```
    /// use revocable_mmio::{MapOptions, RevokeError};
    /// use revocable_mmio::fault::FaultFlags;
    /// use std::time::Duration;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let pin = region.pin(0..4096, FaultFlags::WAIT)?;
    /// assert!(matches!(region.try_reset(|_| ()), Err(RevokeError::Busy(_))));
    /// let gave_up = region.reset_timeout(Duration::from_millis(5), |_| ());
    /// assert!(matches!(gave_up, Err(RevokeError::TimedOut { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `reset` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_reset<R>(&self, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::Never, reset)
    }

    /// [`reset`](Self::reset) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says what it waited for.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn reset_timeout<R>(&self, patience: Duration, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::within(patience), reset)
    }

    fn reset_with<R>(&self, patience: Patience, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        span!(DEBUG, "reset", region = %self.shared.name);
        let done = Changes::reset(slice::from_ref(&self.shared), patience, || reset(&self.shared.owner), |_| None);
        let (value, released) = done.map_err(|failed| failed.source)?;
        released.map(|()| value).map_err(|failed| failed.source)
    }
}
