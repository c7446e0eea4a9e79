//! A worker: loads stamps and its own cells, stores to its own cells, and judges each access. The load test uses it too.

use super::ledger::{Ledger, cycle_of, is_forbidden};
use super::random::Random;
use super::window::{Clock, Span, Window};
use nix::errno::Errno;
use revocable_mmio::AccessError;
use std::sync::atomic::{AtomicU64, Ordering};

/// A way to access a region.
pub(super) trait Touch {
    fn name(&self) -> String;
    fn terms(&self) -> Terms;

    /// The bits of a cell that a store changes.
    fn store_mask(&self) -> u64;

    /// True if this byte of the region can be accessed at all.
    fn reaches(&self, _offset: usize) -> bool {
        true
    }

    fn is_writable(&self) -> bool {
        true
    }

    /// `turn` is a pseudo-random number, for a way that has several forms.
    fn load(&self, offset: usize, turn: u64) -> Result<u64, NotDone>;
    fn store(&self, offset: usize, value: u64, turn: u64) -> Result<(), NotDone>;
}

/// The outcomes that a way's accesses may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// A disabled region may refuse them.
    pub(super) is_refused: bool,
    /// A busy region may refuse them, though it is enabled.
    pub(super) is_refused_by_busy: bool,
    /// They never wait.
    pub(super) is_nowait: bool,
    /// A disabled region drops their stores, and returns all-ones to their loads.
    pub(super) is_lost: bool,
    /// They are another process's: a reset refuses them as a disabled region does. Where that returns all-ones, loads
    /// during a change may get zeroes, or words that are half ones.
    pub(super) is_peer: bool,
}

/// Why an access did not go through.
pub(super) enum NotDone {
    /// The region is disabled.
    Refused,
    /// It would have waited.
    WouldBlock,
    /// For a reason that no rule allows.
    Wrong(String),
}

impl From<AccessError> for NotDone {
    fn from(e: AccessError) -> Self {
        match e {
            AccessError::Disabled { .. } => NotDone::Refused,
            AccessError::WouldBlock { .. } => NotDone::WouldBlock,
            other => NotDone::Wrong(other.to_string()),
        }
    }
}

impl From<Errno> for NotDone {
    fn from(e: Errno) -> Self {
        if e == Errno::EFAULT { NotDone::Refused } else { NotDone::Wrong(e.to_string()) }
    }
}

/// The counts of a worker, which every thread may read.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Accesses that reached the memory.
    pub(super) reached: AtomicU64,
    /// Accesses that were refused, or got all-ones.
    pub(super) refused: AtomicU64,
    /// Accesses that began and ended in one window in which nothing may be reached.
    pub(super) inside_disabled: AtomicU64,
}

fn count(counter: &AtomicU64) {
    // Relaxed: for reports.
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(super) struct Worker<'a, H> {
    pub(super) number: usize,
    pub(super) hand: H,
    pub(super) clock: &'a Clock,
    pub(super) ledger: &'a Ledger,
    pub(super) tally: &'a Tally,
    pub(super) random: Random,
    /// By page: true if the last store may or may not have reached the region, so that the cell has to be read.
    pub(super) doubtful: Vec<bool>,
}

