//! The protocol: how a region's state changes, and who may rely on it meanwhile.
//!
//! ```text
//!  changer                                  everyone else
//!  -------                                  -------------
//!  control     one change at a time
//!  before_revoke()                          (memslots, IOMMUs)
//!  gate: Busy  no new guards and pins       enter: sees Busy, waits or retries as its flags say
//!  drain       the old ones end             faults are still resolved: a guard's holder may fault
//!  (passes     single accesses that don't recover by themselves: the same once more, for them)
//!  memory lock, write side                  resolvers: try-read fails -> wait or retry
//!  state := Disabled                        from here on a refusal is the truth
//!  refuse()    zap, detach or replace       faults meet the old mapping or the refusal
//!  unlock
//!  gate: Disabled                           enter: refused
//!  notify, wake                             who waited looks again
//! ```
//!
//! Enabling is the same with `restore()`, and `after_restore()` at the end; a reset holds (`hold()`) instead of
//! refusing, runs its callback, and restores. If anything fails on the way, [`Change`]'s drop walks back.
//!
//! # Who would wait for itself
//!
//! A callback of a change, or a signal handler that interrupts the changer, must not wait for the change. Nor must a handler
//! that interrupts a thread which holds any lock of the crate, or is about to take it: the changer may wait for that. Both are
//! known without a lock: [`Protocol::changer`] names the thread from before the gate is shut until all are told, and a thread
//! counts as inside ([`crate::sync::inside`]) from before it takes `control` until it is named, from before it is no longer
//! named until `control` is free, and while it has any other lock or the read side. So between any two instructions of a change
//! one of the two holds, and [`wait_while`](Protocol::wait_while), through which every wait for a region goes, refuses.
//!
//! The same thread's accesses must not wait in a page fault either. So mappings are closed (`Mechanism::close`), which leads
//! accesses here, before the write side is taken, and opened after it was released.
//!
//! Lock order: control, then the memory lock, then the region's file, then the list of mappings, then a view's place, then
//! (in the kernel) mmap_lock. Neither side of the memory lock is held while anything is touched that can fault into a
//! userfaultfd.

use crate::access::raw::RECOVERABLE;
use crate::error::{Holders, RevokeError};
use crate::gate::{Gate, Guard, NotDrained, Phase};
use crate::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutation, RwLock, RwLockReadGuard, TryMutex, TryMutexGuard, broken, fence, inside};
use crate::sys::identity::Identity;
use crate::trace;
use crate::wait::{CancelToken, Event, Patience, Waited};
use std::time::{Duration, Instant};

mod change;
#[cfg(all(test, revocable_model))]
mod model;

pub(crate) use change::Change;

/// What the protocol drives. The real one makes system calls; the model's is a fake kernel.
pub(crate) trait Mechanism {
    /// Tells those who keep the memory reachable by other ways (memslots, IOMMUs, pins) that it goes away.
    fn before_revoke(&self);
    /// Tells them that it is back.
    fn after_restore(&self);
    /// Tells the holders of pins that a revocation waits for them.
    fn want_pins_back(&self);
    /// Nothing reaches the memory when it returns; faults wait.
    fn hold(&self) -> Result<(), RevokeError>;
    /// Nothing reaches the memory when it returns; accesses meet the policy. `for_good`: it will never be restored, so
    /// nobody is left waiting for that.
    fn refuse(&self, for_good: bool) -> Result<(), RevokeError>;
    /// The memory is reachable again when it returns.
    fn restore(&self) -> Result<(), RevokeError>;
    /// Makes everything that waits for the region, in a page fault or elsewhere, look again. The phase is set by now.
    fn wake(&self);
    /// Called now and then while waiting for guards, if their holders may themselves wait for this thread, which is
    /// what it answers.
    fn help(&self) -> bool;
    /// Has accesses look at the state before they touch the memory. A hint, so the model has none.
    fn close(&self) {}
    /// Lets accesses touch the memory at once.
    fn open(&self) {}
}

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
    /// The thread that holds `control`, 0 for none.
    changer: AtomicI32,
    /// The memory lock.
    memory: RwLock<State>,
    /// The write side is held or waited for: mappings stay closed.
    closed: AtomicBool,
    pub(crate) gate: Gate,
    /// For single accesses that don't recover by themselves (`access/portable.rs`): they go on while guards and pins are
    /// drained, whose holders may make them, and are drained after those. `None` where accesses recover.
    accesses: Option<Gate>,
    pins: AtomicUsize,
    /// Who waits for the region to be no longer busy, or to be enabled, or for the last pin.
    waiters: Event,
    /// Changes of state so far.
    epoch: AtomicU64,
    /// Was the region enabled after the last of them?
    enabled: AtomicBool,
    /// Whose mappings they are: see [`is_inherited`](Self::is_inherited).
    process: Identity,
}

