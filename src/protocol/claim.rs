//! The right to change a region's state, and waiting for the threads that rely on the memory.

use super::{Change, Mechanism, Protocol, State, Together};
use crate::protocol::error::{Holders, RevokeError};
use crate::protocol::gate::{NotDrained, Phase};
use crate::sync::atomic::Ordering;
use crate::sync::wait::{Patience, Waited};
use crate::sync::{Mutation, TryMutexGuard, broken, current_tid, inside};
use crate::trace;
use std::time::{Duration, Instant};

/// How long a thread waits for the right to change the state before it checks whether others wait for it.
const LOOK: Duration = Duration::from_millis(250);

impl Protocol {
    /// Claims the right to change the state, if the change looks possible: a change that has to be refused tells no
    /// subscriber, and closes nothing. This is only a look: a guard that is taken at this very moment refuses the change
    /// later, which is then taken back. `goal` is the state that the region is to have, `None` if it stays or is not known
    /// yet. Returns `None` to a thread that holds a guard and wants the region enabled: it is enabled as long as the guard
    /// lives.
    pub(super) fn claim<'a>(
        &'a self,
        mechanism: &'a dyn Mechanism,
        goal: Option<State>,
        patience: Patience,
        together: Option<&Together>,
    ) -> Result<Option<Change<'a>>, RevokeError> {
        if goal == Some(State::Enabled) && self.gate.held_by_caller() > 0 {
            return Ok(None);
        }
        let since = Instant::now();
        let change = self.take_control(mechanism, patience, since)?;
        if goal == Some(change.state()) {
            return Ok(Some(change));
        }
        if change.state() == State::Enabled {
            let guards = self.gate.held_by_caller();
            if guards > 0 {
                return Err(RevokeError::WouldDeadlock { guards });
            }
            let holders = Holders { guards: self.gate.held_guards(), pins: self.pins(), ..Holders::default() };
            if patience == Patience::Never && holders != Holders::default() {
                return Err(RevokeError::Busy(holders));
            }
        }
        // While it waits nothing has changed: accesses go on.
        if !mechanism.wait_for_peers(patience) {
            return Err(RevokeError::gave_up(patience, since, Holders::of_peers(mechanism.peers())));
        }
        // A revoked access must reach the crate's handler to become an error. An end for good does not fail for that, and a
        // goal that is not known yet is checked later (`Change::become_state`).
        match goal {
            Some(State::Disabled) => crate::raw::signal::install()?,
            Some(State::Gone) => _ = crate::raw::signal::install(),
            Some(State::Enabled) | None => {}
        }
        self.change_together(together);
        Ok(Some(change))
    }

    /// The write side of the memory lock, for accesses of the owner with no other access in between. The state stays,
    /// nothing is zapped, guards and pins are not waited for, and no subscriber is told. Other threads see a busy region,
    /// as in any change.
    pub(super) fn lock_out<'a>(
        &'a self,
        mechanism: &'a dyn Mechanism,
        together: Option<&Together>,
    ) -> Result<Change<'a>, RevokeError> {
        let mut change = self.take_control(mechanism, Patience::Forever, Instant::now())?;
        self.change_together(together);
        self.gate.shut().map_err(RevokeError::Barrier)?;
        change.lock(Patience::Forever)?;
        Ok(change)
    }

    /// One change at a time, and none from inside another of the same thread.
    fn take_control<'a>(
        &'a self,
        mechanism: &'a dyn Mechanism,
        patience: Patience,
        since: Instant,
    ) -> Result<Change<'a>, RevokeError> {
        if self.is_inherited() {
            return Err(RevokeError::Forked);
        }
        if self.waits_for_itself() {
            return Err(RevokeError::Reentrant);
        }
        // Until `changer` names this thread.
        let _inside = inside::enter();
        let control = self.lock_control(patience, since)?;
        let was = match self.phase() {
            Phase::Open => State::Enabled,
            Phase::Disabled => State::Disabled,
            // Busy ends before `control` is released.
            Phase::Gone | Phase::Busy => return Err(RevokeError::Gone),
        };
        // Relaxed: only ever compared with the reading thread's own id.
        self.changer.store(current_tid(), Ordering::Relaxed);
        Ok(Change::new(self, mechanism, control, was, since))
    }

    /// Takes `control`: one change at a time. The holder of a guard does not wait for it: the thread that has it may be
    /// waiting for that guard. Nor does a thread for which the change of this and other regions waits.
    pub(super) fn lock_control(&self, patience: Patience, since: Instant) -> Result<TryMutexGuard<'_>, RevokeError> {
        if let Some(control) = self.control.try_lock() {
            return Ok(control);
        }
        let guards = if broken(Mutation::OwnGuards) { 0 } else { self.gate.held_by_caller() };
        let futile = || match patience != Patience::Never && (guards > 0 || self.waits_for_caller()) {
            true => Err(RevokeError::WouldDeadlock { guards }),
            false => Ok(()),
        };
        let tried = in_stretches(
            patience,
            || Some(LOOK),
            futile,
            |stretch| match stretch {
                Patience::Until(until) => self.control.try_lock_until(until),
                Patience::Never | Patience::Forever => None,
            },
        );
        tried?.ok_or_else(|| RevokeError::gave_up(patience, since, Holders::default()))
    }

    /// Waits for the guards and the pins to end.
    pub(super) fn drain(
        &self,
        mechanism: &dyn Mechanism,
        patience: Patience,
        since: Instant,
    ) -> Result<(), RevokeError> {
        let nap = || nap(mechanism);
        let mut held = Vec::new();
        let mut slow = trace::ENABLED.then(|| since + trace::SLOW);
        let drained = in_stretches(
            patience,
            nap,
            || Ok(()),
            |stretch| match self.gate.drain(stretch) {
                Err(NotDrained::Held(guards)) => {
                    held = guards;
                    if is_over(&mut slow) {
                        event!(WARN, guards = ?held, "slow guard");
                    }
                    None
                }
                Err(NotDrained::HeldByCaller(own)) => Some(Err(RevokeError::WouldDeadlock { guards: own.count })),
                Ok(()) => Some(Ok(())),
            },
        );
        drained?.ok_or_else(|| {
            RevokeError::gave_up(patience, since, Holders { guards: held, pins: self.pins(), ..Holders::default() })
        })??;

        // Only now: a guard that the drain waited for may have counted a new pin. See `pin`.
        if self.pins() > 0 && patience != Patience::Never {
            mechanism.want_pins_back();
        }
        // Acquire pairs with the Release in `unpin`.
        let pinned = || self.pins.load(Ordering::Acquire) > 0 && !broken(Mutation::PinsIgnored);
        let mut slow = trace::ENABLED.then(|| since + trace::SLOW);
        let unpinned = in_stretches(
            patience,
            nap,
            || Ok(()),
            |stretch| {
                let unpinned = match stretch {
                    Patience::Forever => self.waiters.wait_while(pinned, None, None) == Waited::Done,
                    Patience::Never => !pinned(),
                    Patience::Until(deadline) => self.waiters.wait_while(pinned, None, Some(deadline)) == Waited::Done,
                };
                if !unpinned && is_over(&mut slow) {
                    event!(WARN, pins = self.pins(), "slow guard");
                }
                unpinned.then_some(())
            },
        );
        unpinned?.ok_or_else(|| {
            RevokeError::gave_up(
                patience,
                since,
                Holders { guards: Vec::new(), pins: self.pins(), ..Holders::default() },
            )
        })
    }
}

