//! Reset groups: regions that are revoked together or not at all, as a bus reset revokes every function on the bus.
//!
//! Every member's change is begun, in one fixed order and by trying only, before the first member is touched; a member
//! that somebody else has, or that is guarded or pinned, makes the whole group [`Busy`](GroupError::is_busy), and what
//! was begun is undone in reverse. So two groups that overlap never wait for each other (`vfio_pci_dev_set_hot_reset`
//! does the same with `down_write_trylock`, for the same reason).

use crate::protocol::error::RevokeError;
use crate::region::owner::OwnerView;
use crate::protocol::{Change, State, Together};
use crate::region::{Region, RegionShared};
use crate::stats::count;
use crate::sync::wait::Patience;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a group, or a region's drop, waits for those who are in the middle of a single access to a member. They hold
/// nothing else and wait for nobody, so this is no deadlock; without it a group under load would be busy for ever.
pub(crate) const READERS: Duration = Duration::from_millis(100);

/// A change of a group's state failed. Every member is as before, but for those whose way back failed too: which state that
/// leaves them in, the methods say.
#[derive(Debug, thiserror::Error)]
#[error("member {member} of the group: {source}")]
pub struct GroupError {
    /// The name of the region that stood in the way.
    pub member: String,
    /// Why.
    pub source: RevokeError,
}

impl GroupError {
    /// Would trying again later make sense? Somebody else changes the state of a member, or holds a guard or a pin.
    pub fn is_busy(&self) -> bool {
        matches!(self.source, RevokeError::Busy(_) | RevokeError::TimedOut { .. })
    }
}

/// Regions that are revoked together or not at all.
///
/// A region may be in any number of groups. The group keeps its members' memory, but not their regions: one that was
/// dropped makes the group fail with [`RevokeError::Gone`].
#[derive(Clone)]
pub struct ResetGroup {
    /// In the one order in which everybody takes them, each once.
    members: Vec<Arc<RegionShared>>,
}

impl ResetGroup {
    /// A group of these regions.
    pub fn new<'a>(regions: impl IntoIterator<Item = &'a Region>) -> Self {
        let mut members: Vec<_> = regions.into_iter().map(|region| Arc::clone(&region.shared)).collect();
        in_order(&mut members);
        Self { members }
    }

    /// How many regions.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Has it no member?
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Runs `reset` while nothing reaches the memory of any member through any mapping; accesses to enabled members wait
    /// for its end, disabled members stay disabled. It gets the members' own views, in the group's order. As for
    /// [`Region::reset`] it must not change a member's state; a panic in it passes on after the mappings are back.
    ///
    /// # Blocking
    /// For single accesses that others are in the middle of, 100 ms at most; else not at all.
    ///
    /// # Errors
    /// Busy: nothing was reset. From giving memory back: that member is disabled, the others are as before.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_reset<R>(&self, reset: impl FnOnce(&[&OwnerView]) -> R) -> Result<R, GroupError> {
        let mut changes = Changes::begin(&self.members, Patience::Never)?;
        changes.hold()?;
        let views: Vec<_> = self.members.iter().map(|member| &member.owner).collect();
        let done = catch_unwind(AssertUnwindSafe(|| reset(&views)));
        let released = changes.release();
        drop(changes);
        self.members.iter().for_each(|member| count(&member.counters.resets));
        match done {
            Ok(value) => released.map(|()| value),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Revokes every member, or none.
    ///
    /// # Blocking
    /// As [`try_reset`](Self::try_reset).
    ///
    /// # Errors
    /// Every member is as before; one whose memory cannot be given back stays disabled.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_disable(&self) -> Result<(), GroupError> {
        Changes::begin(&self.members, Patience::Never)?.settle(|_| State::Disabled)
    }

    /// Gives every member back, or none.
    ///
    /// # Blocking
    /// As [`try_reset`](Self::try_reset).
    ///
    /// # Errors
    /// Every member is as before; one that cannot be revoked again stays enabled.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_enable(&self) -> Result<(), GroupError> {
        Changes::begin(&self.members, Patience::Never)?.settle(|_| State::Enabled)
    }
}

impl fmt::Debug for ResetGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.name)).finish()
    }
}

/// Sorts members into the one order in which everybody takes them, and drops duplicates.
pub(crate) fn in_order(members: &mut Vec<Arc<RegionShared>>) {
    members.sort_by_key(|member| Arc::as_ptr(member).addr());
    members.dedup_by(|a, b| Arc::ptr_eq(a, b));
}

/// Changes of several regions under way; the protocol of one ([`crate::protocol`]), step by step for all of them.
pub(crate) struct Changes<'a> {
    /// In the order in which they were begun; dropped in reverse.
    begun: Vec<(&'a RegionShared, Change<'a>)>,
}

