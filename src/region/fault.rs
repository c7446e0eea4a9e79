//! Faults of a region and of a mapping, as the caller's flags allow.

use super::Region;
use super::core::RegionCore;
use super::error::FaultError;
use super::mapping::Mapping;
use super::offsets::{InMapping, InRegion};
use crate::protocol::caller::Caller;
use crate::protocol::fault::{CallerLock, Outcome, Resolved, resolve};

fn checked(caller: Caller<'_>, offset: usize, len: usize) -> Result<Caller<'_>, FaultError> {
    caller.flags.validate()?;
    if offset < len { Ok(caller) } else { Err(FaultError::OutOfBounds { offset, len }) }
}

fn outcome(is_there: bool) -> Outcome {
    if is_there { Outcome::Mapped } else { Outcome::Sigbus }
}

impl RegionCore {
    fn fault_once(&self, offset: InRegion, caller: &Caller<'_>, lock: &mut impl CallerLock) -> Outcome {
        self.protocol.fault_once(caller, lock, || Some(self.populated(offset))).unwrap_or_else(|outcome| outcome)
    }

    /// Makes the page at `offset` present in the file.
    fn populated(&self, offset: InRegion) -> Outcome {
        outcome(self.owner.is_empty() || self.owner.populate(offset.page(self.page), self.page).is_ok())
    }
}

impl Region {
    /// One try at a fault on the byte at `offset`: makes the page present in the region's file if the region is enabled,
    /// and does what the caller's flags allow if it is busy or disabled.
    ///
    /// The caller's own lock, a VMM's address-space lock for instance, takes the part that mmap_lock has in the kernel:
    /// [`Outcome::Retry`] says whether it was released on the way.
    ///
    /// ```
    /// use revocable_mmio::fault::{FaultFlags, LockAfter, NoLock, Outcome};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let mut lock = NoLock::default(); // a caller without a lock of its own
    /// assert_eq!(region.fault(0, FaultFlags::DEFAULT, &mut lock)?, Outcome::Mapped);
    ///
    /// region.reset(|_| {
    ///     let busy = region.fault(0, FaultFlags::NOWAIT, &mut NoLock::default());
    ///     assert_eq!(busy, Ok(Outcome::Retry { lock: LockAfter::Held })); // at once
    /// })?;
    /// region.disable()?;
    /// assert_eq!(region.fault(0, FaultFlags::DEFAULT, &mut lock)?, Outcome::Sigbus);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As the flags say. With `RETRY_NOWAIT` it never sleeps on a lock, not even for a moment.
    ///
    /// # Errors
    /// Out of bounds, or flags that contradict themselves; the lock is then untouched.
    ///
    /// # Signal safety
    /// Async-signal-safe if `lock` is and the caller has no [`CancelToken`](crate::CancelToken); it may wait as an access does.
    pub fn fault<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        lock: &mut impl CallerLock,
    ) -> Result<Outcome, FaultError> {
        let caller = checked(caller.into(), offset, self.len())?;
        Ok(self.shared.fault_once(InRegion(offset), &caller, lock))
    }

    /// The loop around [`fault`](Self::fault), as `fixup_user_fault` does it: a first try, then tries with TRIED, with a
    /// check for cancellation between them, until the fault is decided. The caller's lock is held again when this returns;
    /// the result says whether it was released in between.
    ///
    /// ```
    /// use revocable_mmio::fault::{FaultFlags, NoLock, NotResolved};
    /// use revocable_mmio::{Caller, CancelToken, FaultError, OnDisabled};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// assert!(!region.fault_in(0, FaultFlags::WAIT, &mut NoLock::default())?.unlocked);
    ///
    /// region.disable()?;
    /// let stop = CancelToken::new();
    /// let caller = Caller::new(FaultFlags::WAIT).cancel(&stop).on_disabled(OnDisabled::Block);
    /// # stop.cancel();
    /// // Waits for enable(), until another thread calls `stop.cancel()`.
    /// let ended = region.fault_in(0, caller, &mut NoLock::default());
    /// assert_eq!(ended, Err(FaultError::NotResolved(NotResolved::Killed)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As the flags say.
    ///
    /// # Errors
    /// [`FaultError::OutOfBounds`], [`FaultError::Flags`]: the caller's mistake. [`FaultError::NotResolved`] says how
    /// the fault was decided: refused, cancelled, would have to wait, or would wait for its own thread.
    ///
    /// # Signal safety
    /// Async-signal-safe if `lock` is and the caller has no [`CancelToken`](crate::CancelToken); it may wait as an access does.
    pub fn fault_in<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        lock: &mut impl CallerLock,
    ) -> Result<Resolved, FaultError> {
        let caller = checked(caller.into(), offset, self.len())?;
        let fault = |flags, lock: &mut _| self.shared.fault_once(InRegion(offset), &caller.with_flags(flags), lock);
        Ok(resolve(caller.flags, lock, || caller.is_cancelled(), fault)?)
    }
}

impl Mapping {
    /// One try at a fault on the byte at `offset`, as [`Region::fault`]; under Zap it also maps the page in this mapping,
    /// which the kernel does under the other strategies. [`Caller::on_disabled`] is replaced by the mapping's own policy.
    ///
    /// ```
    /// use revocable_mmio::fault::{FaultFlags, NoLock, Outcome};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let prefault = mapping.fault(0, FaultFlags::WAIT | FaultFlags::WRITE, &mut NoLock::default())?;
    /// assert_eq!(prefault, Outcome::Mapped);
    /// region.disable()?;
    /// assert_eq!(mapping.fault(0, FaultFlags::WAIT, &mut NoLock::default())?, Outcome::Sigbus);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As the flags say.
    ///
    /// # Errors
    /// Out of bounds, or flags that contradict themselves.
    ///
    /// # Signal safety
    /// Async-signal-safe if `lock` is and the caller has no [`CancelToken`](crate::CancelToken); it may wait as an access does.
    pub fn fault<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        lock: &mut impl CallerLock,
    ) -> Result<Outcome, FaultError> {
        let caller = checked(caller.into(), offset, self.len())?.on_disabled(self.on_disabled());
        let served = &*self.served;
        let mapped = || {
            let faulted = served.fault_in(InMapping(offset)).map(|done| outcome(done.is_ok()));
            Some(faulted.unwrap_or_else(|| served.region.populated(served.offset + InMapping(offset))))
        };
        Ok(served.region.protocol.fault_once(&caller, lock, mapped).unwrap_or_else(|outcome| outcome))
    }
}
