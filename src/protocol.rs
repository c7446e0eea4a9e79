//! The protocol: how a region's state changes, and which threads may rely on it meanwhile.
//!
//! ```text
//!  changer                                  other threads
//!  -------                                  -------------
//!  control     one change at a time
//!  before_revoke()                          (memslots, IOMMUs)
//!  gate: Busy  no new guards and pins       enter: sees Busy, waits or retries as its flags say
//!  drain       the old ones end             faults are still resolved: a guard's holder may fault
//!  memory lock, write side                  resolvers: try-read fails -> wait or retry
//!  state := Disabled                        from here on refusals are correct
//!  refuse()    zap, detach or replace       faults find the old mapping or the refusal
//!  unlock
//!  gate: Disabled                           enter: refused
//!  notify, wake                             every waiter looks again
//! ```
//!
//! Enabling is the same with `restore()`, and `after_restore()` at the end. A reset holds (`hold()`) instead of refusing,
//! runs its callback, and restores. If anything fails on the way, [`Change`]'s drop walks back.
//!
//! # Threads that would wait for themselves
//!
//! A callback of a change, or a signal handler that interrupts the changer, must not wait for the change. Nor must a
//! handler that interrupts a thread which holds any lock of the crate, or is about to take it: the changer may wait for
//! that lock. Both cases are known without a lock. [`Protocol::changer`] names the changer from before the gate is shut
//! until all are told. A thread counts as inside ([`crate::sync::inside`]) from before it takes `control` until it is
//! named; from before its name is removed until `control` is free; and while it has any other lock or the read side. So
//! between any two instructions of a change one of the two holds, and [`wait_while`](Protocol::wait_while), through which
//! every wait for a region goes, refuses.
//!
//! That thread's accesses must not wait in a page fault either. So mappings are closed (`Mechanism::close`), which leads
//! accesses here, before the write side is taken, and opened after it was released.
//!
//! Lock order: control, then the memory lock, then the region's file, then the list of mappings, then a view's `Standing`,
//! then (in the kernel) mmap_lock. No thread that holds either side of the memory lock touches anything that can fault into
//! a userfaultfd.

use crate::protocol::error::RevokeError;
use crate::protocol::gate::{Gate, Phase};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::memory_lock::FutexRwLock;
use crate::sync::wait::{CancelToken, Event, Patience, Waited};
use crate::sync::{Mutation, RwLock, RwLockReadGuard, TryMutex, broken, fence, inside};
use crate::sys::identity::Identity;
use crate::users::Calling;
use std::cell::Cell;
use std::time::Instant;

pub(crate) mod async_fault;
pub(crate) mod caller;
mod change;
mod changes;
mod claim;
pub(crate) mod error;
pub mod fault;
pub(crate) mod gate;
#[cfg(all(test, revocable_model))]
mod model;
pub(crate) mod policy;

pub(crate) use change::Change;
pub(crate) use changes::{Changes, Failed, Member, WaitFor};

/// The mechanism that the protocol drives. The real one makes system calls; the model's is a fake kernel.
pub(crate) trait Mechanism {
    /// Tells the subscribers, which keep the memory reachable by other ways (memslots, IOMMUs), that it goes away.
    fn before_revoke(&self, told: Told);
    /// Tells the subscribers that were told [`Told::Undecided`] that it does not come back with the end of the change.
    fn stays_revoked(&self);
    /// Tells the subscribers that the memory is back.
    fn after_restore(&self);
    /// Waits, as long as `patience` allows, until no other process holds up a change. False if one still does.
    fn wait_for_peers(&self, _patience: Patience) -> bool {
        true
    }
    /// The ids of the processes that may hold up a change.
    fn peers(&self) -> Vec<i32> {
        Vec::new()
    }
    /// Tells the holders of pins that a revocation waits for them.
    fn want_pins_back(&self);
    /// Nothing reaches the memory when it returns; faults wait.
    fn hold(&self) -> Result<(), RevokeError>;
    /// Nothing reaches the memory when it returns; accesses get what the policy says. `for_good`: it will never be
    /// restored, so no access is left waiting for that.
    fn refuse(&self, for_good: bool) -> Result<(), RevokeError>;
    /// The memory is reachable again when it returns.
    fn restore(&self) -> Result<(), RevokeError>;
    /// Makes every access that waits in a page fault look again. The phase is set by now.
    fn wake(&self);
    /// Completes asynchronous faults, which runs users' code. Called once everything that changes together is accessible
    /// again.
    fn complete(&self) {}
    /// Resolves faults if the waiting thread may have to do that itself. True if so: then it is called now and then while
    /// waiting for guards, whose holders may wait for this thread.
    fn help(&self) -> bool;
    /// Makes accesses look at the state before they touch the memory. A hint, so the model has none.
    fn close(&self) {}
    /// Lets accesses touch the memory at once.
    fn open(&self) {}
}

