//! The fault path: a caller that needs memory, with flags that say what may be done about it if it is not there.
//!
//! Everything that can meet a busy or a disabled region on a caller's behalf comes through [`RegionShared::fault_once`]:
//! it tries the read side of the memory lock, and leaves every other decision to [`crate::fault::decide`].

use crate::OnDisabled;
use crate::access::{Primitive, check};
use crate::error::{AccessError, FaultError};
use crate::fault::{
    CallerLock, Decision, FaultFlags, NoLock, NotResolved, Outcome, Rules, Seen, Situation, Sleep, Woken, decide,
    resolve,
};
use crate::gate::Phase;
use crate::mapping::Mapping;
use crate::owner::OwnerView;
use crate::protocol::State;
use crate::region::{Region, RegionShared};
use crate::revoke::Strategy;
use crate::wait::{CancelToken, Waited};

/// Who faults, and what it allows.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Caller<'a> {
    /// What the caller allows to be done. `WRITE` says that the access is a store.
    pub flags: FaultFlags,
    /// What calls off its waits, if the flags have `KILLABLE` or `INTERRUPTIBLE`.
    pub cancel: Option<&'a CancelToken>,
    /// What it meets at a disabled region: [`OnDisabled::Block`] waits, the others do not.
    pub on_disabled: OnDisabled,
    /// Where this crate departs from the kernel.
    pub rules: Rules,
}

impl<'a> Caller<'a> {
    /// A caller with these flags, whose waits nobody calls off, and that does not wait at a disabled region.
    pub fn new(flags: FaultFlags) -> Self {
        Self { flags, cancel: None, on_disabled: OnDisabled::Sigbus, rules: Rules::CRATE }
    }

    /// Cancelling `token` ends its waits.
    pub fn cancel(mut self, token: &'a CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// What it meets at a disabled region.
    pub fn on_disabled(mut self, policy: OnDisabled) -> Self {
        self.on_disabled = policy;
        self
    }

    fn with_flags(mut self, flags: FaultFlags) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_some_and(CancelToken::is_cancelled)
    }
}

impl From<FaultFlags> for Caller<'_> {
    fn from(flags: FaultFlags) -> Self {
        Self::new(flags)
    }
}

impl RegionShared {
    /// One try. `ready` runs under the read side of the memory lock, of an enabled region, and must neither wait for
    /// another thread nor touch anything that can fault into a userfaultfd; it answers `None` if it found the region
    /// busy after all.
    ///
    /// With NOWAIT nothing here sleeps: one try-read, one decision.
    pub(crate) fn fault_once<R>(
        &self,
        caller: &Caller<'_>,
        lock: &mut impl CallerLock,
        ready: impl FnMut() -> Option<R>,
    ) -> Result<R, Outcome> {
        self.fault_once_if(|state| state == State::Enabled, caller, lock, ready)
    }

    /// [`fault_once`](Self::fault_once) for a caller whose idea of enabled is its own (`admits`, asked under the read
    /// side of the memory lock): a device in low power answers calls, though its mappings are revoked.
    fn fault_once_if<R>(
        &self,
        admits: impl Fn(State) -> bool,
        caller: &Caller<'_>,
        lock: &mut impl CallerLock,
        mut ready: impl FnMut() -> Option<R>,
    ) -> Result<R, Outcome> {
        loop {
            let (seen, busy) = match self.protocol.try_read() {
                Some(state) => match *state {
                    state if admits(state) => match ready() {
                        Some(value) => return Ok(value),
                        None => (Seen::Contended, true),
                    },
                    State::Enabled | State::Disabled | State::Gone => {
                        let situation = Situation {
                            exiting: caller.is_cancelled(),
                            unserved: false,
                            sigbus: caller.on_disabled != OnDisabled::Block || *state == State::Gone,
                            user_mode_only: false,
                            released: *state == State::Gone,
                        };
                        (Seen::Disabled(situation), false)
                    }
                },
                None => (Seen::Contended, true),
            };
            let decision: Decision = decide(caller.flags, seen, caller.rules);
            let answer = decision.carry_out(lock, |sleep| {
                let cancel = if sleep == Sleep::Uninterruptible { None } else { caller.cancel };
                let unwanted =
                    |now| if busy { now == Phase::Busy } else { matches!(now, Phase::Busy | Phase::Disabled) };
                match self.protocol.wait_while(unwanted, cancel, None) {
                    Waited::Done | Waited::TimedOut => Woken::Done,
                    Waited::Cancelled => Woken::Killed,
                }
            });
            if let Some(outcome) = answer {
                return Err(outcome);
            }
        }
    }