impl<'a> Changes<'a> {
    /// Begins them all, or none. `members` are [in order](in_order): whoever waits (`Forever`) waits in that order.
    ///
    /// If nothing is waited for, no member is told before all of them look as if they could be had.
    pub(crate) fn begin(members: &'a [Arc<RegionShared>], patience: Patience) -> Result<Self, GroupError> {
        let mut changes = Self { begun: Vec::with_capacity(members.len()) };
        let together = together(members, true);
        for member in members {
            let change = member.protocol.claim(&**member, None, patience, together.as_ref());
            // `None` answers a goal that is reached already; there was no goal.
            let change = change.map_err(|source| failed(member, source))?;
            changes.begun.extend(change.map(|change| (&**member, change)));
            if patience != Patience::Never {
                // Before the next is claimed: the holder of a guard of this one may change that one meanwhile.
                changes.announce_last(patience)?;
            }
        }
        if patience == Patience::Never {
            for (member, change) in &mut changes.begun {
                change.announce(patience).map_err(|source| failed(member, source))?;
            }
        }
        let readers = match patience {
            Patience::Never => Patience::Until(Instant::now() + READERS),
            other => other,
        };
        for (member, change) in &mut changes.begun {
            change.lock(readers).map_err(|source| failed(member, source))?;
        }
        Ok(changes)
    }

    fn announce_last(&mut self, patience: Patience) -> Result<(), GroupError> {
        let Some((member, change)) = self.begun.last_mut() else { return Ok(()) };
        change.announce(patience).map_err(|source| failed(member, source))
    }

    /// As [`Protocol::begin_privileged`](crate::protocol::Protocol::begin_privileged), for all of them.
    pub(crate) fn begin_privileged(members: &'a [Arc<RegionShared>]) -> Result<Self, GroupError> {
        let mut changes = Self { begun: Vec::with_capacity(members.len()) };
        let together = together(members, false);
        for member in members {
            let change = member.protocol.begin_privileged(&**member, together.as_ref());
            changes.begun.push((&**member, change.map_err(|source| failed(member, source))?));
        }
        Ok(changes)
    }

    /// Makes every enabled member unreachable, or none.
    pub(crate) fn hold(&mut self) -> Result<(), GroupError> {
        for at in 0..self.begun.len() {
            let (member, change) = &mut self.begun[at];
            if let Err(source) = change.hold() {
                let error = failed(member, source);
                for (_, held) in self.begun[..at].iter_mut().rev() {
                    // What cannot be given back is revoked, and says so itself.
                    let _ = held.release();
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends a [`hold`](Self::hold), in reverse; answers the first error, after having gone through all of them.
    pub(crate) fn release(&mut self) -> Result<(), GroupError> {
        let mut first = Ok(());
        for (member, change) in self.begun.iter_mut().rev() {
            let released = change.release().map_err(|source| failed(member, source));
            first = first.and(released);
        }
        first
    }

    /// Brings every member to the state that `goal` names for it, or all back to where they were.
    pub(crate) fn settle(&mut self, goal: impl Fn(&RegionShared) -> State) -> Result<(), GroupError> {
        let was: Vec<State> = self.begun.iter().map(|(_, change)| change.state()).collect();
        for at in 0..self.begun.len() {
            let (member, change) = &mut self.begun[at];
            if let Err(source) = change.become_state(goal(member)) {
                let error = failed(member, source);
                for ((_, done), was) in self.begun[..at].iter_mut().zip(&was).rev() {
                    // One that cannot go back stays as it is: revoked if it cannot be given back, enabled if it cannot be
                    // revoked again.
                    let _ = done.become_state(*was);
                }
                return Err(error);
            }
        }
        for ((member, change), was) in self.begun.iter().zip(was) {
            match (was, change.state()) {
                (State::Disabled, State::Enabled) => count(&member.counters.enables),
                (State::Enabled, State::Disabled) => count(&member.counters.disables),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Changes<'_> {
    fn drop(&mut self) {
        // Whoever is told that the memory is back, and a waker just so, may wait for one who waits for another member.
        self.begun.iter_mut().rev().for_each(|(_, change)| change.publish());
        while self.begun.pop().is_some() {}
    }
}

/// What the members' changes wait for, as the calling thread sees it: it holds a guard of one (if guards are waited for), or
/// is in the middle of a change of one.
fn together(members: &[Arc<RegionShared>], guards: bool) -> Option<Together> {
    // A region alone sees for itself.
    (members.len() > 1).then(|| -> Together {
        let members: Vec<Weak<RegionShared>> = members.iter().map(Arc::downgrade).collect();
        Arc::new(move || {
            members.iter().filter_map(Weak::upgrade).any(|member| {
                let protocol = &member.protocol;
                protocol.is_changed_by_caller() || guards && protocol.gate.held_by_caller() > 0
            })
        })
    })
}

fn failed(member: &RegionShared, source: RevokeError) -> GroupError {
    GroupError { member: member.name.clone(), source }
}
