//! Changes of state, of one region or of several as one: the steps of the protocol for all members.
//!
//! Every change goes through here: a region's, a group's, a device's. First the right to change each member is claimed, in
//! one fixed order; then guards and pins are waited for; then the memory locks are taken; then the state changes; then all
//! members are published before any subscriber is told that memory is back. Steps before a failure are undone in reverse.

use super::{Change, Mechanism, Protocol, State, Together};
use crate::protocol::error::{Holders, RevokeError};
use crate::sync::wait::Patience;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// A member of a set of regions that change together.
pub(crate) trait Member: Clone + Send + Sync + 'static {
    fn protocol(&self) -> &Protocol;
    fn mechanism(&self) -> &dyn Mechanism;
    /// Called when its state has changed and all subscribers are told.
    fn changed(&self, was: State, now: State, took: Duration);
    /// Called when it was reset.
    fn was_reset(&self);
    /// What went wrong, since this was last asked, where subscribers made the memory reachable again.
    fn not_restored(&self) -> Option<RevokeError> {
        None
    }
}

/// A change failed, at this member. All are as before, except those that could not be put back.
#[derive(Debug)]
pub(crate) struct Failed<M> {
    pub(crate) member: M,
    pub(crate) source: RevokeError,
}

/// The value of a reset's callback, and whether all members were given back.
pub(crate) type WasReset<R, M> = (R, Result<(), Failed<M>>);

/// How long to wait for holders and for readers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitFor {
    /// For the holders of guards and pins, and for other changes.
    holders: Patience,
    /// For threads in the middle of a single access under the memory lock.
    readers: Patience,
}

impl WaitFor {
    /// Waits only for threads in the middle of a single access, for a moment. They hold nothing else and wait for no other
    /// thread, so there is no deadlock; without this wait, regions under load would be busy for ever.
    pub(crate) fn readers_only() -> Self {
        Self::readers_for(Duration::from_millis(100))
    }

    /// The same, for as long as this.
    pub(crate) fn readers_for(time: Duration) -> Self {
        Self { holders: Patience::Never, readers: Patience::Until(Instant::now() + time) }
    }

    /// Makes a change, again and again as long as the patience allows and another process holds it up. Nothing has changed
    /// then, and the next try begins by waiting for that process.
    pub(crate) fn again_if_held_up<R, M: Member>(
        &self,
        change: impl Fn() -> Result<R, Failed<M>>,
    ) -> Result<R, Failed<M>> {
        let since = Instant::now();
        loop {
            let again = match self.holders {
                Patience::Forever => true,
                Patience::Never => false,
                Patience::Until(deadline) => Instant::now() < deadline,
            };
            match change() {
                Err(failed) if failed.source.is_held_up() && again => {}
                Err(Failed { member, source }) if source.is_held_up() => {
                    let holders = Holders::of_peers(member.mechanism().peers());
                    return Err(Failed { member, source: RevokeError::gave_up(self.holders, since, holders) });
                }
                made => return made,
            }
        }
    }
}

impl From<Patience> for WaitFor {
    fn from(patience: Patience) -> Self {
        Self { holders: patience, readers: patience }
    }
}

/// Changes under way. Dropping this ends all of them, in whatever state each has reached.
pub(crate) struct Changes<'a, M: Member> {
    /// In the order in which they were begun; ended in reverse.
    begun: Vec<(&'a M, Change<'a>)>,
    since: Instant,
}

