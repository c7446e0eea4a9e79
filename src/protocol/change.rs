//! A change of state under way: the changer's steps from the announcement to the waking.

use super::{Mechanism, Protocol, State, Told};
use crate::protocol::error::{Holders, RevokeError};
use crate::protocol::gate::Phase;
use crate::sync::atomic::Ordering;
use crate::sync::wait::Patience;
use crate::sync::{Mutation, RwLock, RwLockWriteGuard, TryMutexGuard, broken, fence, inside};
use std::time::Instant;

/// A change of state under way, from the claim of the right to make it. It is [announced](Self::announce), then
/// [locked](Self::lock): the gate is then closed and the write side of the memory lock is held. Dropping it ends the
/// change, in whatever state it has reached.
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
    /// The subscribers have been told of a revocation.
    told: Option<Told>,
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
            told: None,
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

    /// Tells the subscribers that the memory goes away, then refuses new guards and pins, and waits for the old ones.
    /// Faults are still resolved, so several regions' changes are all announced before the first is [locked](Self::lock):
    /// the holder of a guard or a pin of one may access another.
    ///
    /// `goal` as for [`Protocol::claim`](super::Protocol).
    pub(super) fn announce(&mut self, goal: Option<State>, patience: Patience) -> Result<(), RevokeError> {
        if self.was == State::Enabled {
            let told = if goal.is_none() { Told::Undecided } else { Told::Revoked };
            self.told = Some(told);
            self.mechanism.before_revoke(told);
        }
        self.protocol.gate.shut().map_err(RevokeError::Barrier)?;
        if broken(Mutation::DrainUnderLock) {
            self.lock(patience)?;
        }
        // A disabled region has neither a guard nor a pin. An entry that is being refused is not waited for: its thread may
        // be in a signal handler that waits for the end of that state.
        if self.was == State::Enabled { self.protocol.drain(self.mechanism, patience, self.since) } else { Ok(()) }
    }

    /// Takes the write side of the memory lock: from here on no fault is resolved. Its readers hold it for a single access
    /// each and wait for no other thread.
    pub(super) fn lock(&mut self, patience: Patience) -> Result<(), RevokeError> {
        if self.memory.is_some() {
            return Ok(());
        }
        // Before the lock is taken or waited for: if a signal handler of this thread accesses a mapping, it must not fault,
        // since only this thread could resolve the fault.
        self.protocol.closed.store(true, Ordering::SeqCst);
        self.mechanism.close();
        // Release: partner of the Acquire in `try_read_to_answer`, through the lock's own word. A thread that fails to read
        // sees that the write side is wanted, and waits for the end of that.
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

    /// Revokes. On an error everything is as before, except with `State::Gone`: then the state is Gone, and the mappings
    /// that failed to refuse are left to `RegionShared::end`.
    fn disable(&mut self, to: State) -> Result<(), RevokeError> {
        let was = self.now;
        // The state first, then the refusal: a region that refuses is disabled.
        self.set(to);
        self.mechanism.refuse(to == State::Gone).inspect_err(|_| {
            // A mapping that cannot be restored either goes on refusing. The region is not revoked as a whole, so its state
            // is not Disabled: the next `disable()` must try again, and not find nothing to do.
            if to != State::Gone {
                let _ = self.mechanism.restore();
                self.set(was);
            }
        })
    }

    /// Gives back. On an error everything is as before.
    fn enable(&mut self) -> Result<(), RevokeError> {
        let restored = self.mechanism.restore();
        // Mappings that were given back before the failure are taken away again. If that fails too, the region is not
        // revoked as a whole, so its state is not Disabled.
        if restored.is_ok() || self.mechanism.refuse(false).is_err() {
            self.set(State::Enabled);
        }
        restored
    }

    /// Revokes or gives back as `goal` requires, or does nothing. On an error everything is as before.
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
                // A region that cannot be given back is revoked: it refuses already, and now its state says so.
                let _ = self.disable(State::Disabled);
            }),
            State::Disabled | State::Gone => Ok(()),
        }
    }

    /// True if anything was done; false if this is only the right to do it.
    fn is_begun(&self) -> bool {
        self.told.is_some() || self.published || self.memory.is_some() || self.protocol.phase() == Phase::Busy
    }

    /// Lets another thread change the state.
    fn end(&mut self) {
        // A handler that comes in between must not wait for this thread either.
        let _inside = inside::enter();
        self.protocol.change_together(None);
        self.protocol.changer.store(0, Ordering::Relaxed);
        drop(self.control.take());
    }

    /// Ends the change for every waiter. What is left is users' code, which may wait for those waiters: completing
    /// asynchronous faults, and telling subscribers that the memory is back. So a group publishes all of its members first.
    pub(super) fn publish(&mut self) {
        if !self.is_begun() || std::mem::replace(&mut self.published, true) {
            return;
        }
        // Each step makes other threads look again, so it comes after the changes that they have to see.
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
            match (self.now, self.told) {
                (State::Enabled, Some(_)) => self.mechanism.after_restore(),
                (State::Enabled, None) if self.was == State::Disabled => self.mechanism.after_restore(),
                (State::Disabled | State::Gone, Some(Told::Undecided)) => self.mechanism.stays_revoked(),
                _ => {}
            }
        }
        self.end();
    }
}