impl Protocol {
    pub(crate) fn new(initial: State) -> Self {
        Self {
            control: TryMutex::new(()),
            changer: AtomicI32::new(0),
            memory: RwLock::new(initial),
            closed: AtomicBool::new(false),
            gate: Gate::new(initial.phase()),
            accesses: (!RECOVERABLE).then(|| Gate::new(initial.phase())),
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

    /// What an access meets. While a change waits for guards and pins that is what was before it: the access may be made by a
    /// holder of one, or by a signal handler that has interrupted a thread in the middle of entering the gate, which the drain
    /// waits for too. Busy only from the time at which the write side is wanted, when all of those are gone.
    pub(crate) fn met(&self) -> Phase {
        match self.phase() {
            Phase::Busy if self.is_closed() => Phase::Busy,
            Phase::Busy if self.was_enabled() => Phase::Open,
            Phase::Busy => Phase::Disabled,
            settled => settled,
        }
    }

    /// Is this a forked child's copy? The child has no mappings where its parent has them, maybe something else; and the
    /// userfaultfds go on working on its parent's.
    pub(crate) fn is_inherited(&self) -> bool {
        !self.process.is_current()
    }

    /// Is the calling thread inside a change of this state: in a notifier, or in a reset callback?
    pub(crate) fn is_changed_by_caller(&self) -> bool {
        // Relaxed: only ever compared with the reading thread's own key.
        self.changer.load(Ordering::Relaxed) == crate::sys::thread::current_tid()
    }

    /// Would the calling thread wait for itself, if it waited for this region? It is inside a change of its state, or inside of
    /// the crate; or a signal handler runs that has interrupted such a thread. Async-signal-safe.
    pub(crate) fn waits_for_itself(&self) -> bool {
        inside::is_inside() || self.is_changed_by_caller()
    }

    /// Must mappings stay closed?
    pub(crate) fn is_closed(&self) -> bool {
        // SeqCst, with the store in `Change::write_lock`: see `Served::open`.
        self.closed.load(Ordering::SeqCst)
    }

    /// Was the region enabled after the last finished change?
    pub(crate) fn was_enabled(&self) -> bool {
        // Relaxed: an answer about the past.
        self.enabled.load(Ordering::Relaxed)
    }

    pub(crate) fn epoch(&self) -> u64 {
        // Acquire: pairs with the Release in `Change::drop`; who sees the new number sees the new state.
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn pins(&self) -> usize {
        self.pins.load(Ordering::Relaxed)
    }

    /// The read side of the memory lock, without waiting, and not while a writer waits for it.
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, State>> {
        // Relaxed: a matter of fairness; the lock is what counts. The fence is `try_read_to_answer`'s.
        if self.closed.load(Ordering::Relaxed) {
            if !broken(Mutation::TryFence) {
                fence(Ordering::Acquire);
            }
            return None;
        }
        self.try_read_to_answer()
    }

    /// [`try_read`](Self::try_read) for who answers other threads' faults: also while a writer waits. The writer may wait for
    /// a reader that a signal handler has interrupted, and that one for the answer.
    ///
    /// Who does not get it sees the phase as Busy, or as what came after: otherwise it would spin for a while instead of
    /// waiting.
    pub(crate) fn try_read_to_answer(&self) -> Option<RwLockReadGuard<'_, State>> {
        let state = self.memory.try_read();
        if state.is_none() && !broken(Mutation::TryFence) {
            // Acquire: pairs with the heavy barrier in `Gate::shut`, after the store of Busy and before the lock is
            // taken, through the lock's own word, which the failed try has read.
            fence(Ordering::Acquire);
        }
        state
    }

    /// The read side of the memory lock, waiting for a writer as long as it takes.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        loop {
            if let Some(state) = self.try_read() {
                return state;
            }
            let _ = self.waiters.wait_while(|| self.is_closed(), None, None);
        }
    }

