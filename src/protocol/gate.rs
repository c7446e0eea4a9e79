//! Guards that cost a nanosecond, and a revocation that waits for them.
//!
//! A guard keeps a region enabled while it lives. It is no read lock: a guard's holder may fault, and the fault needs the
//! memory lock's read side, which a waiting writer would deny. So revocation first closes this gate and drains it, while
//! faults are still being resolved, and takes the memory lock afterwards.
//!
//! Entering and leaving are one addition each, to counters that no other thread writes, and a barrier that costs
//! the CPU nothing; the revoking side pays for both ([`Barriers`]).
//!
//! # The race, in cases
//!
//! A thread announces its guard (`entered`), passes a light barrier L, then reads the phase. The closer sets the
//! phase to Busy, passes the heavy barrier H, then reads the counters. By the barriers' contract:
//! 1. Everything before L is visible after H: the closer counts the guard, and waits for it.
//! 2. Everything before H is visible after L: the thread reads Busy (or what came later), and is refused.
//!
//! A guard that ends counts itself out (`left`), passes a light barrier, then reads the phase:
//! 1. The count is visible after H: the scan does not wait for this guard.
//! 2. Busy is visible after L: the guard's end notifies the drainer, which scans again.
//!
//! A refused entry was announced too, and may have been counted, so it counts itself out in the same way.
//!
//! The scan reads `left` before `entered`. Counters only grow and `left` is never ahead, so if the two are equal,
//! they were equal when `left` was read: no guard was alive then, and by the cases above none came after. In the other
//! order a refused entry inside a guard would make up for the guard's missing exit.

use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::barrier::Barriers;
use crate::sync::wait::{Event, Patience, Waited};
use crate::sync::{Mutation, broken};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::time::Instant;
use std::{fmt, io};

mod held;
#[cfg(all(test, revocable_model))]
mod model;
mod slots;
#[cfg(all(test, target_arch = "x86_64", not(any(miri, revocable_model))))]
mod stepped;
mod tally;
#[cfg(all(test, not(revocable_model)))]
mod tests;
mod threads;

pub use held::HeldGuard;
use held::{Held, Holder, Seen, guards};
use slots::{Buckets, GuardSlot};
use tally::Tally;

/// What a gate lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Phase {
    /// Guards enter.
    Open = 0,
    /// Closing, or a change of state is in progress. The only phase in which a gate is drained.
    Busy = 1,
    /// Revoked; may come back.
    Disabled = 2,
    /// Revoked for good.
    Gone = 3,
}

impl Phase {
    const fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Open,
            1 => Self::Busy,
            2 => Self::Disabled,
            _ => Self::Gone,
        }
    }
}

/// The reason why a gate is not drained.
#[derive(Debug)]
pub(crate) enum NotDrained {
    /// Patience ended; these guards are in the way.
    Held(Vec<HeldGuard>),
    /// The caller itself holds these guards, so waiting would never end.
    HeldByCaller(HeldGuard),
}

/// Gives the model's running thread a number, from 0.
#[cfg(all(test, revocable_model))]
pub(crate) fn adopt(number: usize) {
    threads::adopt(number);
}

/// Lets guards in while it is open, and can be closed and drained.
pub(crate) struct Gate {
    phase: AtomicU32,
    barriers: Barriers,
    slots: Buckets<GuardSlot>,
    /// Accesses turned away while the gate was closed, without entering. No part of the protocol.
    turned_away: Tally,
    drained: Event,
    /// What earlier scans saw, for reports; not a part of the protocol.
    seen: Seen,
}

impl Gate {
    pub(crate) fn new(phase: Phase) -> Self {
        Self::with_barriers(phase, Barriers::best())
    }

    pub(crate) fn with_barriers(phase: Phase, barriers: Barriers) -> Self {
        Self {
            phase: AtomicU32::new(phase as u32),
            barriers,
            slots: Buckets::new(),
            turned_away: Tally::default(),
            drained: Event::new(),
            seen: Seen::new(),
        }
    }

