//! Changes of state, of one region or of several as one: the steps of the protocol, for all of them.
//!
//! Every change goes through here: a region's, a group's, a device's. First the right to change each member is claimed, in one
//! fixed order; then guards and pins are waited for; then the memory locks are taken; then the state changes; then all are
//! published before the first is told that its memory is back. What fails is undone in reverse.

use super::{Change, Mechanism, Protocol, State, Together};
use crate::protocol::error::RevokeError;
use crate::sync::wait::Patience;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// One of those that change together.
pub(crate) trait Member: Clone + Send + Sync + 'static {
    fn protocol(&self) -> &Protocol;
    fn mechanism(&self) -> &dyn Mechanism;
    /// Its state has changed, and everyone is told.
    fn changed(&self, was: State, now: State, took: Duration);
    /// It was reset.
    fn was_reset(&self);
}

/// A change failed, for this member. All are as before, but for those whose way back failed too.
#[derive(Debug)]
pub(crate) struct Failed<M> {
    pub(crate) member: M,
    pub(crate) source: RevokeError,
}

/// What a reset's callback answered, and whether all came back.
pub(crate) type WasReset<R, M> = (R, Result<(), Failed<M>>);

/// How long to wait, for whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitFor {
    /// Those who hold guards and pins, and other changes.
    holders: Patience,
    /// Those who are in the middle of a single access under the memory lock.
    readers: Patience,
}

impl WaitFor {
    /// Only those in the middle of a single access, for a moment. They hold nothing else and wait for nobody, so this is no
    /// deadlock; without it regions under load would be busy for ever.
    pub(crate) fn readers_only() -> Self {
        const READERS: Duration = Duration::from_millis(100);
        Self { holders: Patience::Never, readers: Patience::Until(Instant::now() + READERS) }
    }
}

impl From<Patience> for WaitFor {
    fn from(patience: Patience) -> Self {
        Self { holders: patience, readers: patience }
    }
}

/// Changes under way. Dropping them ends all, in whatever state each has come to.
pub(crate) struct Changes<'a, M: Member> {
    /// In the order in which they were begun; ended in reverse.
    begun: Vec<(&'a M, Change<'a>)>,
    since: Instant,
}

impl<'a, M: Member> Changes<'a, M> {
    /// Begins them all, or none: afterwards nobody uses the memory under a guard or a pin, nobody resolves a fault, and this thread
    /// alone may change the states. `goal`: what a member is to become, `None` if it is to stay, or not known yet. `None`: all are what they
    /// are to become. Those that are stay untouched, and unchanged.
    ///
    /// The members are in the one order in which everybody takes them; who waits, waits in that order. If nothing is waited for,
    /// no member is told before all of them look as if they could be had.
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
            // Before the next is claimed: the holder of a guard of this one may change that one meanwhile.
            if holders != Patience::Never && goal != Some(change.state()) {
                change.announce(holders).map_err(|source| failed(member, source))?;
            }
            changes.begun.push((member, change));
        }
        let needed = |(member, change): &(&M, Change<'_>)| goal(*member) != Some(change.state());
        if !changes.begun.iter().any(needed) {
            return Ok(None);
        }
        for (member, change) in changes.begun.iter_mut().filter(|of| holders == Patience::Never && needed(of)) {
            change.announce(holders).map_err(|source| failed(*member, source))?;
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

    /// Brings all to one state, or leaves them as they are. Says whether there was anything to do.
    pub(crate) fn make(members: &'a [M], state: State, wait: impl Into<WaitFor>) -> Result<bool, Failed<M>> {
        match Self::begin(members, |_| Some(state), wait)? {
            Some(mut changes) => changes.settle(|_| Some(state)).map(|()| true),
            None => Ok(false),
        }
    }

    /// Runs `run` while nothing reaches the memory of any member and accesses to enabled ones wait. Then each is given back, or
    /// becomes what `goal` names for it: how that went comes second. A panic in `run` passes on after that.
    pub(crate) fn reset<R>(
        members: &'a [M],
        wait: impl Into<WaitFor>,
        run: impl FnOnce() -> R,
        goal: impl Fn(&M) -> Option<State>,
    ) -> Result<WasReset<R, M>, Failed<M>> {
        let Some(mut changes) = Self::begin(members, |_| None, wait)? else {
            // No members.
            return Ok((run(), Ok(())));
        };
        changes.hold()?;
        let done = catch_unwind(AssertUnwindSafe(run));
        let settled = changes.release().and_then(|()| changes.settle(goal));
        drop(changes);
        members.iter().for_each(M::was_reset);
        match done {
            Ok(value) => Ok((value, settled)),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Makes every enabled member unreachable, or none.
    fn hold(&mut self) -> Result<(), Failed<M>> {
        for at in 0..self.begun.len() {
            let (member, change) = &mut self.begun[at];
            if let Err(source) = change.hold() {
                let failed = failed(*member, source);
                for (_, held) in self.begun[..at].iter_mut().rev() {
                    // What cannot be given back is revoked, and says so itself.
                    let _ = held.release();
                }
                return Err(failed);
            }
        }
        Ok(())
    }

    /// Ends a [`hold`](Self::hold), in reverse; answers the first error, after having gone through all of them.
    fn release(&mut self) -> Result<(), Failed<M>> {
        let mut first = Ok(());
        for (member, change) in self.begun.iter_mut().rev() {
            let released = change.release().map_err(|source| failed(*member, source));
            first = first.and(released);
        }
        first
    }

    /// Brings each to the state that `goal` names for it, or all back to where they were.
    pub(crate) fn settle(&mut self, goal: impl Fn(&M) -> Option<State>) -> Result<(), Failed<M>> {
        let was: Vec<State> = self.begun.iter().map(|(_, change)| change.state()).collect();
        for at in 0..self.begun.len() {
            let (member, change) = &mut self.begun[at];
            if let Err(source) = goal(*member).map_or(Ok(()), |goal| change.become_state(goal)) {
                let failed = failed(*member, source);
                for ((_, done), was) in self.begun[..at].iter_mut().zip(&was).rev() {
                    // One that cannot go back stays as it is: revoked if it cannot be given back, enabled if it cannot be
                    // revoked again.
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
        // Whoever is told that the memory is back, and a waker just so, may wait for one who waits for another member.
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

/// What the members' changes wait for, as the calling thread sees it: it holds a guard of one (if guards are waited for), or
/// is in the middle of a change of one.
fn together<M: Member>(members: &[M], guards: bool) -> Option<Together> {
    // One alone sees for itself.
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