    /// Runs `f` while no change of state is under way, and none begins.
    ///
    /// # Errors
    /// [`RevokeError::Reentrant`] in the thread that changes the state, [`RevokeError::WouldDeadlock`] in one that holds a
    /// guard which another thread's change waits for.
    #[cfg_attr(not(feature = "kvm"), expect(dead_code, reason = "only memslots start in step with the state so far"))]
    pub(crate) fn at_rest<R>(&self, f: impl FnOnce(Phase) -> R) -> Result<R, RevokeError> {
        if self.waits_for_itself() {
            return Err(RevokeError::Reentrant);
        }
        let _inside = inside::enter();
        let _control = self.lock_control(Patience::Forever, Instant::now())?;
        Ok(f(self.phase()))
    }

    /// Waits until the region is in none of the phases that `unwanted` names. Every wait for a region's state comes here, and
    /// one that would be for the calling thread itself is [`Waited::Reentrant`] instead. Async-signal-safe without a token.
    pub(crate) fn wait_while(
        &self,
        unwanted: impl Fn(Phase) -> bool,
        cancel: Option<&CancelToken>,
        deadline: Option<Instant>,
    ) -> Waited {
        self.wait(|| unwanted(self.phase()), cancel, deadline)
    }

    /// [`wait_while`](Self::wait_while) for an access: what it [meets](Self::met) is looked at, not what a guard would.
    pub(crate) fn wait_while_met(&self, unwanted: impl Fn(Phase) -> bool, cancel: Option<&CancelToken>) -> Waited {
        self.wait(|| unwanted(self.met()), cancel, None)
    }

    fn wait(&self, unwanted: impl Fn() -> bool, cancel: Option<&CancelToken>, deadline: Option<Instant>) -> Waited {
        if unwanted() && self.waits_for_itself() {
            return Waited::Reentrant;
        }
        self.waiters.wait_while(unwanted, cancel, deadline)
    }