    /// The loop around [`fault_once`](Self::fault_once): first try, then TRIED, cancellation looked at in between.
    pub(crate) fn on_behalf<R>(&self, caller: &Caller<'_>, ready: impl FnMut() -> Option<R>) -> Result<R, NotResolved> {
        self.on_behalf_if(|state| state == State::Enabled, caller, ready)
    }

    /// [`on_behalf`](Self::on_behalf) for a caller whose idea of enabled is its own.
    pub(crate) fn on_behalf_if<R>(
        &self,
        admits: impl Fn(State) -> bool,
        caller: &Caller<'_>,
        mut ready: impl FnMut() -> Option<R>,
    ) -> Result<R, NotResolved> {
        let mut value = None;
        resolve(
            caller.flags,
            &mut NoLock::default(),
            || caller.is_cancelled(),
            |flags, lock| match self.fault_once_if(&admits, &caller.with_flags(flags), lock, &mut ready) {
                Ok(ready) => {
                    value = Some(ready);
                    Outcome::Mapped
                }
                Err(outcome) => outcome,
            },
        )?;
        // `resolve` answers Ok for Mapped only.
        value.ok_or(NotResolved::Sigbus)
    }

    fn populated(&self, offset: usize) -> Outcome {
        let first = offset / self.page * self.page;
        let there = self.owner.is_empty() || self.owner.populate(first, self.page).is_ok();
        if there { Outcome::Mapped } else { Outcome::Sigbus }
    }
}

impl Region {
    /// One try at a fault on the byte at `offset`: makes the page present in the region's file if the region is enabled,
    /// and does what the caller's flags allow if it is busy or disabled.
    ///
    /// The caller's own lock, a VMM's address-space lock for instance, stands where mmap_lock stands in the kernel:
    /// [`Outcome::Retry`] tells whether it was released on the way.
    ///
    /// # Blocking
    /// As the flags say. With `RETRY_NOWAIT` it never sleeps on a lock, not for a moment.
    ///
    /// # Errors
    /// Out of bounds, or flags that contradict themselves; the lock is untouched then.
    pub fn fault<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        lock: &mut impl CallerLock,
    ) -> Result<Outcome, FaultError> {
        let caller = caller.into();
        caller.flags.validate()?;
        if offset >= self.len() {
            return Err(FaultError::OutOfBounds { offset, len: self.len() });
        }
        let shared = &*self.shared;
        Ok(shared.fault_once(&caller, lock, || Some(shared.populated(offset))).unwrap_or_else(|outcome| outcome))
    }

    /// The loop around [`fault`](Self::fault), as `fixup_user_fault` does it: first try, then TRIED, cancellation looked
    /// at in between, until it is decided. The caller's lock is held again when it returns; the answer says whether it
    /// was released in between.
    ///
    /// # Blocking
    /// As the flags say.
    ///
    /// # Errors
    /// See [`FaultError`].
    pub fn fault_in<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        lock: &mut impl CallerLock,
    ) -> Result<crate::fault::Resolved, FaultError> {
        let caller = caller.into();
        if offset >= self.len() {
            return Err(FaultError::OutOfBounds { offset, len: self.len() });
        }
        let shared = &*self.shared;
        Ok(resolve(
            caller.flags,
            lock,
            || caller.is_cancelled(),
            |flags, lock| {
                let caller = caller.with_flags(flags);
                shared.fault_once(&caller, lock, || Some(shared.populated(offset))).unwrap_or_else(|outcome| outcome)
            },
        )?)
    }
}

