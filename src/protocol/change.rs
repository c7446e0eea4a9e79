//! A change of state under way: what the changer does between the locking and the waking.

use super::{Mechanism, Protocol, State};
use crate::protocol::error::{Holders, RevokeError};
use crate::protocol::gate::Phase;
use crate::sync::atomic::Ordering;
use crate::sync::wait::Patience;
use crate::sync::{Mutation, RwLock, RwLockWriteGuard, TryMutexGuard, broken, fence, inside};
use std::time::Instant;

/// A change of state under way: the gate is closed and the write side of the memory lock is held. Dropping it
/// ends the change, in whatever state it has come to.
pub(crate) struct Change<'a> {
    protocol: &'a Protocol,
    mechanism: &'a dyn Mechanism,
    /// `None` only at the end of its drop.
    control: Option<TryMutexGuard<'a>>,
    /// When its changer began to wait.
    since: Instant,
    memory: Option<RwLockWriteGuard<'a, State>>,
    was: State,
    now: State,
    /// Those to be told before a revocation have been.
    told: bool,
    published: bool,
}

impl<'a> Change<'a> {
    pub(super) fn new(
        protocol: &'a Protocol,
        mechanism: &'a dyn Mechanism,
        control: TryMutexGuard<'a>,
        was: State,
        since: Instant,
    ) -> Self {
        Self {
            protocol,
            mechanism,
            control: Some(control),
            since,
            memory: None,
            was,
            now: was,
            told: false,
            published: false,
        }
    }

    pub(super) fn state(&self) -> State {
        self.now
    }

    /// What the state was before the change.
    pub(super) fn was(&self) -> State {
        self.was
    }

    /// Tells those who keep the memory reachable by other ways that it goes away, then lets no guard and no pin come, and waits
    /// for those that are there. Faults are still resolved, so several regions' changes are all announced before the first is
    /// [locked](Self::lock): who holds a guard or a pin of one may access another.
    pub(super) fn announce(&mut self, patience: Patience) -> Result<(), RevokeError> {
        if self.was == State::Enabled {
            self.told = true;
            self.mechanism.before_revoke();
        }
        self.protocol.gate.shut().map_err(RevokeError::Barrier)?;
        if broken(Mutation::DrainUnderLock) {
            self.lock(patience)?;
        }
        // While disabled there is neither a guard nor a pin. An entry that is being refused is not waited for: its thread may be in
        // a signal handler that waits for the end of that state.
        if self.was == State::Enabled { self.protocol.drain(self.mechanism, patience, self.since) } else { Ok(()) }
    }

    /// Takes the write side of the memory lock: from here on no fault is resolved. Its readers hold it for a single access each and
    /// wait for nobody.
    pub(super) fn lock(&mut self, patience: Patience) -> Result<(), RevokeError> {
        if self.memory.is_some() {
            return Ok(());
        }
        // Before the lock is taken or waited for: a signal handler of this thread that accesses a mapping must not fault into
        // what only this thread can resolve.
        self.protocol.closed.store(true, Ordering::SeqCst);
        self.mechanism.close();
        // Release: partner of the Acquire in `try_read_to_answer`, through the lock's own word. Who fails to read sees that the
        // write side is wanted, and waits for the end of that.
        if !broken(Mutation::TryFence) {
            fence(Ordering::Release);
        }
        let memory: &'a RwLock<State> = &self.protocol.memory;
        let guard = match patience {
            Patience::Forever => Some(memory.write()),
            Patience::Never => memory.try_write(),
            Patience::Until(deadline) => memory.try_write_until(deadline),
        };
        self.memory = Some(guard.ok_or_else(|| RevokeError::gave_up(patience, self.since, Holders::default()))?);
        Ok(())
    }

    fn set(&mut self, state: State) {
        self.now = state;
        if let (Some(memory), false) = (&mut self.memory, broken(Mutation::StateUnset)) {
            **memory = state;
        }
    }

