//! A small number for every living thread: the position of its counters in every gate.
//!
//! Numbers are dense, and reused when a thread has ended, so that a scan over all of them is as long as the most threads
//! that the process had at once. The kernel says when a thread has ended: no destructor of a thread-local can, as others
//! run after it, and may enter a gate or end a guard.
//!
//! A number may come with guards that an earlier owner leaked. The drains count them, but they are not the new owner's. So
//! every thread has a generation too, and a gate's slot remembers the generation of its owner ([`GuardSlot::prepare`]).
//!
//! [`GuardSlot::prepare`]: super::slots::GuardSlot::prepare

use super::slots::SlotAt;

/// A thread's number and generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Me {
    /// The position of its counters, the same in all gates.
    pub(super) place: SlotAt,
    /// Unique: no two threads ever have the same one; 0 is no thread.
    pub(super) generation: u64,
}

impl Me {
    /// A thread that never entered a gate. Every gate has a slot at its position, and no slot has its generation.
    pub(super) const UNKNOWN: Self = Self { place: SlotAt::FIRST, generation: u64::MAX };

    /// False for [`UNKNOWN`](Self::UNKNOWN), and in a signal handler that interrupts the thread as it gets its number: the
    /// position may be half of it.
    #[inline(always)]
    pub(super) fn is_known(self) -> bool {
        self.generation != Self::UNKNOWN.generation
    }
}

/// The calling thread, or [`Me::UNKNOWN`]. One load, at any time of a thread's life.
#[inline(always)]
pub(super) fn current() -> Me {
    CURRENT.with(|current| current.get())
}

#[cfg(not(all(test, revocable_model)))]
mod real {
    use super::super::slots::Buckets;
    use super::{Me, SlotAt};
    use crate::sync::atomic::{AtomicI32, AtomicU64, Ordering, compiler_fence};
    use crate::sys::life::LifeLock;
    use crate::sys::thread::current_tid;
    use std::cell::Cell;

    thread_local! {
        // Without a destructor, so that it exists at any time of a thread's life.
        pub(in crate::protocol::gate) static CURRENT: Cell<Me> = const { Cell::new(Me::UNKNOWN) };
    }

    /// The thread that has a number.
    #[derive(Debug, Default)]
    struct Owner {
        /// Claimed by the thread until the kernel ends it. The next owner goes on counting where the last left off.
        alive: LifeLock,
        tid: AtomicI32,
        generation: AtomicU64,
    }

    /// Without a lock: threads that must not sleep use it too.
    static OWNERS: Buckets<Owner> = Buckets::new();

    static LAST_GENERATION: AtomicU64 = AtomicU64::new(0);

    /// Gives the calling thread a number, if it has none yet.
    #[cold]
    pub(in crate::protocol::gate) fn first_use() -> Me {
        let known = super::current();
        if known.is_known() {
            return known;
        }
        // Relaxed, here and below: a number that no other thread gets, and one for reports.
        let generation = LAST_GENERATION.fetch_add(1, Ordering::Relaxed) + 1;
        let tid = current_tid();
        let place =
            (0..).map(SlotAt::of).find(|place| OWNERS.get(*place).alive.claim()).expect("SlotAt::of panics first");
        let owner = OWNERS.get(place);
        // At once, and first: until it is stored, the last owner is taken to live.
        owner.generation.store(generation, Ordering::Relaxed);
        owner.tid.store(tid, Ordering::Relaxed);
        let me = Me { place, generation };
        publish(me);
        me
    }

    /// Tells the thread itself. Nothing but handlers of its signals reads it meanwhile.
    pub(super) fn publish(me: Me) {
        // The position first, which may take two stores: until it is whole, a handler finds a thread that is not known.
        CURRENT.set(Me { place: me.place, ..Me::UNKNOWN });
        compiler_fence(Ordering::SeqCst);
        CURRENT.set(me);
    }

    /// The thread of this generation, if it lives and has this number; else 0: the number may be another thread's by now, which has
    /// not used the gate yet.
    pub(in crate::protocol::gate) fn tid_of(place: SlotAt, generation: u64) -> i32 {
        let owner = OWNERS.get(place);
        // Relaxed, both: for reports.
        let gone = owner.alive.is_free() || owner.generation.load(Ordering::Relaxed) != generation;
        if gone { 0 } else { owner.tid.load(Ordering::Relaxed) }
    }
}

#[cfg(not(all(test, revocable_model)))]
use real::CURRENT;
#[cfg(not(all(test, revocable_model)))]
pub(super) use real::{first_use, tid_of};

/// In the model each thread chooses its number: giving numbers out is not checked.
#[cfg(all(test, revocable_model))]
mod model {
    use super::{Me, SlotAt};
    use std::cell::Cell;

    crate::sync::checker::thread_local! {
        pub(in crate::protocol::gate) static CURRENT: Cell<Me> = Cell::new(Me::UNKNOWN);
    }

    pub(in crate::protocol::gate) fn adopt(number: usize) {
        let me = Me { place: SlotAt::of(number), generation: number as u64 + 1 };
        CURRENT.with(|current| current.set(me));
        crate::sync::adopt(number);
    }

    pub(in crate::protocol::gate) fn first_use() -> Me {
        let me = super::current();
        assert!(me.is_known(), "this model thread has not adopted a number");
        me
    }

    pub(in crate::protocol::gate) fn tid_of(place: SlotAt, _generation: u64) -> i32 {
        i32::try_from(place.number()).unwrap_or(0)
    }
}

#[cfg(all(test, revocable_model))]
pub(super) use model::*;

#[cfg(all(test, not(revocable_model)))]
mod tests {
    use super::super::{Gate, Phase};
    use super::real::CURRENT;
    use super::{Me, SlotAt};

    /// In another bucket than the first, and further in it than the first is long.
    const NUMBER: usize = 16 + 20;

    /// A handler of a signal that comes while a thread gets its number asks what the thread holds.
    #[test]
    fn half_a_position_is_not_looked_at() {
        let gate = Gate::new(Phase::Open);
        drop(gate.enter());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                CURRENT.set(Me { place: SlotAt::half_of(NUMBER), ..Me::UNKNOWN });
                assert_eq!(gate.held_by_caller(), 0);
            });
        });
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    #[test]
    fn a_handler_finds_no_number_or_the_whole() {
        use core::sync::atomic::{AtomicU64, Ordering};
        use nix::libc::c_int;

        const GENERATION: u64 = u64::MAX - 1;
        static SEEN: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
        extern "C" fn look(_: c_int) {
            let me = super::current();
            let whole = me.place.number() == NUMBER && me.generation == GENERATION;
            SEEN[if whole { 2 } else { usize::from(me.is_known()) }].fetch_add(1, Ordering::Relaxed);
        }

        let publish = || super::real::publish(Me { place: SlotAt::of(NUMBER), generation: GENERATION });
        std::thread::spawn(move || super::super::stepped::stepped(look, publish)).join().unwrap();
        let [unknown, half, whole] = SEEN.each_ref().map(|seen| seen.load(Ordering::Relaxed));
        assert!(
            unknown > 0 && whole > 0 && half == 0,
            "{unknown} times unknown, {half} times half, {whole} times whole"
        );
    }
}
