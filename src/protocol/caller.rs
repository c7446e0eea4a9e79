//! The fault path: a caller that needs memory, with flags that say what may be done about it if it is not there.
//!
//! Every access and fault on a caller's behalf, which may find a busy or a disabled region, goes through
//! [`Protocol::fault_once`]: it tries the read side of the memory lock, and leaves every other decision to
//! [`crate::fault::decide`].

use crate::protocol::fault::{
    CallerLock, Decision, FaultFlags, NoLock, NotResolved, Outcome, Rules, Seen, Situation, Sleep, Woken, decide,
    resolve,
};
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::protocol::{Protocol, State};
use crate::sync::wait::{CancelToken, Waited};
use crate::sync::{Mutation, RwLockReadGuard, broken};

/// A caller: what it allows, and what can end its waits.
///
/// ```
/// use revocable_mmio::fault::FaultFlags;
/// use revocable_mmio::{AccessError, Caller, CancelToken, OnDisabled};
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let machine_stops = CancelToken::new();
/// let vcpu = Caller::new(FaultFlags::WAIT).cancel(&machine_stops).on_disabled(OnDisabled::Block);
/// assert_eq!(mapping.read_with::<u32>(0, vcpu)?, 0);
///
/// let io_thread = FaultFlags::NOWAIT; // flags alone are a caller too
/// region.reset(|_| {
///     let busy = mapping.read_with::<u32>(0, io_thread);
///     assert!(matches!(busy, Err(AccessError::WouldBlock { .. })));
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Caller<'a> {
    /// What the caller allows the fault to do. `WRITE` says that the access is a store.
    pub flags: FaultFlags,
    /// Cancels its waits, if the flags have `KILLABLE` or `INTERRUPTIBLE`.
    pub cancel: Option<&'a CancelToken>,
    /// What happens at a disabled region: under [`OnDisabled::Block`] the caller waits, under the others it does not.
    pub on_disabled: OnDisabled,
    /// The rules while the region is busy. Default: [`Rules::CRATE`].
    pub rules: Rules,
}

impl<'a> Caller<'a> {
    /// A caller with these flags, without a token, that does not wait at a disabled region.
    pub fn new(flags: FaultFlags) -> Self {
        Self { flags, cancel: None, on_disabled: OnDisabled::Sigbus, rules: Rules::CRATE }
    }

    /// Adds a token: cancelling it ends the caller's waits.
    pub fn cancel(mut self, token: &'a CancelToken) -> Self {
        self.cancel = Some(token);
        self
    }

    /// Sets what happens at a disabled region.
    pub fn on_disabled(mut self, policy: OnDisabled) -> Self {
        self.on_disabled = policy;
        self
    }

    pub(crate) fn with_flags(mut self, flags: FaultFlags) -> Self {
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

/// What a fault waits for.
#[derive(Clone, Copy)]
enum Until {
    /// The gate lets it in, or refuses it.
    Entered,
    /// The memory lock is free.
    Unlocked,
    /// The region is enabled.
    Enabled,
}

impl Protocol {
    /// One try. `ready` runs under the read side of the memory lock of an enabled region, and must neither wait for another
    /// thread nor touch anything that can fault into a userfaultfd. It returns `None` if it found the region busy after
    /// all.
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

    /// [`fault_once`](Self::fault_once) for a caller that decides itself which states count as enabled (`admits`, called
    /// under the read side of the memory lock): a device in low power answers calls, though its mappings are revoked.
    fn fault_once_if<R>(
        &self,
        admits: impl Fn(State) -> bool,
        caller: &Caller<'_>,
        lock: &mut impl CallerLock,
        mut ready: impl FnMut() -> Option<R>,
    ) -> Result<R, Outcome> {
        loop {
            let locked = if broken(Mutation::NowaitReads) { self.read().ok() } else { self.try_read() };
            let (seen, until) = match locked {
                Some(state) => match State::clone(&state) {
                    now if admits(now) => match unlocked_if_broken(state, &mut ready) {
                        Some(value) => return Ok(value),
                        None => (Seen::Contended, Until::Entered),
                    },
                    now @ (State::Enabled | State::Disabled | State::Gone) => {
                        let situation = Situation {
                            exiting: caller.is_cancelled(),
                            sigbus: caller.on_disabled != OnDisabled::Block || now == State::Gone,
                        };
                        (Seen::Disabled(situation), Until::Enabled)
                    }
                },
                None => (Seen::Contended, Until::Unlocked),
            };
            let decision: Decision = decide(caller.flags, seen, caller.rules);
            if matches!(decision, Decision::Wait { .. }) {
                // Asked before the caller's lock is released for a wait that will not happen.
                match self.futile() {
                    Some(Waited::WouldDeadlock) => return Err(Outcome::WouldDeadlock),
                    Some(_) => return Err(Outcome::Reentrant),
                    None => {}
                }
            }
            let answer = decision.carry_out(lock, |sleep| {
                let cancel = if sleep == Sleep::Uninterruptible { None } else { caller.cancel };
                let waited = match until {
                    Until::Entered => self.wait_while(|now| now == Phase::Busy, cancel, None),
                    Until::Unlocked => self.wait_while_met(|now| now == Phase::Busy, cancel),
                    Until::Enabled => self.wait_while_met(|now| matches!(now, Phase::Busy | Phase::Disabled), cancel),
                };
                match waited {
                    Waited::Cancelled => Woken::Killed,
                    // The last two: the loop looks again, and `futile` refuses before the next wait.
                    Waited::Done | Waited::TimedOut | Waited::Reentrant | Waited::WouldDeadlock => Woken::Done,
                }
            });
            if let Some(outcome) = answer {
                return Err(outcome);
            }
        }
    }

    /// The loop around [`fault_once`](Self::fault_once): a first try, then TRIED, with a check for cancellation in between.
    pub(crate) fn on_behalf<R>(&self, caller: &Caller<'_>, ready: impl FnMut() -> Option<R>) -> Result<R, NotResolved> {
        self.on_behalf_if(|state| state == State::Enabled, caller, ready)
    }

    /// [`on_behalf`](Self::on_behalf) for a caller that decides itself which states count as enabled.
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
        // `resolve` returns Ok for Mapped only.
        value.ok_or(NotResolved::Sigbus)
    }
}

/// Runs `ready` under the lock; the model's tests leave the lock out to see it missed.
#[inline(always)]
fn unlocked_if_broken<R>(state: RwLockReadGuard<'_, State>, ready: &mut impl FnMut() -> R) -> R {
    if broken(Mutation::FaultUnlocked) {
        drop(state);
        return ready();
    }
    let value = ready();
    drop(state);
    value
}
