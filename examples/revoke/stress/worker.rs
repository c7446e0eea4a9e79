//! A worker: loads stamps and its own cells, stores to its own cells, and judges each access.

use super::hand::{Hand, NotDone};
use super::ledger::{Ledger, is_forbidden, open};
use super::random::Random;
use super::window::{Clock, Span, Window};
use revocable_mmio::OnDisabled;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a worker has done, for everyone to look at.
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
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(super) struct Worker<'a> {
    pub(super) number: usize,
    pub(super) hand: Hand,
    pub(super) clock: &'a Clock,
    pub(super) ledger: &'a Ledger,
    pub(super) tally: &'a Tally,
    pub(super) random: Random,
    /// By page: whether the last store may have reached the region or not, so that the cell has to be looked at.
    pub(super) doubtful: Vec<bool>,
}

/// What a load came to.
enum Loaded {
    Value(u64),
    /// Refused, or all-ones because the region was disabled.
    Nothing,
}

impl Worker<'_> {
    /// One access, at random. `Err`: a guarantee is broken.
    pub(super) fn step(&mut self) -> Result<(), String> {
        let page = self.random.below(self.ledger.pages());
        let done = match self.random.below(4) {
            0 | 1 => self.look_at_stamp(page),
            2 => self.look_at_cell(page),
            _ if self.doubtful[page] => self.look_at_cell(page),
            _ => self.store(page),
        };
        done.map_err(|e| format!("{e} [worker {}, {}]", self.number, self.hand.way.name()))
    }

    fn timed<R>(&self, access: impl FnOnce(&Hand) -> R) -> (R, Span) {
        let from = self.clock.now();
        let done = access(&self.hand);
        (done, Span { from, to: self.clock.now() })
    }

    /// Judges everything about a load but the value.
    fn load(&self, offset: usize) -> Result<(Loaded, Span), String> {
        let (loaded, span) = self.timed(|hand| hand.load(offset));
        let value = self.judge(loaded, span, offset, "load")?;
        let ones = self.hand.way.policy() == OnDisabled::AllOnes && !span.never_disabled();
        Ok(match value {
            Some(value) if !(ones && value == u64::MAX) => {
                count(&self.tally.reached);
                (Loaded::Value(value), span)
            }
            _ => {
                count(&self.tally.refused);
                (Loaded::Nothing, span)
            }
        })
    }

    /// Was it right that this access went through, or did not?
    fn judge<T>(&self, done: Result<T, NotDone>, span: Span, offset: usize, what: &str) -> Result<Option<T>, String> {
        let inside = span.inside();
        if matches!(inside, Some(Window::Disabled | Window::InReset)) {
            count(&self.tally.inside_disabled);
        }
        match done {
            Err(NotDone::Wrong(e)) => Err(format!("G3: a {what} at {offset:#x} met an error of its own: {e}")),
            Err(NotDone::Refused) if span.never_disabled() => {
                Err(format!("G1: a {what} at {offset:#x} was refused though the region was never disabled meanwhile"))
            }
            Err(NotDone::Refused) => Ok(None),
            Ok(_) if inside == Some(Window::InReset) => {
                Err(format!("G1: a {what} at {offset:#x} went through while the region was being reset"))
            }
            Ok(_) if inside == Some(Window::Disabled) && self.hand.way.policy() != OnDisabled::AllOnes => {
                Err(format!("G1: a {what} at {offset:#x} went through while the region was disabled"))
            }
            Ok(value) => Ok(Some(value)),
        }
    }

    fn look_at_stamp(&self, page: usize) -> Result<(), String> {
        let offset = self.ledger.stamp_at(page);
        let (Loaded::Value(stamp), span) = self.load(offset)? else { return Ok(()) };
        if is_forbidden(stamp) {
            return Err(format!(
                "G1: a load at {offset:#x} saw {stamp:#x}, which stood there only while nothing may reach the region"
            ));
        }
        if span.inside() == Some(Window::Disabled) {
            return Err(format!("G1: a load at {offset:#x} saw {stamp:#x} while the region was disabled"));
        }
        // Until `enable()` of a cycle returns, the stamp of the cycle before may have been there.
        let oldest = if span.never_disabled() { span.from.cycle() } else { span.from.cycle().saturating_sub(1) };
        if (oldest..=span.to.cycle()).any(|cycle| stamp == open(cycle)) {
            return Ok(());
        }
        let cycles = oldest..=span.to.cycle();
        Err(format!("G2: a load at {offset:#x} saw {stamp:#x}, not the stamp of cycle {cycles:?}"))
    }

    fn look_at_cell(&mut self, page: usize) -> Result<(), String> {
        let (offset, mask) = (self.ledger.cell_at(self.number, page), self.hand.way.store_mask());
        let (Loaded::Value(cell), span) = self.load(offset)? else { return Ok(()) };
        let acked = self.ledger.acked(self.number, page);
        let next = acked.wrapping_add(1);
        let found = cell & mask;
        // A raw store to all-ones may be read back until `enable()`.
        let lost_store = self.hand.way.policy() == OnDisabled::AllOnes && !span.never_disabled();
        let maybe = self.doubtful[page] || lost_store;
        if found != acked & mask && !(maybe && found == next & mask) {
            return Err(format!("G2: worker {} stored {acked:#x} at {offset:#x} and found {cell:#x}", self.number));
        }
        if self.doubtful[page] && span.never_disabled() {
            self.doubtful[page] = false;
            self.ledger.ack(self.number, page, if found == next & mask { next } else { acked });
        }
        Ok(())
    }

    fn store(&mut self, page: usize) -> Result<(), String> {
        let offset = self.ledger.cell_at(self.number, page);
        let value = self.ledger.acked(self.number, page).wrapping_add(1);
        let (stored, span) = self.timed(|hand| hand.store(offset, value));
        if self.judge(stored, span, offset, "store")?.is_none() {
            count(&self.tally.refused);
            return Ok(());
        }
        if self.hand.way.policy() != OnDisabled::AllOnes || span.never_disabled() {
            count(&self.tally.reached);
            self.ledger.ack(self.number, page, value);
        } else if span.inside() == Some(Window::Disabled) {
            // Dropped, as an Unsupported Request is.
            count(&self.tally.refused);
        } else {
            self.doubtful[page] = true;
        }
        Ok(())
    }
}
