//! The guards that a scan of a gate's slots finds: drains wait for them, errors and reports name their threads.

use super::slots::{GuardSlot, SlotAt};
use super::threads;
use crate::sync::atomic::Ordering;
use crate::sync::{Mutation, Mutex, broken};
use std::time::{Duration, Instant};

/// One thread's guards, as a drain or a report saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldGuard {
    /// The thread's id, as in `/proc/PID/task`; 0 if it ended and leaked its guards.
    pub tid: i32,
    /// How many guards it holds.
    pub count: u64,
    /// How long they have been seen held without any of them ending: the oldest is at least this old.
    pub held_for_at_least: Duration,
}

/// A slot whose counters differed.
pub(super) struct Held {
    place: SlotAt,
    left: u64,
    count: u64,
    /// How many of them are leaked: their owner has ended.
    leaked: u64,
    /// The generation of the owner of the others.
    owner: u64,
}

impl Held {
    /// One step of the scan.
    pub(super) fn look(place: SlotAt, slot: &GuardSlot) -> Option<Self> {
        let early = if broken(Mutation::ScanOrder) { slot.entered.load(Ordering::Acquire) } else { 0 };
        // Acquire pairs with the Release in `Gate::leave`.
        let left = slot.left.load(Ordering::Acquire);
        // Relaxed: the load of `left` stays before it; partner in `Gate::enter`, through the barriers.
        let entered = if broken(Mutation::ScanOrder) { early } else { slot.entered.load(Ordering::Relaxed) };
        let count = entered.wrapping_sub(left);
        (count != 0).then(|| Self { place, left, count, leaked: slot.leaked_of(count), owner: slot.owner() })
    }
}

/// The guards of a slot's owner, or those that its earlier owners leaked.
pub(super) struct Holder {
    pub(super) place: SlotAt,
    pub(super) leaked: bool,
    pub(super) guards: HeldGuard,
}

pub(super) fn guards(holders: Vec<Holder>) -> Vec<HeldGuard> {
    holders.into_iter().map(|holder| holder.guards).collect()
}

/// What the last scan of a gate found, by which guards get an age.
pub(super) struct Seen(Mutex<Vec<SeenHeld>>);

/// A slot with guards, its count of ended guards, and since when that count has been the same.
struct SeenHeld {
    place: SlotAt,
    left: u64,
    since: Instant,
}

impl Seen {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// The holders that a scan found, which began at `now`. Remembers them for the next one.
    pub(super) fn holders(&self, now: Instant, held: Vec<Held>) -> Vec<Holder> {
        let mut seen = self.0.lock();
        let before = std::mem::take(&mut *seen);
        let mut holders = Vec::with_capacity(held.len());
        for Held { place, left, count, leaked, owner } in held {
            let known = before.iter().find(|known| known.place == place && known.left == left);
            let since = known.map_or(now, |known| known.since);
            seen.push(SeenHeld { place, left, since });
            let held_for_at_least = now.saturating_duration_since(since);
            let guards = |tid, count| HeldGuard { tid, count, held_for_at_least };
            if count > leaked {
                let tid = threads::tid_of(place, owner);
                holders.push(Holder { place, leaked: false, guards: guards(tid, count - leaked) });
            }
            if leaked > 0 {
                holders.push(Holder { place, leaked: true, guards: guards(0, leaked) });
            }
        }
        holders
    }
}