impl<'a, M: Member> Changes<'a, M> {
    /// Begins them all, or none. Afterwards no thread uses the memory under a guard or a pin or resolves a fault, and this
    /// thread alone may change the states. `goal` is the state that a member is to have, `None` if it stays or is not known
    /// yet. Members that have their state already are left untouched, and unchanged. Returns `None` if all have it, or if
    /// there are no members.
    ///
    /// The members are in the one order that all changes share; a change that waits does so in that order. Without waiting,
    /// no subscriber is told before every member looks free.
    pub(crate) fn begin(
        members: &'a [M],
        goal: impl Fn(&M) -> Option<State>,
        wait: impl Into<WaitFor>,
    ) -> Result<Option<Self>, Failed<M>> {
        let WaitFor { holders, readers } = wait.into();
        let mut changes = Self { begun: Vec::with_capacity(members.len()), since: Instant::now() };
        let together = together(members, true);
        for member in members {
            let goal = goal(member);
            let claimed = member.protocol().claim(member.mechanism(), goal, holders, together.as_ref());
            let Some(mut change) = claimed.map_err(|source| failed(member, source))? else { continue };
            // Before the next member is claimed: the holder of a guard of this one may be changing that one.
            if holders != Patience::Never && goal != Some(change.state()) {
                change.announce(goal, holders).map_err(|source| failed(member, source))?;
            }
            changes.begun.push((member, change));
        }
        let needed = |(member, change): &(&M, Change<'_>)| goal(*member) != Some(change.state());
        if !changes.begun.iter().any(needed) {
            return Ok(None);
        }
        for (member, change) in changes.begun.iter_mut().filter(|of| holders == Patience::Never && needed(of)) {
            change.announce(goal(*member), holders).map_err(|source| failed(*member, source))?;
        }
        for (member, change) in changes.begun.iter_mut().filter(|of| needed(of)) {
            change.lock(readers).map_err(|source| failed(*member, source))?;
        }
        Ok(Some(changes))
    }

    /// See [`Protocol::lock_out`].
    pub(crate) fn lock_out(members: &'a [M]) -> Result<Self, Failed<M>> {
        let mut changes = Self { begun: Vec::with_capacity(members.len()), since: Instant::now() };
        let together = together(members, false);
        for member in members {
            let locked = member.protocol().lock_out(member.mechanism(), together.as_ref());
            changes.begun.push((member, locked.map_err(|source| failed(member, source))?));
        }
        Ok(changes)
    }

    /// Brings all to one state, or leaves all as they are. True if there was anything to do.
    pub(crate) fn make(members: &'a [M], state: State, wait: impl Into<WaitFor>) -> Result<bool, Failed<M>> {
        let wait = wait.into();
        wait.again_if_held_up(|| match Self::begin(members, |_| Some(state), wait)? {
            Some(mut changes) => {
                changes.settle(|_| Some(state))?;
                changes.end().map(|()| true)
            }
            None => Ok(false),
        })
    }

    /// Runs `run` while nothing reaches the memory of any member and accesses to enabled members wait. Then each is given
    /// back, or brought to the state that `goal` names; the second part of the result says how that went. A panic in `run`
    /// passes on after that.
    pub(crate) fn reset<R>(
        members: &'a [M],
        wait: impl Into<WaitFor>,
        run: impl FnOnce() -> R,
        goal: impl Fn(&M) -> Option<State>,
    ) -> Result<WasReset<R, M>, Failed<M>> {
        let wait = wait.into();
        let held = wait.again_if_held_up(|| {
            let mut changes = Self::begin(members, |_| None, wait)?;
            changes.as_mut().map_or(Ok(()), Self::hold)?;
            Ok(changes)
        });
        let Some(mut changes) = held? else {
            // There are no members.
            return Ok((run(), Ok(())));
        };
        let done = catch_unwind(AssertUnwindSafe(run));
        let settled = changes.release().and_then(|()| changes.settle(goal));
        let settled = settled.and(changes.end());
        members.iter().for_each(M::was_reset);
        match done {
            Ok(value) => Ok((value, settled)),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Ends them all. All subscribers have been told then.
    ///
    /// # Errors
    /// The state has changed all the same: a subscriber failed that was told that the memory is back.
    pub(crate) fn end(self) -> Result<(), Failed<M>> {
        let members: Vec<M> = self.begun.iter().map(|(member, _)| (*member).clone()).collect();
        // Of a change that was taken back.
        members.iter().for_each(|member| drop(member.not_restored()));
        drop(self);
        let mut all = members.iter().map(|member| member.not_restored().map_or(Ok(()), |e| Err(failed(member, e))));
        all.find(Result::is_err).unwrap_or(Ok(()))
    }

    /// Makes every enabled member unreachable, or none.
    fn hold(&mut self) -> Result<(), Failed<M>> {
        for at in 0..self.begun.len() {
            let (member, change) = &mut self.begun[at];
            if let Err(source) = change.hold() {
                let failed = failed(*member, source);
                for (_, held) in self.begun[..at].iter_mut().rev() {
                    // A member that cannot be given back is revoked, and its state says so.
                    let _ = held.release();
                }
                return Err(failed);
            }
        }
        Ok(())
    }

    /// Ends a [`hold`](Self::hold), in reverse; goes through all members, then returns the first error.
    fn release(&mut self) -> Result<(), Failed<M>> {
        let mut first = Ok(());
        for (member, change) in self.begun.iter_mut().rev() {
            let released = change.release().map_err(|source| failed(*member, source));
            first = first.and(released);
        }
        first
    }

    /// Brings each to the state that `goal` names for it, or all back to the states that they had.
    pub(crate) fn settle(&mut self, goal: impl Fn(&M) -> Option<State>) -> Result<(), Failed<M>> {
        let was: Vec<State> = self.begun.iter().map(|(_, change)| change.state()).collect();
        for at in 0..self.begun.len() {
            let (member, change) = &mut self.begun[at];
            if let Err(source) = goal(*member).map_or(Ok(()), |goal| change.become_state(goal)) {
                let failed = failed(*member, source);
                for ((_, done), was) in self.begun[..at].iter_mut().zip(&was).rev() {
                    // A member that cannot go back stays as it is: revoked if it cannot be given back, enabled if it cannot
                    // be revoked again.
                    let _ = done.become_state(*was);
                }
                return Err(failed);
            }
        }
        Ok(())
    }
}

impl<M: Member> Drop for Changes<'_, M> {
    fn drop(&mut self) {
        // A subscriber that is told that the memory is back, or a waker, may wait for a thread that waits for another
        // member.
        self.begun.iter_mut().rev().for_each(|(_, change)| change.publish());
        let mut changed = Vec::with_capacity(self.begun.len());
        while let Some((member, change)) = self.begun.pop() {
            changed.push((member, change.was(), change.state()));
        }
        let took = self.since.elapsed();
        for (member, was, now) in changed.into_iter().filter(|(_, was, now)| was != now) {
            member.changed(was, now, took);
        }
    }
}

/// True if the members' changes wait for the calling thread: it holds a guard of one (if guards are waited for), or is in
/// the middle of a change of one.
fn together<M: Member>(members: &[M], guards: bool) -> Option<Together> {
    // A single member has its own checks for that.
    (members.len() > 1).then(|| -> Together {
        let members = members.to_vec();
        std::sync::Arc::new(move || {
            members
                .iter()
                .map(M::protocol)
                .any(|protocol| protocol.is_changed_by_caller() || guards && protocol.gate.held_by_caller() > 0)
        })
    })
}

fn failed<M: Member>(member: &M, source: RevokeError) -> Failed<M> {
    Failed { member: member.clone(), source }
}