impl<H: Touch> Worker<'_, H> {
    /// One access, at random. `Err`: a guarantee is broken.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let page = self.random.below(self.ledger.pages());
        if !self.hand.reaches(self.ledger.stamp_at(page)) {
            return Ok(());
        }
        let done = match self.random.below(8) {
            0..=2 => self.look_at_stamp(page),
            3 | 4 => self.look_at_cell(page),
            _ if self.doubtful[page] || !self.hand.is_writable() => self.look_at_cell(page),
            _ => self.store(page),
        };
        done.map_err(|e| format!("{e} [worker {}, {}]", self.number, self.hand.name()))
    }

    fn timed<R>(&mut self, access: impl FnOnce(&H, u64) -> R) -> (R, Span) {
        let turn = self.random.next() >> 32;
        let from = self.clock.now();
        let done = access(&self.hand, turn);
        (done, Span { from, to: self.clock.now() })
    }

    /// True if the region gave its memory to such accesses, or made them wait, all the while.
    fn never_revoked(&self, span: Span) -> bool {
        if self.hand.terms().is_peer { span.inside() == Some(Window::Enabled) } else { span.never_disabled() }
    }

    /// A load's value, if it reached the memory.
    fn load(&mut self, offset: usize) -> Result<Option<(u64, Span)>, String> {
        let (loaded, span) = self.timed(|hand, turn| hand.load(offset, turn));
        let value = self.judge(loaded, span, offset, "load")?;
        let terms = self.hand.terms();
        let ones = terms.is_lost && !self.never_revoked(span);
        let torn = ones && terms.is_peer && !matches!(span.inside(), Some(Window::Disabled | Window::InReset));
        let value = value.filter(|value| !(ones && *value == u64::MAX || torn && !is_forbidden(*value)));
        count(if value.is_some() { &self.tally.reached } else { &self.tally.refused });
        Ok(value.map(|value| (value, span)))
    }

    /// Judges whether this access was right to go through, or not to.
    fn judge<T>(&self, done: Result<T, NotDone>, span: Span, offset: usize, what: &str) -> Result<Option<T>, String> {
        let (terms, inside) = (self.hand.terms(), span.inside());
        if matches!(inside, Some(Window::Disabled | Window::InReset)) {
            count(&self.tally.inside_disabled);
        }
        match done {
            Err(NotDone::Wrong(e)) => Err(format!("G3: a {what} at {offset:#x} failed for another reason: {e}")),
            Err(NotDone::Refused) if self.never_revoked(span) && !terms.is_refused_by_busy => {
                Err(format!("G1: a {what} at {offset:#x} was refused though the region was never disabled meanwhile"))
            }
            Err(NotDone::Refused) if !terms.is_refused => Err(format!("policy: a {what} at {offset:#x} was refused")),
            Err(NotDone::WouldBlock) if !terms.is_nowait => {
                Err(format!("G6: a {what} at {offset:#x} did not wait, though it may"))
            }
            Err(NotDone::Refused | NotDone::WouldBlock) => Ok(None),
            Ok(_) if inside == Some(Window::InReset) && !(terms.is_peer && terms.is_lost) => {
                Err(format!("G1: a {what} at {offset:#x} went through while the region was being reset"))
            }
            Ok(_) if inside == Some(Window::Disabled) && !terms.is_lost => {
                Err(format!("G1: a {what} at {offset:#x} went through while the region was disabled"))
            }
            Ok(value) => Ok(Some(value)),
        }
    }

    fn look_at_stamp(&mut self, page: usize) -> Result<(), String> {
        let offset = self.ledger.stamp_at(page);
        let oldest = self.ledger.opened();
        let Some((stamp, span)) = self.load(offset)? else { return Ok(()) };
        if is_forbidden(stamp) {
            return Err(format!(
                "G1: a load at {offset:#x} saw {stamp:#x}, which stood there only while nothing may reach the region"
            ));
        }
        if matches!(span.inside(), Some(Window::Disabled | Window::InReset)) {
            return Err(format!("G1: a load at {offset:#x} saw {stamp:#x} while the region was disabled"));
        }
        let cycles = oldest..=span.to.cycle();
        if cycle_of(stamp).is_some_and(|cycle| cycles.contains(&cycle)) {
            return Ok(());
        }
        Err(format!("G2: a load at {offset:#x} saw {stamp:#x}, not the stamp of a cycle in {cycles:?}"))
    }

    fn look_at_cell(&mut self, page: usize) -> Result<(), String> {
        let (offset, mask) = (self.ledger.cell_at(self.number, page), self.hand.store_mask());
        let Some((cell, span)) = self.load(offset)? else { return Ok(()) };
        let acked = self.ledger.acked(self.number, page);
        let next = acked.wrapping_add(1);
        let found = cell & mask;
        // A raw store to all-ones may be read back until `enable()`.
        let lost_store = self.hand.terms().is_lost && !self.never_revoked(span);
        let maybe = self.doubtful[page] || lost_store;
        if found != acked & mask && !(maybe && found == next & mask) {
            return Err(format!("G2: worker {} stored {acked:#x} at {offset:#x} and found {cell:#x}", self.number));
        }
        if self.doubtful[page] && self.never_revoked(span) {
            self.doubtful[page] = false;
            self.ledger.ack(self.number, page, if found == next & mask { next } else { acked });
        }
        Ok(())
    }

    fn store(&mut self, page: usize) -> Result<(), String> {
        let offset = self.ledger.cell_at(self.number, page);
        let value = self.ledger.acked(self.number, page).wrapping_add(1);
        let (stored, span) = self.timed(|hand, turn| hand.store(offset, value, turn));
        if self.judge(stored, span, offset, "store")?.is_none() {
            count(&self.tally.refused);
            return Ok(());
        }
        if !self.hand.terms().is_lost || self.never_revoked(span) {
            count(&self.tally.reached);
            self.ledger.ack(self.number, page, value);
        } else if matches!(span.inside(), Some(Window::Disabled | Window::InReset)) {
            // Dropped, as an Unsupported Request is.
            count(&self.tally.refused);
        } else {
            self.doubtful[page] = true;
        }
        Ok(())
    }
}