impl Mapping {
    /// One try at a fault on the byte at `offset`, as [`Region::fault`], that also maps the page in this mapping where
    /// that is not the kernel's business (Zap). [`Caller::on_disabled`] is the mapping's own policy.
    ///
    /// # Blocking
    /// As the flags say.
    ///
    /// # Errors
    /// Out of bounds, or flags that contradict themselves.
    pub fn fault<'a>(
        &self,
        offset: usize,
        caller: impl Into<Caller<'a>>,
        lock: &mut impl CallerLock,
    ) -> Result<Outcome, FaultError> {
        let caller = caller.into().on_disabled(self.on_disabled());
        caller.flags.validate()?;
        if offset >= self.len() {
            return Err(FaultError::OutOfBounds { offset, len: self.len() });
        }
        let served = &*self.served;
        let mapped = || {
            Some(match served.view.server.uffd() {
                Some(uffd) if served.view.strategy == Strategy::Zap => match served.map_pages(uffd, offset) {
                    Ok(()) => Outcome::Mapped,
                    Err(_) => Outcome::Sigbus,
                },
                _ => served.region.populated(served.offset + offset),
            })
        };
        Ok(served.region.fault_once(&caller, lock, mapped).unwrap_or_else(|outcome| outcome))
    }

    /// One load as the caller's flags allow, made on its behalf: under the read side of the memory lock and through the
    /// owner's view, so that it never waits in a page fault. [`Caller::on_disabled`] is the mapping's own policy.
    ///
    /// # Blocking
    /// As the flags say; with [`FaultFlags::NOWAIT`] not at all.
    ///
    /// # Errors
    /// See [`AccessError`]; [`AccessError::WouldBlock`] for NOWAIT, [`AccessError::Cancelled`] if called off.
    pub fn read_with<'a, T: Primitive>(&self, offset: usize, caller: impl Into<Caller<'a>>) -> Result<T, AccessError> {
        self.behalf::<T, T>(offset, &caller.into(), T::ALL_ONES, |view, at| view.read(at))
    }

    /// One store as the caller's flags allow; see [`read_with`](Self::read_with).
    ///
    /// # Blocking
    /// As the flags say.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn write_with<'a, T: Primitive>(
        &self,
        offset: usize,
        value: T,
        caller: impl Into<Caller<'a>>,
    ) -> Result<(), AccessError> {
        if !self.is_writable() {
            check::<T>(offset, self.len())?;
            return Err(AccessError::ReadOnly { offset });
        }
        self.behalf::<T, ()>(offset, &caller.into(), (), |view, at| view.write(at, value))
    }

    /// [`read`](Self::read) that never waits.
    ///
    /// # Errors
    /// [`AccessError::WouldBlock`] where `read` would wait.
    pub fn try_read<T: Primitive>(&self, offset: usize) -> Result<T, AccessError> {
        self.read_with(offset, FaultFlags::NOWAIT)
    }

    /// [`write`](Self::write) that never waits.
    ///
    /// # Errors
    /// [`AccessError::WouldBlock`] where `write` would wait.
    pub fn try_write<T: Primitive>(&self, offset: usize, value: T) -> Result<(), AccessError> {
        self.write_with(offset, value, FaultFlags::NOWAIT.union(FaultFlags::WRITE))
    }

    fn behalf<T: Primitive, R: Copy>(
        &self,
        offset: usize,
        caller: &Caller<'_>,
        unsupported: R,
        access: impl Fn(&OwnerView, usize) -> Result<R, AccessError>,
    ) -> Result<R, AccessError> {
        check::<T>(offset, self.len())?;
        let caller = caller.on_disabled(self.on_disabled());
        let region = &*self.served.region;
        if region.owner.is_empty() {
            return Err(AccessError::NoMemory { offset });
        }
        match region.on_behalf(&caller, || Some(access(&region.owner, self.served.offset + offset))) {
            Ok(done) => done.map_err(|_| AccessError::NoMemory { offset }),
            Err(NotResolved::Sigbus) if self.on_disabled() == OnDisabled::AllOnes => Ok(unsupported),
            Err(NotResolved::Sigbus) if region.protocol.phase() == Phase::Gone => Err(AccessError::Gone { offset }),
            Err(NotResolved::Sigbus) => Err(AccessError::Disabled { offset }),
            Err(NotResolved::WouldBlock) => Err(AccessError::WouldBlock { offset }),
            Err(NotResolved::Killed) => Err(AccessError::Cancelled { offset }),
            Err(NotResolved::Illegal(flags)) => Err(AccessError::Flags(flags)),
        }
    }
}