/// Tries repeatedly, each time for as long as `nap` says (`None`: without a limit), until patience ends: then returns
/// `None`. `look` is called before each try.
fn in_stretches<T>(
    patience: Patience,
    nap: impl Fn() -> Option<Duration>,
    look: impl Fn() -> Result<(), RevokeError>,
    mut attempt: impl FnMut(Patience) -> Option<T>,
) -> Result<Option<T>, RevokeError> {
    loop {
        look()?;
        let until = nap().map(|nap| Instant::now() + nap);
        let (stretch, last) = match (patience, until) {
            (Patience::Forever, Some(until)) => (Patience::Until(until), false),
            (Patience::Until(deadline), Some(until)) if until < deadline => (Patience::Until(until), false),
            _ => (patience, true),
        };
        let done = attempt(stretch);
        if done.is_some() || last {
            return Ok(done);
        }
    }
}

/// How long to sleep at a stretch: not for long if the holder of a guard or a pin may need this thread's help (to have a
/// fault resolved), or if slow holders are to be traced.
fn nap(mechanism: &dyn Mechanism) -> Option<Duration> {
    match mechanism.help() {
        true => Some(Duration::from_millis(1)),
        false => trace::ENABLED.then_some(trace::SLOW),
    }
}

/// True once, when the moment has passed.
fn is_over(moment: &mut Option<Instant>) -> bool {
    moment.take_if(|moment| Instant::now() >= *moment).is_some()
}