    /// Enters, if the gate is open. Takes no lock and never sleeps (a thread's first entry may allocate); a thread may
    /// hold any number of guards.
    ///
    /// # Errors
    ///
    /// The phase, which was not Open.
    ///
    /// # Signal safety
    ///
    /// Not for signal handlers: one that interrupts its own thread's entry would make it lose a count.
    #[inline]
    pub(crate) fn enter(&self) -> Result<Guard<'_>, Phase> {
        let slot = self.own_slot();
        // Relaxed, here and in the store: *Owned*. The store's partner is the scan, through the barriers.
        let entered = slot.entered.load(Ordering::Relaxed);
        slot.entered.store(entered + 1, Ordering::Relaxed);
        self.barriers.light();
        // Acquire pairs with the Release in `set_phase`: a thread that finds the gate open finds everything in its place.
        let phase = self.phase.load(Ordering::Acquire);
        if phase == Phase::Open as u32 || broken(Mutation::Recheck) {
            Ok(Guard { gate: self, slot, on_this_thread: PhantomData })
        } else {
            self.not_open(slot, entered, phase)
        }
    }

    /// The calling thread's counters.
    #[inline(always)]
    fn own_slot(&self) -> &GuardSlot {
        let me = threads::current();
        let slot = self.slots.get(me.place);
        if slot.is_owned_by(me.generation) { slot } else { self.prepare_slot() }
    }

    #[cold]
    fn prepare_slot(&self) -> &GuardSlot {
        let me = threads::first_use();
        let slot = self.slots.get(me.place);
        slot.prepare(me.generation);
        slot
    }

    /// A thread that holds a guard also passes a gate that is closing: the drain waits for its first guard, so waiting for
    /// the drain would be a deadlock. No drain has ended meanwhile: the counters of this slot, which only this thread
    /// changes, differed all the time.
    #[cold]
    fn not_open<'a>(&'a self, slot: &'a GuardSlot, entered: u64, phase: u32) -> Result<Guard<'a>, Phase> {
        // Relaxed: *Owned*.
        let held = entered.wrapping_sub(slot.left.load(Ordering::Relaxed));
        if phase == Phase::Busy as u32 && held != slot.leaked_of(held) {
            return Ok(Guard { gate: self, slot, on_this_thread: PhantomData });
        }
        self.leave(slot, Mutation::RefusalNotify);
        Err(Phase::from_word(phase))
    }

    #[inline(always)]
    fn leave(&self, slot: &GuardSlot, silent: Mutation) {
        // Relaxed: *Owned*.
        let left = slot.left.load(Ordering::Relaxed);
        // Release pairs with the Acquire in `Held::look`: accesses under the guard come before the drainer's next steps,
        // and the scan's later load of `entered` sees no less than was announced before this.
        let release = if broken(Mutation::ExitRelease) { Ordering::Relaxed } else { Ordering::Release };
        slot.left.store(left + 1, release);
        self.barriers.light();
        // Relaxed: only decides whether to notify; its partner is the store in `shut`, through the barriers.
        if self.phase.load(Ordering::Relaxed) == Phase::Busy as u32 && !broken(silent) {
            self.notify();
        }
    }

    #[cold]
    fn notify(&self) {
        self.drained.notify_all();
    }

    /// Counts an access that looked at the phase and did not enter. Async-signal-safe: it touches no slot, for which a thread's
    /// first use may allocate.
    #[inline]
    pub(crate) fn turn_away(&self) {
        self.turned_away.count();
    }

    /// How often [`turn_away`](Self::turn_away) was called.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.sum()
    }

    /// What the gate lets through now.
    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        // Acquire pairs with the Release in `set_phase`.
        Phase::from_word(self.phase.load(Ordering::Acquire))
    }

    /// Sets the phase; the caller makes sure that no other thread does so at the same time.
    ///
    /// Not the way to close: it waits for no guard, whatever the phase.
    pub(crate) fn set_phase(&self, phase: Phase) {
        // Release pairs with the Acquire in `enter`.
        let release = if broken(Mutation::OpenRelease) { Ordering::Relaxed } else { Ordering::Release };
        self.phase.store(phase as u32, release);
    }

    /// Closes and drains, for the tests of this module.
    #[cfg(test)]
    pub(crate) fn close(&self, patience: Patience) -> Result<(), NotDrained> {
        self.shut().expect("the kernel keeps to what it granted");
        self.drain(patience)
    }

    /// Closes without waiting: once this is `Ok`, no new guard comes, and [`Gate::drain`] sees all that exist.
    ///
    /// # Errors
    ///
    /// As [`Barriers::heavy`]; the gate is closed, but no drain can be trusted.
    pub(crate) fn shut(&self) -> io::Result<()> {
        // Release, as in `set_phase`; its partners are the loads in `enter` and `leave`, through the barriers.
        self.phase.store(Phase::Busy as u32, Ordering::Release);
        self.barriers.heavy().map_err(|e| e.errno.into())
    }

    /// Waits until no guard of a gate that is shut is alive. One thread at a time.
    ///
    /// # Errors
    ///
    /// The guards in the way. Guards of the calling thread are reported at once, whatever the patience. An entry that is
    /// being refused at this very moment can look like a guard to a drain that never waits.
    pub(crate) fn drain(&self, patience: Patience) -> Result<(), NotDrained> {
        debug_assert_eq!(self.phase(), Phase::Busy, "the ends of guards notify nobody otherwise");
        let held = self.held();
        if held.is_empty() {
            return Ok(());
        }
        if self.held_by_caller() > 0 {
            let own = (threads::current().place, false);
            if let Some(holder) = held.iter().find(|holder| (holder.place, holder.leaked) == own) {
                return Err(NotDrained::HeldByCaller(holder.guards));
            }
        }
        let deadline = match patience {
            Patience::Never => return Err(NotDrained::Held(guards(held))),
            Patience::Forever => None,
            Patience::Until(deadline) => Some(deadline),
        };
        // No guard comes any more, so a thread that was once seen without one is done with. Not all threads have to be seen
        // without one at the same time, which refused entries could put off for long.
        let pending = RefCell::new(held.iter().map(|holder| holder.place).collect::<Vec<_>>());
        let still_held = || {
            let mut pending = pending.borrow_mut();
            pending.retain(|place| Held::look(*place, self.slots.get(*place)).is_some());
            !pending.is_empty()
        };
        match self.drained.wait_while(still_held, None, deadline) {
            Waited::Done => Ok(()),
            Waited::TimedOut | Waited::Cancelled | Waited::Reentrant | Waited::WouldDeadlock => {
                let pending = pending.into_inner();
                let held = self.held().into_iter().filter(|holder| pending.contains(&holder.place)).collect::<Vec<_>>();
                // The last of them may have ended between the two scans.
                if held.is_empty() { Ok(()) } else { Err(NotDrained::Held(guards(held))) }
            }
        }
    }

    /// How many guards the calling thread holds. Async-signal-safe: it does not need what a first use would allocate.
    pub(crate) fn held_by_caller(&self) -> u64 {
        let me = threads::current();
        if !me.is_known() {
            return 0;
        }
        let Some(slot) = self.slots.peek(me.place).filter(|slot| slot.is_owned_by(me.generation)) else { return 0 };
        // Relaxed: *Owned*.
        let count = slot.entered.load(Ordering::Relaxed).wrapping_sub(slot.left.load(Ordering::Relaxed));
        count - slot.leaked_of(count)
    }

    /// The threads that hold guards now. Only a hint while the gate is open.
    pub(crate) fn held_guards(&self) -> Vec<HeldGuard> {
        guards(self.held())
    }

    fn held(&self) -> Vec<Holder> {
        let now = Instant::now();
        self.seen.holders(now, self.held_now().collect())
    }

    /// The scan.
    fn held_now(&self) -> impl Iterator<Item = Held> {
        self.slots.each().filter_map(|(place, slot)| Held::look(place, slot))
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("phase", &self.phase()).field("barriers", &self.barriers).finish_non_exhaustive()
    }
}

/// Keeps its gate from being drained; for good if it is leaked. In a forked child a guard that another thread held at the
/// fork is leaked too.
#[must_use = "a guard that is dropped at once guards nothing"]
pub(crate) struct Guard<'gate> {
    gate: &'gate Gate,
    slot: &'gate GuardSlot,
    /// Not `Send`: the slot is the thread's own.
    on_this_thread: PhantomData<*mut ()>,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.leave(self.slot, Mutation::ExitNotify);
    }
}

impl fmt::Debug for Guard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}
