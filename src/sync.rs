//! The one switch between the real synchronisation primitives and the model checker's.
//!
//! Everything whose interleavings matter (the gate, the memory lock, the waiters) takes its atomics, locks and
//! condition variables from here, so that `--cfg revocable_model` checks the code that ships, with the orderings
//! that ship. The real side is parking_lot, std, and a futex; the model side is loom, in the same shape. Under Miri the
//! models run over std instead (`unchecked`).

pub(crate) mod barrier;
pub(crate) mod inside;
pub(crate) mod memory_lock;
#[cfg(not(all(test, revocable_model)))]
mod real;
pub(crate) mod wait;
#[cfg(not(all(test, revocable_model)))]
pub(crate) use real::*;

#[cfg(all(test, revocable_model))]
mod model;
#[cfg(all(test, revocable_model))]
pub(crate) use model::*;
#[cfg(all(test, revocable_model))]
pub(crate) mod explore;

/// What the models are made of.
#[cfg(all(test, revocable_model, not(miri)))]
pub(crate) use loom as checker;
#[cfg(all(test, revocable_model, miri))]
pub(crate) mod unchecked;
#[cfg(all(test, revocable_model, miri))]
pub(crate) use unchecked as checker;

/// A step that a model test leaves out, to show that the model would notice.
///
/// Read through [`broken`], which is a constant `false` in every build but the model's, so that the sabotage
/// costs the shipped code nothing and stands right where the step does.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Mutation {
    /// The gate: no barrier between announcing a guard, or its end, and reading the phase.
    LightBarrier,
    /// The gate: no barrier between closing and scanning.
    HeavyBarrier,
    /// The gate: a thread enters without reading the phase after announcing itself.
    Recheck,
    /// The gate: the end of a guard does not notify.
    ExitNotify,
    /// The gate: a refused entry, which the drainer may have counted, does not notify.
    RefusalNotify,
    /// The gate: the scan reads `entered` before `left`.
    ScanOrder,
    /// The gate: the end of a guard does not order its accesses.
    ExitRelease,
    /// The gate: opening does not order the preparations before it.
    OpenRelease,
    /// The waiters: the generation is read after the condition instead of before.
    GenerationAfterCheck,
    /// The waiters: a notification wakes without advancing the generation.
    GenerationBump,
    /// Cancellation: the waiter looks at the token before registering with it, and not after.
    CheckBeforeRegister,
    /// Cancellation: the flag is set but the waiters are not told.
    CancelNotify,
    /// The protocol: a pin is counted although the gate is closed.
    PinRefusal,
    /// The protocol: pins are not waited for.
    PinsIgnored,
    /// The protocol: the end of a pin does not notify.
    UnpinNotify,
    /// The protocol: the holder of a guard waits for another thread's change of state.
    OwnGuards,
    /// The protocol: guards are waited for with the memory lock held.
    DrainUnderLock,
    /// The protocol: a failed try to read does not order the look at the phase that follows.
    TryFence,
    /// The protocol: the state under the memory lock is not changed.
    StateUnset,
    /// The protocol: threads in page faults are woken before the memory lock is released.
    WakeFirst,
    /// The protocol: waiters for the phase are notified before it is set.
    NotifyFirst,
    /// The fault path: waits for the memory lock instead of trying it.
    NowaitReads,
    /// The fault path: `ready` runs after the memory lock is released.
    FaultUnlocked,
    /// The fake kernel: revoke without dropping page-table entries.
    #[cfg(all(test, revocable_model))]
    Zap,
    /// The fake kernel: pages that were faulted in while the page tables were moved aside are not dropped.
    #[cfg(all(test, revocable_model))]
    ClosingZap,
    /// The fake kernel: threads in page faults are not woken.
    #[cfg(all(test, revocable_model))]
    Wake,
    /// The fake kernel: a reset refuses faults instead of making them wait.
    #[cfg(all(test, revocable_model))]
    HoldRefuses,
    /// The fake monitor: waits for the memory lock.
    #[cfg(all(test, revocable_model))]
    ServeReads,
    /// The memory lock: the end of a read side does not order its accesses.
    ReadRelease,
    /// The memory lock: the last reader does not wake a writer.
    LastReaderWake,
    /// The memory lock: a writer that gives up does not wake the one whose mark it takes away.
    LeaveWake,
    /// The window: its pages are held after they were taken out.
    HoldLate,
    /// The window: its pages are copied before they are taken out.
    CopyEarly,
    /// The window: the ones come after the end of the change.
    OnesLate,
    /// The fake files: the window's pages were never written.
    #[cfg(all(test, revocable_model))]
    Unwritten,
    /// Asynchronous faults: settle by a phase that was read before the list was locked.
    SettleStale,
    /// Asynchronous faults: a submission does not look at the phase again.
    SubmitRecheck,
    /// Asynchronous faults: a completion may come twice.
    CompleteTwice,
    /// Asynchronous faults: the queue's count is raised after its lock is released.
    CountUnlocked,
    /// Asynchronous faults: a cancelled fault is completed before it leaves the list.
    CancelLate,
}
