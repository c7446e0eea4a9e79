//! Single accesses on a caller's behalf, as its flags allow.
//!
//! UNSAFETY: accesses region memory by address, in the owner's view, which the region keeps, or in a mapping that `&self`
//! keeps. A device, a guest and other processes may write there meanwhile: the accesses are single, and recoverable on
//! architectures that have recoverable accesses.
#![expect(unsafe_code, reason = "accesses memory by address")]

use crate::protocol::caller::Caller;
use crate::protocol::fault::{FaultFlags, NotResolved};
use crate::protocol::policy::OnDisabled;
use crate::raw::{self, Faulted, Primitive};
use crate::region::access_error::AccessError;
use crate::region::access_error::check;
use crate::region::mapping::Mapping;
use crate::region::offsets::InMapping;
use crate::sync::inside;
use crate::sys::map::Prot;

impl Mapping {
    /// One load on the caller's behalf, as its flags allow. It is made under the read side of the memory lock and through
    /// the owner's view, so it never waits in a page fault. [`Caller::on_disabled`] is replaced by the mapping's own
    /// policy.
    ///
    /// ```
    /// use revocable_mmio::fault::FaultFlags;
    /// use revocable_mmio::{AccessError, Caller, CancelToken};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// let stop = CancelToken::new();
    /// let caller = Caller::new(FaultFlags::WAIT).cancel(&stop);
    /// mapping.write_with(0, 7_u32, caller)?;
    /// assert_eq!(mapping.read_with::<u32>(0, caller)?, 7);
    ///
    /// stop.cancel(); // also ends a wait that is under way
    /// assert_eq!(mapping.read_with::<u32>(0, caller), Err(AccessError::Cancelled { offset: 0 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Blocking
    /// As the flags say; with [`FaultFlags::NOWAIT`] it does not wait at all.
    ///
    /// # Errors
    /// As [`read`](Self::read). [`AccessError::WouldBlock`] where the flags forbid the wait that it would take: try
    /// again later. [`AccessError::Cancelled`] once the token is cancelled. [`AccessError::Flags`] if the flags
    /// contradict themselves.
    ///
    /// # Signal safety
    /// Async-signal-safe for a caller without a [`CancelToken`](crate::CancelToken), as [`read`](Self::read) is.
    pub fn read_with<'a, T: Primitive>(&self, offset: usize, caller: impl Into<Caller<'a>>) -> Result<T, AccessError> {
        check::<T>(offset, self.len())?;
        let loaded = self.under_lock(offset, size_of::<T>(), Prot::Read, &caller.into(), |at| {
            // SAFETY: the address that `under_lock` gives, aligned and inside, as just checked.
            unsafe { raw::load(at.cast::<T>()) }
        })?;
        Ok(loaded.unwrap_or(T::ALL_ONES))
    }

    /// One store on the caller's behalf, as its flags allow; see [`read_with`](Self::read_with).
    ///
    /// # Blocking
    /// As the flags say.
    ///
    /// # Errors
    /// As [`read_with`](Self::read_with), and [`AccessError::ReadOnly`].
    ///
    /// # Signal safety
    /// Async-signal-safe for a caller without a [`CancelToken`](crate::CancelToken), as [`write`](Self::write) is.
    pub fn write_with<'a, T: Primitive>(
        &self,
        offset: usize,
        value: T,
        caller: impl Into<Caller<'a>>,
    ) -> Result<(), AccessError> {
        check::<T>(offset, self.len())?;
        if !self.is_writable() {
            return Err(AccessError::ReadOnly { offset });
        }
        let stored = self.under_lock(offset, size_of::<T>(), Prot::ReadWrite, &caller.into(), |at| {
            // SAFETY: as in `read_with`.
            unsafe { raw::store(at.cast::<T>(), value) }
        });
        stored.map(drop)
    }

    /// [`read`](Self::read) that never waits.
    ///
    /// ```
    /// use revocable_mmio::AccessError;
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
    /// assert_eq!(mapping.try_read::<u32>(0), Ok(0));
    /// region.reset(|_| {
    ///     assert_eq!(mapping.try_read::<u32>(0), Err(AccessError::WouldBlock { offset: 0 }));
    ///     assert_eq!(mapping.try_write(0, 1_u32), Err(AccessError::WouldBlock { offset: 0 }));
    /// })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AccessError::WouldBlock`] where `read` would wait.
    ///
    /// # Signal safety
    /// Async-signal-safe, and never waits.
    pub fn try_read<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        self.read_with(offset, FaultFlags::NOWAIT)
    }

    /// [`write`](Self::write) that never waits.
    ///
    /// # Errors
    /// [`AccessError::WouldBlock`] where `write` would wait.
    ///
    /// # Signal safety
    /// Async-signal-safe, and never waits.
    pub fn try_write<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        self.write_with(offset, value, FaultFlags::NOWAIT.union(FaultFlags::WRITE))
    }

    /// Runs `access` on `len` bytes at `offset`, which are in the mapping, as the caller's flags allow. The address that it
    /// is given stays mapped meanwhile: it is in the owner's view, under the read side of the memory lock of an enabled
    /// region. `None` means an Unsupported Request.
    pub(crate) fn under_lock<R>(
        &self,
        offset: usize,
        len: usize,
        needed: Prot,
        caller: &Caller<'_>,
        mut access: impl FnMut(*mut u8) -> Result<R, Faulted>,
    ) -> Result<Option<R>, AccessError> {
        /// As for an access that recovers by itself.
        const TRIES: u32 = 16;
        let mut tries = 0;
        loop {
            // An access that could not recover is not tried at a device that is off.
            if !raw::RECOVERABLE && !inside::is_inside() && self.served.region.is_off() {
                return self.served.turned_off(offset).map(|_| None);
            }
            let done = self.once_under_lock(offset, len, needed, caller, &mut access);
            if !matches!(done, Err(AccessError::NoMemory { .. })) || inside::is_inside() {
                return done;
            }
            // The lock is free again: the device may be asked.
            let region = &self.served.region;
            tries += 1;
            if region.is_off() {
                return self.served.turned_off(offset).map(|_| None);
            }
            // It may have come on again.
            if tries == TRIES || region.memory_enabled.is_none() {
                return done;
            }
        }
    }

    fn once_under_lock<R>(
        &self,
        offset: usize,
        len: usize,
        needed: Prot,
        caller: &Caller<'_>,
        access: &mut impl FnMut(*mut u8) -> Result<R, Faulted>,
    ) -> Result<Option<R>, AccessError> {
        let caller = caller.on_disabled(self.on_disabled());
        let (served, region) = (&*self.served, &*self.served.region);
        if region.protocol.is_inherited() {
            return Err(AccessError::Forked { offset });
        }
        // Asked before the read side is taken, since its holder is inside as well.
        let inside = inside::is_inside();
        let mut access = || match region.owner.is_empty() {
            // A device that is dropped on revocation has no owner's view. The kernel resolves its faults, so the mapping
            // itself will do.
            true => match served.is_live(inside)? {
                true => Some(access(self.as_ptr().wrapping_add(offset))),
                false => Some(Err(Faulted)),
            },
            false => {
                let at = served.offset + InMapping(offset);
                Some(if region.owner.given(at, len) == len { access(region.owner.at(at)) } else { Err(Faulted) })
            }
        };
        // The owner's view has all rights; the mapping may have fewer.
        let allowed = || served.view.allows(served.view.range.part(offset, len), needed);
        let access = || if allowed() { access().map(Some) } else { Some(None) };
        match region.protocol.on_behalf(&caller, access) {
            Ok(None) => Err(AccessError::Protected { offset }),
            Ok(Some(done)) => done.map(Some).map_err(|Faulted| AccessError::NoMemory { offset }),
            Err(NotResolved::Sigbus) if self.on_disabled() == OnDisabled::AllOnes => Ok(None),
            Err(refused) => Err(AccessError::of_refused(refused, region.protocol.phase(), offset)),
        }
    }
}
