//! Guards: while one lives, the region stays enabled, and disabling waits.

use crate::protocol::gate::{self, Phase};
use crate::region::access_error::AccessError;
use crate::region::mapping::Mapping;
use crate::sync::wait::Waited;
use std::fmt;
use std::ops::Deref;

/// Keeps the region enabled for a series of accesses; see [`Mapping::try_access`].
///
/// While it lives, `disable()` of its region waits, `try_disable()` returns `Busy`, and `disable_timeout()` gives up and
/// names this thread. It is no lock against other accesses. If it is leaked, its region can never be revoked; once its
/// thread has ended, errors show it as a guard of thread 0.
///
/// ```
/// use revocable_mmio::{AccessError, RevokeError};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let guard = mapping.try_access()?; // the region stays enabled until it is dropped
/// guard.write(0, 1_u32)?;
/// // SAFETY: aligned, inside the mapping, and the guard keeps it reachable.
/// assert_eq!(unsafe { guard.as_ptr().cast::<u32>().read_volatile() }, 1);
/// assert!(matches!(region.disable(), Err(RevokeError::WouldDeadlock { guards: 1 }))); // this thread's own guard
/// drop(guard);
///
/// region.disable()?;
/// assert!(matches!(mapping.try_access(), Err(AccessError::Disabled { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Signal safety
/// A handler may access through a guard that it has interrupted, as it may without one. Taking and dropping guards is not
/// for handlers: a handler that interrupts its own thread there makes the gate miscount.
#[must_use = "a guard that is dropped at once guards nothing"]
pub struct Access<'a> {
    mapping: &'a Mapping,
    _guard: gate::Guard<'a>,
}

impl Access<'_> {
    /// The address of the first byte. It is reachable as long as the guard lives, so plain volatile accesses need no check
    /// and no recovery. The exceptions are a mapping for [accessors only](crate::MapOptions::accessors_only) and a file
    /// that others truncate: there, use the mapping's own accesses, to which a guard derefs.
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }
}

impl Deref for Access<'_> {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        self.mapping
    }
}

impl fmt::Debug for Access<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("mapping", self.mapping).finish()
    }
}

impl Mapping {
    /// A guard, if the region is enabled. Costs about a nanosecond, and never waits.
    ///
    /// ```
    /// use revocable_mmio::AccessError;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let guard = mapping.try_access()?;
    /// drop(guard);
    /// region.reset(|_| assert!(matches!(mapping.try_access(), Err(AccessError::WouldBlock { .. }))))?;
    /// region.disable()?;
    /// assert!(matches!(mapping.try_access(), Err(AccessError::Disabled { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AccessError::Disabled`], [`AccessError::Gone`], or [`AccessError::WouldBlock`] while the region is busy.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    #[inline]
    pub fn try_access(&self) -> Result<Access<'_>, AccessError> {
        match self.served.region.protocol.gate.enter() {
            Ok(guard) => Ok(Access { mapping: self, _guard: guard }),
            Err(phase) => Err(refused(phase)),
        }
    }

    /// Runs `with` under a guard, and returns its result. A guard that a closure holds cannot leak.
    ///
    /// ```
    /// use revocable_mmio::AccessError;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let sum = mapping.with_access(|registers| Ok::<_, AccessError>(registers.read::<u32>(0)? + registers.read::<u32>(4)?))??;
    /// assert_eq!(sum, 0);
    ///
    /// region.disable()?;
    /// assert!(matches!(mapping.with_access(|_| ()), Err(AccessError::Disabled { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// Waits while the region is busy. Inside another guard of the same region it never waits: the revocation waits for
    /// that guard.
    ///
    /// # Errors
    /// As [`try_access`](Self::try_access), except `WouldBlock`. [`AccessError::Reentrant`] in a callback of a change of
    /// the region, where it would wait for its own thread. [`AccessError::WouldDeadlock`] inside a guard of *another*
    /// region that is being revoked together with this one (another BAR of the device, another member of the group): the
    /// change of both waits for that guard.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn with_access<R>(&self, with: impl FnOnce(&Access<'_>) -> R) -> Result<R, AccessError> {
        self.access().map(|access| with(&access))
    }

    /// A guard, after the end of a busy phase. As [`with_access`](Self::with_access).
    pub(crate) fn access(&self) -> Result<Access<'_>, AccessError> {
        loop {
            match self.try_access() {
                Ok(access) => return Ok(access),
                Err(AccessError::WouldBlock { .. }) => {
                    let protocol = &self.served.region.protocol;
                    if protocol.is_inherited() {
                        return Err(AccessError::Forked { offset: AccessError::WHOLE });
                    }
                    match protocol.wait_while(|now| now == Phase::Busy, None, None) {
                        Waited::Reentrant => return Err(AccessError::Reentrant { offset: AccessError::WHOLE }),
                        Waited::WouldDeadlock => return Err(AccessError::WouldDeadlock),
                        Waited::Done | Waited::Cancelled | Waited::TimedOut => {}
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[cold]
fn refused(phase: Phase) -> AccessError {
    let offset = AccessError::WHOLE;
    match phase {
        Phase::Open | Phase::Busy => AccessError::WouldBlock { offset },
        Phase::Disabled => AccessError::Disabled { offset },
        Phase::Gone => AccessError::Gone { offset },
    }
}