    /// Revokes. On an error everything is as before, unless it was to be for good: then it is, and what has failed to refuse
    /// is left to whoever ends the region (`RegionShared::end`).
    fn disable(&mut self, to: State) -> Result<(), RevokeError> {
        let was = self.now;
        // First the state, then the refusal: a region that refuses is disabled.
        self.set(to);
        self.mechanism.refuse(to == State::Gone).inspect_err(|_| {
            // What does not come back either goes on refusing. The region is not revoked as a whole, so it is not
            // called disabled: the next `disable()` must try again, and not find that there is nothing to do.
            if to != State::Gone {
                let _ = self.mechanism.restore();
                self.set(was);
            }
        })
    }

    /// Gives back. On an error everything is as before.
    fn enable(&mut self) -> Result<(), RevokeError> {
        let restored = self.mechanism.restore();
        // What was given back before the failure is taken away again. If that fails too, the region is not revoked as a
        // whole, and so not called disabled.
        if restored.is_ok() || self.mechanism.refuse(false).is_err() {
            self.set(State::Enabled);
        }
        restored
    }

    /// Revokes or gives back, whichever `goal` asks for, if anything. On an error everything is as before.
    pub(super) fn become_state(&mut self, goal: State) -> Result<(), RevokeError> {
        match (self.now, goal) {
            (now, goal) if now == goal => Ok(()),
            (_, State::Enabled) => self.enable(),
            (_, State::Disabled) => {
                // As in `Protocol::claim`, which may not have seen the goal.
                crate::raw::signal::install()?;
                self.disable(goal)
            }
            (_, State::Gone) => self.disable(goal),
        }
    }

    /// Makes the memory unreachable while the state stays enabled: accesses wait for the end of the change. On an
    /// error everything is as before.
    pub(super) fn hold(&mut self) -> Result<(), RevokeError> {
        if self.now != State::Enabled {
            return Ok(());
        }
        self.mechanism.hold().inspect_err(|_| {
            if self.mechanism.restore().is_err() {
                let _ = self.disable(State::Disabled);
            }
        })
    }

    /// Ends a [`hold`](Self::hold).
    pub(super) fn release(&mut self) -> Result<(), RevokeError> {
        match self.now {
            State::Enabled => self.mechanism.restore().inspect_err(|_| {
                // What cannot be given back is revoked: it refuses already, and now it says so.
                let _ = self.disable(State::Disabled);
            }),
            State::Disabled | State::Gone => Ok(()),
        }
    }

    /// Was anything done, or is this only the right to do it?
    fn is_begun(&self) -> bool {
        self.told || self.published || self.memory.is_some() || self.protocol.phase() == Phase::Busy
    }

    /// Lets another thread change the state.
    fn end(&mut self) {
        // A handler that comes in between must not wait for this thread either.
        let _inside = inside::enter();
        self.protocol.change_together(None);
        self.protocol.changer.store(0, Ordering::Relaxed);
        drop(self.control.take());
    }

    /// Ends the change for everyone who waits. What is left, completing asynchronous faults and telling that the memory is back,
    /// is users' code, and may wait for them: a group publishes all of its members before that.
    pub(super) fn publish(&mut self) {
        if !self.is_begun() || std::mem::replace(&mut self.published, true) {
            return;
        }
        // Each step lets somebody look again, so each comes after what they are to see.
        if broken(Mutation::WakeFirst) {
            self.mechanism.wake();
        }
        drop(self.memory.take());
        self.protocol.epoch.fetch_add(1, Ordering::Release);
        self.protocol.enabled.store(self.now == State::Enabled, Ordering::Relaxed);
        if broken(Mutation::NotifyFirst) {
            self.protocol.waiters.notify_all();
        }
        self.protocol.closed.store(false, Ordering::SeqCst);
        if self.now == State::Enabled {
            self.mechanism.open();
        }
        self.protocol.gate.set_phase(self.now.phase());
        if !broken(Mutation::NotifyFirst) {
            self.protocol.waiters.notify_all();
        }
        if !broken(Mutation::WakeFirst) {
            self.mechanism.wake();
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.is_begun() {
            self.publish();
            self.mechanism.complete();
            if self.now == State::Enabled && (self.told || self.was == State::Disabled) {
                self.mechanism.after_restore();
            }
        }
        self.end();
    }
}