/// What subscribers are told before memory goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is being disabled.
    Revoked,
    /// A reset, or a change whose outcome is not known yet: it may be back when the change ends.
    Undecided,
}

/// True if a change of several regions waits for the calling thread.
pub(crate) type Together = std::sync::Arc<dyn Fn() -> bool + Send + Sync>;

/// A region's state, as the memory lock protects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Enabled,
    Disabled,
    /// The region was dropped: disabled for good.
    Gone,
}

impl State {
    fn phase(self) -> Phase {
        match self {
            State::Enabled => Phase::Open,
            State::Disabled => Phase::Disabled,
            State::Gone => Phase::Gone,
        }
    }
}

pub(crate) struct Protocol {
    /// One change of state at a time, from its first notifier to its last.
    control: TryMutex,
    /// The thread that holds `control`, 0 for none. Not one of the model's atomics: it is only ever compared with the
    /// reading thread's own id.
    changer: std::sync::atomic::AtomicI32,
    /// `Some` while a change of several regions is under way. A leaf of the lock order, and not one of the model's locks.
    together: FutexRwLock<Option<Together>>,
    /// The memory lock.
    memory: RwLock<State>,
    /// The write side is held or waited for: mappings stay closed.
    closed: AtomicBool,
    pub(crate) gate: Gate,
    pins: AtomicUsize,
    /// The threads that wait for the region to be no longer busy, or to be enabled, or for the last pin.
    waiters: Event,
    /// Changes of state so far.
    epoch: AtomicU64,
    /// True if the region was enabled after the last of them.
    enabled: AtomicBool,
    /// The process whose mappings they are: see [`is_inherited`](Self::is_inherited).
    process: Identity,
}

impl Protocol {
    pub(crate) fn new(initial: State) -> Self {
        Self {
            control: TryMutex::new(()),
            changer: std::sync::atomic::AtomicI32::new(0),
            together: FutexRwLock::new(None),
            memory: RwLock::new(initial),
            closed: AtomicBool::new(false),
            gate: Gate::new(initial.phase()),
            pins: AtomicUsize::new(0),
            waiters: Event::new(),
            epoch: AtomicU64::new(0),
            enabled: AtomicBool::new(initial == State::Enabled),
            process: Identity::current(),
        }
    }

    /// The state as of now, without waiting.
    pub(crate) fn phase(&self) -> Phase {
        self.gate.phase()
    }

    /// The phase for an access. While a change waits for guards and pins, that is the phase before the change: the access
    /// may be made by a holder of one, or by a signal handler that has interrupted a thread in the middle of entering the
    /// gate, for which the drain waits too. It is Busy only once the write side is wanted, when all of those are gone.
    pub(crate) fn met(&self) -> Phase {
        match self.phase() {
            Phase::Busy if self.is_closed() => Phase::Busy,
            Phase::Busy if self.was_enabled() => Phase::Open,
            Phase::Busy => Phase::Disabled,
            settled => settled,
        }
    }

