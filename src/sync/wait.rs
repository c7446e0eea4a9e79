//! Waiting for a region that is busy, and cancelling such waits.
//!
//! A thread that waits for a condition sleeps on an [`Event`]; a thread that may have changed the condition notifies it. A
//! [`CancelToken`] reaches its waiters wherever they sleep, because each registers the event it sleeps on with the token.
//!
//! Notifying never blocks, not even on a lock: threads that must not sleep notify too.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Generation, Mutation, Mutex, broken};
use std::fmt;
use std::time::{Duration, Instant};

#[cfg(all(test, revocable_model))]
mod model;
#[cfg(all(test, not(revocable_model)))]
mod tests;

/// How long to wait: the three forms of a verb (`disable`, `try_disable`, `disable_timeout`) as one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as it takes.
    Forever,
    /// Not at all: no sleep in any case.
    Never,
    /// Until this time.
    Until(Instant),
}

impl Patience {
    /// For `patience` from now on. A time beyond the clock's range means for ever.
    pub(crate) fn within(patience: Duration) -> Self {
        Instant::now().checked_add(patience).map_or(Patience::Forever, Patience::Until)
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Waited {
    /// The condition has ended.
    Done,
    /// The token was cancelled first.
    Cancelled,
    /// The deadline came first.
    TimedOut,
    /// The wait would be for the calling thread itself, which is inside the change, or interrupted inside of the crate.
    /// (The protocol uses this and the next; an event does not.)
    Reentrant,
    /// The change that is waited for waits for the calling thread: for a guard that it holds.
    WouldDeadlock,
}

/// Waiters sleep on it, and changers notify it. A clone is the same event.
#[derive(Clone)]
pub(crate) struct Event(Arc<Generation>);

impl Event {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Generation::new()))
    }

    /// Sleeps until `busy` is false, `cancel` is cancelled, or `deadline` has passed, whichever is seen first, in this
    /// order. `busy` is called without any lock held, at least once, and again after each notification.
    ///
    /// # No notification is missed
    ///
    /// The generation is read before `busy` is asked. A changer changes the condition, then advances the
    /// generation, then wakes.
    /// 1. The advance comes before our reading: Acquire sees what came before the Release, so `busy` sees the change.
    /// 2. It comes after our reading: the generation is not the one that we read any more, and the kernel (which compares
    ///    it and queues us in one step) does not let us sleep, or has queued us before the wake.
    pub(crate) fn wait_while(
        &self,
        busy: impl Fn() -> bool,
        cancel: Option<&CancelToken>,
        deadline: Option<Instant>,
    ) -> Waited {
        if !busy() {
            return Waited::Done;
        }
        let called_off_early = cancel.is_some_and(CancelToken::is_cancelled);
        // Case 1 of `CancelToken::cancel` needs the registration to come before the look at the token below.
        let _registered = cancel.map(|token| token.register(self));
        loop {
            let seen = self.0.load();
            if !busy() {
                return Waited::Done;
            }
            let seen = if broken(Mutation::GenerationAfterCheck) { self.0.load() } else { seen };
            let called_off = match broken(Mutation::CheckBeforeRegister) {
                true => called_off_early,
                false => cancel.is_some_and(CancelToken::is_cancelled),
            };
            if called_off {
                return Waited::Cancelled;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Waited::TimedOut;
            }
            self.0.sleep(seen, deadline);
        }
    }

    /// Makes every waiter look at its condition again. Never blocks.
    pub(crate) fn notify_all(&self) {
        if !broken(Mutation::GenerationBump) {
            self.0.advance();
        }
        self.0.wake_all();
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").finish_non_exhaustive()
    }
}

/// Cancels the waits of threads, at once and for good.
///
/// It takes the part of a fatal signal in the kernel: a caller that allows to be killed ([`KILLABLE`]) stops waiting when
/// its token is cancelled, wherever it waits. A clone is the same token; one token may serve any number of threads and
/// regions, a virtual machine's vCPUs for instance.
///
/// [`KILLABLE`]: crate::fault::FaultFlags::KILLABLE
///
/// ```
/// use revocable_mmio::fault::FaultFlags;
/// use revocable_mmio::{AccessError, Caller, CancelToken};
/// use std::thread;
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// let machine_stops = CancelToken::new();
/// region.reset(|_| {
///     thread::scope(|threads| {
///         // A vCPU waits for the end of the reset, or for the token.
///         let vcpu = threads.spawn(|| mapping.read_with::<u32>(0, Caller::new(FaultFlags::WAIT).cancel(&machine_stops)));
///         assert!(machine_stops.cancel());
///         assert_eq!(vcpu.join().unwrap(), Err(AccessError::Cancelled { offset: 0 }));
///     });
/// })?;
/// assert!(machine_stops.is_cancelled());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct CancelToken(Arc<Token>);

struct Token {
    cancelled: AtomicBool,
    /// The events on which threads with this token sleep now, once per sleeping thread.
    sleeping_on: Mutex<Vec<Event>>,
}

impl CancelToken {
    /// A token that is not cancelled yet.
    ///
    /// # Signal safety
    /// Not for signal handlers: it allocates.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Token { cancelled: AtomicBool::new(false), sleeping_on: Mutex::new(Vec::new()) }))
    }

    /// Wakes every thread that waits with this token, and lets none wait with it again.
    ///
    /// True if this call did it, false if the token was cancelled before.
    ///
    /// # No cancellation is lost
    ///
    /// A waiter registers its event under the list's lock, then looks at the flag, then sleeps; this sets the
    /// flag, then notifies what is in the list, under its lock.
    /// 1. We lock the list before the waiter does: the flag was set before, the waiter sees it.
    /// 2. The waiter locks it first: its event is in the list and gets notified after the flag was set, and the
    ///    event misses no notification.
    ///
    /// # Signal safety
    ///
    /// Not for signal handlers: it takes a lock.
    pub fn cancel(&self) -> bool {
        // Release pairs with the Acquire in `is_cancelled`: a thread that sees the flag sees what came before it.
        let did = !self.0.cancelled.swap(true, Ordering::AcqRel);
        if !broken(Mutation::CancelNotify) {
            for event in self.0.sleeping_on.lock().iter() {
                event.notify_all();
            }
        }
        did
    }

    /// True once [`CancelToken::cancel`] was called.
    ///
    /// # Signal safety
    /// Async-signal-safe.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        // Acquire pairs with the Release in `cancel`.
        self.0.cancelled.load(Ordering::Acquire)
    }

    fn register<'a>(&'a self, event: &'a Event) -> Registered<'a> {
        self.0.sleeping_on.lock().push(event.clone());
        Registered { token: self, event }
    }
}

impl Default for CancelToken {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

/// One waiter's entry in its token's list.
struct Registered<'a> {
    token: &'a CancelToken,
    event: &'a Event,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut list = self.token.0.sleeping_on.lock();
        // Entries of one event are alike, so any of them may be removed.
        if let Some(at) = list.iter().position(|event| Arc::ptr_eq(&event.0, &self.event.0)) {
            list.swap_remove(at);
        }
    }
}
