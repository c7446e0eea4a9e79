//! A kernel with one page, and a monitor: what [`Mechanism`] drives in the model.
//!
//! Everything under `mm` is one step, as under the kernel's mmap_lock and page-table lock; where the real mechanism makes two
//! system calls there are two steps. Memory itself is a loom cell, so loom reports a use of it that is not ordered against
//! the owner's own, besides a use while it is revoked.

use super::super::{Mechanism, Protocol, State, Told};
use crate::protocol::error::RevokeError;
use crate::protocol::policy::OnDisabled;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::checker::cell::UnsafeCell;
use crate::sync::{Condvar, Mutation, Mutex, broken};

/// What resolves the faults of a live mapping, and with that, how it is revoked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The monitor. Revoking is one step.
    Zap,
    /// The kernel, from the moment that the page tables are moved aside until something else stands in the range.
    Detach,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    Live,
    StandIn,
    Cover,
}

struct Mm {
    content: Content,
    /// The page-table entry is present. An access that finds it does not look at the content.
    present: bool,
    /// Fault messages that the monitor has not read.
    messages: u32,
    /// Wake-ups so far.
    wakes: u32,
    /// Tells the monitor to end.
    stop: bool,
}

/// What an access through the mapping met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Memory,
    Sigbus,
}

pub(super) struct Kernel {
    kind: Kind,
    policy: OnDisabled,
    mm: Mutex<Mm>,
    /// Threads that wait in a fault.
    faulted: Condvar,
    /// The monitor, which waits for messages.
    readable: Condvar,
    memory: UnsafeCell<u32>,
    /// True between a disable's return and the next enable's call. The checker's own knowledge: Relaxed, so that it orders
    /// nothing, and read by a read-modify-write, so that the value is the latest.
    revoked: AtomicBool,
}

// The cell is loom's: it reports what is not synchronised, which is the whole point.
#[expect(unsafe_code, reason = "the model's memory is shared on purpose")]
// SAFETY: all accesses to the cell are checked by loom.
unsafe impl Sync for Kernel {}
#[expect(unsafe_code, reason = "the model's memory is shared on purpose")]
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Kernel {}

impl Kernel {
    pub(super) fn new(kind: Kind, policy: OnDisabled, state: State) -> Self {
        let content = match (state, policy) {
            (State::Enabled, _) => Content::Live,
            (State::Disabled, OnDisabled::Block) => Content::StandIn,
            _ => Content::Cover,
        };
        let mm = Mm { content, present: false, messages: 0, wakes: 0, stop: false };
        Self {
            kind,
            policy,
            mm: Mutex::new(mm),
            faulted: Condvar::new(),
            readable: Condvar::new(),
            memory: UnsafeCell::new(0),
            revoked: AtomicBool::new(state != State::Enabled),
        }
    }

    /// Tells the checker that the region is revoked, or may not be any more.
    pub(super) fn revoked(&self, now: bool) {
        self.revoked.swap(now, Ordering::Relaxed);
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.fetch_or(false, Ordering::Relaxed)
    }

    /// The owner changes the memory of a revoked region, which is mapped neither before nor after.
    pub(super) fn take(&self) {
        self.memory.with_mut(|_| ());
        assert!(!self.mm.lock().present, "a page of a revoked region is mapped");
    }

    /// A use of the memory by a thread for which the region is enabled.
    pub(super) fn reach(&self) {
        assert!(!self.is_revoked(), "reached the memory of a revoked region");
        self.memory.with(|_| ());
    }

    /// An access through the mapping: a raw pointer's, a system call's, a virtual CPU's.
    pub(super) fn access(&self) -> Met {
        let mut mm = self.mm.lock();
        loop {
            if mm.present {
                self.reach();
                return Met::Memory;
            }
            match (mm.content, self.kind) {
                (Content::Live, Kind::Detach) => mm.present = true,
                (Content::Live, Kind::Zap) | (Content::StandIn, _) => {
                    // A stand-in's userfaultfd is not the monitor's.
                    if mm.content == Content::Live {
                        mm.messages += 1;
                        self.readable.notify_one();
                    }
                    let seen = mm.wakes;
                    while mm.wakes == seen {
                        self.faulted.wait(&mut mm);
                    }
                }
                (Content::Cover, _) => return Met::Sigbus,
            }
        }
    }

    /// The monitor's thread.
    pub(super) fn monitor(&self, protocol: &Protocol) {
        loop {
            let mut mm = self.mm.lock();
            while mm.messages == 0 && !mm.stop {
                self.readable.wait(&mut mm);
            }
            if mm.messages == 0 {
                return;
            }
            mm.messages -= 1;
            drop(mm);
            self.serve(protocol);
        }
    }

    pub(super) fn stop(&self) {
        self.mm.lock().stop = true;
        self.readable.notify_one();
    }

    /// As `Served::serve`.
    pub(super) fn serve(&self, protocol: &Protocol) {
        let state = if broken(Mutation::ServeReads) { protocol.read().ok() } else { protocol.try_read_to_answer() };
        let Some(state) = state else { return };
        match State::clone(&state) {
            State::Enabled if self.kind == Kind::Zap => {
                self.map();
            }
            State::Enabled | State::Disabled | State::Gone => self.wake_all(),
        }
    }

    /// UFFDIO_CONTINUE, which also wakes; or a mere wake-up if the range is not registered any more.
    fn map(&self) {
        let mut mm = self.mm.lock();
        mm.present |= mm.content == Content::Live;
        mm.wakes += 1;
        self.faulted.notify_all();
    }

    fn wake_all(&self) {
        self.mm.lock().wakes += 1;
        self.faulted.notify_all();
    }

    /// Puts something else into the range, in the steps that the real mechanism takes.
    fn put(&self, content: Content) -> Result<(), RevokeError> {
        let zap = |mm: &mut Mm| mm.present &= broken(Mutation::Zap);
        // `View::take_away`: the pages are gone. Under Detach the kernel fills in new ones.
        zap(&mut self.mm.lock());
        // The new content replaces the old with its pages.
        let mut mm = self.mm.lock();
        mm.content = content;
        if !(self.kind == Kind::Detach && broken(Mutation::ClosingZap)) {
            zap(&mut mm);
        }
        Ok(())
    }
}

impl Mechanism for Kernel {
    fn before_revoke(&self, _: Told) {}

    fn stays_revoked(&self) {}

    fn after_restore(&self) {}

    fn want_pins_back(&self) {}

    fn hold(&self) -> Result<(), RevokeError> {
        self.put(if broken(Mutation::HoldRefuses) { Content::Cover } else { Content::StandIn })
    }

    fn refuse(&self, for_good: bool) -> Result<(), RevokeError> {
        let waits = self.policy == OnDisabled::Block && !for_good;
        self.put(if waits { Content::StandIn } else { Content::Cover })
    }

    fn restore(&self) -> Result<(), RevokeError> {
        let mut mm = self.mm.lock();
        mm.content = Content::Live;
        mm.present = self.kind == Kind::Detach;
        Ok(())
    }

    fn wake(&self) {
        if !broken(Mutation::Wake) {
            self.wake_all();
        }
    }

    fn help(&self) -> bool {
        false
    }
}