    /// Keeps the region from being revoked for the time of one access; `None`: it is busy, or not enabled.
    pub(crate) fn pass(&self) -> Option<Guard<'_>> {
        self.accesses.as_ref()?.enter().ok()
    }

    /// Counts a pin in, under the read side of the memory lock of an enabled region; false while a revocation drains.
    ///
    /// A pin is counted in under a guard, so it has no race of its own: a guard is refused by a gate that closes, or
    /// waited for by the drain, and the changer reads the count after that. And who holds a guard already, which the drain
    /// waits for, gets its pin.
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
        // Release pairs with the Acquire in `drain`: what was done under the pin comes before the revocation that
        // waited for it.
        self.pins.fetch_sub(1, Ordering::Release);
        if !broken(Mutation::UnpinNotify) {
            self.waiters.notify_all();
        }
    }

    /// The first half of every change of state: afterwards nobody uses the memory under a guard or a pin, nobody
    /// resolves a fault, and this thread alone may change the state. `None`: it is `goal` already.
    pub(crate) fn begin<'a>(
        &'a self,
        mechanism: &'a dyn Mechanism,
        goal: Option<State>,
        patience: Patience,
    ) -> Result<Option<Change<'a>>, RevokeError> {
        self.begin_among(mechanism, goal, patience, patience)
    }

    /// [`begin`](Self::begin) with a patience of its own for `readers` of the memory lock: those hold it for a single
    /// access and wait for nobody, so a member of a group can wait a moment for them without a risk of deadlock.
    pub(crate) fn begin_among<'a>(
        &'a self,
        mechanism: &'a dyn Mechanism,
        goal: Option<State>,
        patience: Patience,
        readers: Patience,
    ) -> Result<Option<Change<'a>>, RevokeError> {
        let mut change = self.prepare(mechanism, goal, patience)?;
        change.as_mut().map_or(Ok(()), |change| change.lock(readers))?;
        Ok(change)
    }

    /// The part of [`begin`](Self::begin) that waits for others' guards and pins. Faults are still resolved, so a group
    /// prepares all of its members before it locks the first: who holds a guard or a pin of one may access another.
    pub(crate) fn prepare<'a>(
        &'a self,
        mechanism: &'a dyn Mechanism,
        goal: Option<State>,
        patience: Patience,
    ) -> Result<Option<Change<'a>>, RevokeError> {
        let since = Instant::now();
        // While a guard lives the region is enabled: for its holder, enabling it is done.
        if goal == Some(State::Enabled) && self.gate.held_by_caller() > 0 {
            return Ok(None);
        }
        let mut change = self.take_control(mechanism, patience, since)?;
        if goal == Some(change.was) {
            return Ok(None);
        }
        // A revoked access is to be an error, and so must reach the crate's handler. What ends for good does not fail for that.
        match goal {
            Some(State::Disabled) => crate::signal::install()?,
            Some(State::Gone) | None => _ = crate::signal::install(),
            Some(State::Enabled) => {}
        }
        if change.was == State::Enabled {
            change.told = true;
            mechanism.before_revoke();
        }
        self.gate.shut().map_err(RevokeError::Barrier)?;
        if broken(Mutation::DrainUnderLock) {
            change.write_lock(patience)?;
        }
        // While disabled there is neither a guard nor a pin. An entry that is being refused is not waited for: its thread may be in
        // a signal handler that waits for the end of that state.
        if change.was == State::Enabled {
            self.drain(mechanism, patience, since)?;
        }
        Ok(Some(change))
    }

    /// The write side of the memory lock for an access of the owner's that nobody else may come in between; the state
    /// stays, nothing is zapped, guards and pins are not waited for and nobody is told. Who meets the lock meets a
    /// busy region, as in any change.
    pub(crate) fn begin_privileged<'a>(&'a self, mechanism: &'a dyn Mechanism) -> Result<Change<'a>, RevokeError> {
        let mut change = self.take_control(mechanism, Patience::Forever, Instant::now())?;
        self.gate.shut().map_err(RevokeError::Barrier)?;
        change.write_lock(Patience::Forever)?;
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
        // Until `changer` says it.
        let _inside = inside::enter();
        let control = self.lock_control(patience, since)?;
        let was = match self.phase() {
            Phase::Open => State::Enabled,
            Phase::Disabled => State::Disabled,
            // Busy ends before `control` is released.
            Phase::Gone | Phase::Busy => return Err(RevokeError::Gone),
        };
        // Relaxed: only ever compared with the reading thread's own key.
        self.changer.store(crate::sys::thread::current_tid(), Ordering::Relaxed);
        Ok(Change::new(self, mechanism, control, was, since))
    }

    /// The right to change the state. The holder of a guard does not wait for it: whoever has it may be waiting for that
    /// guard.
    fn lock_control(&self, patience: Patience, since: Instant) -> Result<TryMutexGuard<'_>, RevokeError> {
        let guards = if broken(Mutation::OwnGuards) { 0 } else { self.gate.held_by_caller() };
        let control = match patience {
            _ if guards > 0 => self.control.try_lock(),
            Patience::Forever => Some(self.control.lock()),
            Patience::Never => self.control.try_lock(),
            Patience::Until(deadline) => self.control.try_lock_until(deadline),
        };
        control.ok_or_else(|| match patience {
            Patience::Forever | Patience::Until(_) if guards > 0 => RevokeError::WouldDeadlock { guards },
            _ => gave_up(patience, since, Holders::default()),
        })
    }

    /// Waits for all that a gate has let through.
    fn drain_gate(
        &self,
        gate: &Gate,
        mechanism: &dyn Mechanism,
        patience: Patience,
        since: Instant,
    ) -> Result<(), RevokeError> {
        let mut slow = trace::ENABLED.then(|| since + trace::SLOW);
        loop {
            let (slice, last) = slice(mechanism, patience);
            match gate.drain(slice) {
                Ok(()) => return Ok(()),
                Err(NotDrained::Held(_guards)) if !last => {
                    if is_over(&mut slow) {
                        event!(WARN, guards = ?_guards, "slow guard");
                    }
                }
                Err(NotDrained::Held(guards)) => {
                    return Err(gave_up(patience, since, Holders { guards, pins: self.pins() }));
                }
                Err(NotDrained::HeldByCaller(own)) => return Err(RevokeError::WouldDeadlock { guards: own.count }),
            }
        }
    }

    /// Waits for the guards and the pins.
    fn drain(&self, mechanism: &dyn Mechanism, patience: Patience, since: Instant) -> Result<(), RevokeError> {
        self.drain_gate(&self.gate, mechanism, patience, since)?;
        let mut slow = trace::ENABLED.then(|| since + trace::SLOW);
        // Only now: a guard that the drain waited for may have counted a pin in. See `pin`.
        if self.pins() > 0 && patience != Patience::Never {
            mechanism.want_pins_back();
        }
        // Acquire pairs with the Release in `unpin`.
        let pinned = || self.pins.load(Ordering::Acquire) > 0 && !broken(Mutation::PinsIgnored);
        loop {
            let (slice, last) = slice(mechanism, patience);
            let unpinned = match slice {
                Patience::Forever => self.waiters.wait_while(pinned, None, None) == Waited::Done,
                Patience::Never => !pinned(),
                Patience::Until(deadline) => self.waiters.wait_while(pinned, None, Some(deadline)) == Waited::Done,
            };
            if unpinned {
                return Ok(());
            }
            if last {
                return Err(gave_up(patience, since, Holders { guards: Vec::new(), pins: self.pins() }));
            }
            if is_over(&mut slow) {
                event!(WARN, pins = self.pins(), "slow guard");
            }
        }
    }
}

/// Has a moment passed? Says so once.
fn is_over(moment: &mut Option<Instant>) -> bool {
    moment.take_if(|moment| Instant::now() >= *moment).is_some()
}

/// How long to wait at a stretch, and whether patience ends with it. A thread whose help the holder of a guard or a pin
/// may need (to have a fault resolved, say) does not sleep for long, nor does one that is to tell who is slow.
fn slice(mechanism: &dyn Mechanism, patience: Patience) -> (Patience, bool) {
    let nap = match mechanism.help() {
        true => Some(Duration::from_millis(1)),
        false => trace::ENABLED.then_some(trace::SLOW),
    };
    let nap = nap.map(|nap| Instant::now() + nap);
    match (patience, nap) {
        (Patience::Forever, Some(nap)) => (Patience::Until(nap), false),
        (Patience::Until(deadline), Some(nap)) if nap < deadline => (Patience::Until(nap), false),
        _ => (patience, true),
    }
}

fn gave_up(patience: Patience, since: Instant, holders: Holders) -> RevokeError {
    match patience {
        Patience::Never => RevokeError::Busy(holders),
        Patience::Forever | Patience::Until(_) => RevokeError::TimedOut { waited: since.elapsed(), holders },
    }
}