    /// True for a forked child's copy. Where the parent has its mappings the child has nothing, or something else; and the
    /// userfaultfds still act on the parent's.
    pub(crate) fn is_inherited(&self) -> bool {
        !self.process.is_current()
    }

    /// True if the calling thread is inside a change of this state, in a notifier or in a reset callback; or in users' code
    /// that a change waits for ([`inside`](Self::inside)).
    pub(crate) fn is_changed_by_caller(&self) -> bool {
        // Relaxed: only ever compared with the reading thread's own id.
        self.changer.load(Ordering::Relaxed) == crate::sync::current_tid() || Calling::is_in(self)
    }

    /// While it lives, the calling thread is in users' code that a change of the state may have to wait for (an IOMMU's, a
    /// memslot adapter's): any request of it that waits for a change is an error.
    pub(crate) fn inside(&self) -> Calling {
        Calling::of(self)
    }

    /// True if the change that is under way, together with other regions', waits for the calling thread: for a guard that
    /// it holds of another of the regions, or for the end of a change that it is making of one. Async-signal-safe.
    fn waits_for_caller(&self) -> bool {
        // Asked under the lock: while it is held, the change cannot end, and its regions exist.
        self.together.read().as_ref().is_some_and(|waits_for_caller| waits_for_caller())
    }

    /// Sets the regions that change together from now on, for the waits of other threads.
    fn change_together(&self, together: Option<&Together>) {
        let _inside = inside::enter();
        let earlier = std::mem::replace(&mut *self.together.write(), together.cloned());
        drop(earlier);
    }

    /// True if the calling thread would wait for itself if it waited for this region: it is inside a change of its state,
    /// or inside of the crate, or it runs a signal handler that has interrupted such a thread. Async-signal-safe.
    pub(crate) fn waits_for_itself(&self) -> bool {
        inside::is_inside() || self.is_changed_by_caller()
    }

    /// True if mappings must stay closed.
    pub(crate) fn is_closed(&self) -> bool {
        // SeqCst, with the store in `Change::lock`: see `Served::open`.
        self.closed.load(Ordering::SeqCst)
    }

    /// True if the region was enabled after the last finished change.
    pub(crate) fn was_enabled(&self) -> bool {
        // Relaxed: this is about the past.
        self.enabled.load(Ordering::Relaxed)
    }

    pub(crate) fn epoch(&self) -> u64 {
        // Acquire: pairs with the Release in `Change::publish`; a thread that sees the new number sees the new state.
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn pins(&self) -> usize {
        self.pins.load(Ordering::Relaxed)
    }

    /// The read side of the memory lock, without waiting, and not while a writer waits for it.
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, State>> {
        // Relaxed: a matter of fairness; the lock decides. The fence is the one of `try_read_to_answer`.
        if self.closed.load(Ordering::Relaxed) {
            if !broken(Mutation::TryFence) {
                fence(Ordering::Acquire);
            }
            return None;
        }
        self.try_read_to_answer()
    }

    /// [`try_read`](Self::try_read) for a thread that resolves other threads' faults: it also succeeds while a writer
    /// waits. The writer may wait for a reader that a signal handler has interrupted, and the handler for its own fault to
    /// be resolved.
    ///
    /// A thread that fails to get it sees the phase as Busy, or a later phase: otherwise it would spin for a while instead
    /// of waiting.
    pub(crate) fn try_read_to_answer(&self) -> Option<RwLockReadGuard<'_, State>> {
        let state = self.memory.try_read();
        if state.is_none() && !broken(Mutation::TryFence) {
            // Acquire: pairs with the heavy barrier in `Gate::shut`, which comes after the store of Busy and before the
            // lock is taken, through the lock's own word, which the failed try has read.
            fence(Ordering::Acquire);
        }
        state
    }

    /// The read side of the memory lock; waits for a writer as long as it takes.
    ///
    /// # Errors
    /// The reason why the wait would never end.
    pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, State>, Waited> {
        loop {
            if let Some(state) = self.try_read() {
                return Ok(state);
            }
            match self.wait(|| self.is_closed(), None, None) {
                Waited::Done | Waited::TimedOut | Waited::Cancelled => {}
                futile @ (Waited::Reentrant | Waited::WouldDeadlock) => return Err(futile),
            }
        }
    }

    /// Runs `f` while no change of state is under way, and none begins.
    ///
    /// # Errors
    /// [`RevokeError::Reentrant`] in the thread that changes the state, [`RevokeError::WouldDeadlock`] in one that holds a
    /// guard which another thread's change waits for.
    pub(crate) fn at_rest<R>(&self, f: impl FnOnce(Phase) -> R) -> Result<R, RevokeError> {
        if self.waits_for_itself() {
            return Err(RevokeError::Reentrant);
        }
        let entering = inside::enter();
        let control = self.lock_control(Patience::Forever, Instant::now())?;
        // `f` may call users' code, which may wait for other threads, and must not wait for its own end.
        let calling = self.inside();
        drop(entering);
        let value = f(self.phase());
        let _leaving = inside::enter();
        drop(calling);
        drop(control);
        Ok(value)
    }

    /// Waits until the region is in none of the phases that `unwanted` names. Every wait for a region's state goes through
    /// here. A wait that would never end is not begun, or not continued: [`Waited::Reentrant`], [`Waited::WouldDeadlock`].
    /// Async-signal-safe without a token.
    pub(crate) fn wait_while(
        &self,
        unwanted: impl Fn(Phase) -> bool,
        cancel: Option<&CancelToken>,
        deadline: Option<Instant>,
    ) -> Waited {
        self.wait(|| unwanted(self.phase()), cancel, deadline)
    }

    /// [`wait_while`](Self::wait_while) for an access: by the phase that an access [meets](Self::met), not the gate's.
    pub(crate) fn wait_while_met(&self, unwanted: impl Fn(Phase) -> bool, cancel: Option<&CancelToken>) -> Waited {
        self.wait(|| unwanted(self.met()), cancel, None)
    }

    /// A change of several regions announces itself as such before it closes the first gate, so checking at each
    /// notification is enough to notice that it waits for the caller.
    fn wait(&self, unwanted: impl Fn() -> bool, cancel: Option<&CancelToken>, deadline: Option<Instant>) -> Waited {
        let futile = Cell::new(None);
        let waiting = || {
            let unwanted = unwanted();
            futile.set(if unwanted { self.futile() } else { None });
            unwanted && futile.get().is_none()
        };
        match (self.waiters.wait_while(waiting, cancel, deadline), futile.get()) {
            (Waited::Done, Some(why)) => why,
            (waited, _) => waited,
        }
    }

    /// The reason, if a wait of the calling thread for a change of this region would never end. Async-signal-safe.
    pub(crate) fn futile(&self) -> Option<Waited> {
        if self.waits_for_itself() {
            Some(Waited::Reentrant)
        } else if self.waits_for_caller() && self.phase() == Phase::Busy {
            Some(Waited::WouldDeadlock)
        } else {
            None
        }
    }

    /// Counts a new pin, under the read side of the memory lock of an enabled region; false while a revocation drains.
    ///
    /// A pin is counted under a guard, so it has no race of its own: a gate that closes refuses the guard, or the drain
    /// waits for it, and the changer reads the count after that. A thread that holds a guard already, for which the drain
    /// waits, gets its pin.
    pub(crate) fn pin(&self) -> bool {
        let guard = self.gate.enter();
        if guard.is_err() && !broken(Mutation::PinRefusal) {
            return false;
        }
        // Relaxed: the end of the guard orders it before the changer's load in `drain`.
        self.pins.fetch_add(1, Ordering::Relaxed);
        true
    }

    pub(crate) fn unpin(&self) {
        // Release pairs with the Acquire in `drain`: the accesses under the pin come before the revocation that waited for
        // it.
        self.pins.fetch_sub(1, Ordering::Release);
        if !broken(Mutation::UnpinNotify) {
            self.waiters.notify_all();
        }
    }
}
