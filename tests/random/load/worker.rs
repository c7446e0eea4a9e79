//! A worker: loads stamps and its own cells, stores to its own cells, and judges what each access met.

use super::hand::{Hand, NotDone};
use super::ledger::{is_forbidden, open};
use super::random::Random;
use super::rig::{Device, Tally};
use super::window::{Span, Window};
use revocable_mmio::OnDisabled;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub(crate) struct Worker<'a> {
    /// Among those of its region.
    pub(crate) number: usize,
    pub(crate) device: &'a Device,
    pub(crate) hand: Hand<'a>,
    pub(crate) tally: &'a Tally,
    pub(crate) random: Random,
    /// By page: a store of which nobody can say whether it reached the region, and which is to be looked at.
    pub(crate) doubtful: Vec<bool>,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Worker<'_> {
    /// A burst of accesses, and a pause: so many threads that never paused would keep each change waiting for a processor,
    /// and there would be few of them.
    pub(crate) fn burst(&mut self) -> Result<(), String> {
        for _ in 0..self.random.below(48) {
            self.step()?;
        }
        thread::sleep(Duration::from_micros(self.random.next() % 8192));
        Ok(())
    }

    /// One access, at random. `Err`: a guarantee is broken.
    fn step(&mut self) -> Result<(), String> {
        let page = self.random.below(self.device.ledger.pages());
        if !self.hand.reaches(self.device.ledger.stamp_at(page)) {
            return Ok(());
        }
        let done = match self.random.below(8) {
            0..=2 => self.look_at_stamp(page),
            3 | 4 => self.look_at_cell(page),
            _ if self.doubtful[page] || !self.hand.is_writable() => self.look_at_cell(page),
            _ => self.store(page),
        };
        done.map_err(|e| format!("{e} [worker {} of its region, {:?}]", self.number, self.hand.way))
    }

    fn timed<R>(&mut self, access: impl FnOnce(&Hand<'_>, u64) -> R) -> (R, Span) {
        let turn = self.random.next() >> 32;
        let from = self.device.clock.now();
        let done = access(&self.hand, turn);
        (done, Span { from, to: self.device.clock.now() })
    }

    /// A load's value, if it reached the memory.
    fn load(&mut self, offset: usize) -> Result<Option<(u64, Span)>, String> {
        let (loaded, span) = self.timed(|hand, turn| hand.load(offset, turn));
        let value = self.judge(loaded, span, offset, "load")?;
        let ones = self.hand.way.is_lost(&self.device.case) && !span.never_disabled();
        match value {
            Some(value) if !(ones && value == u64::MAX) => {
                count(&self.tally.reached);
                Ok(Some((value, span)))
            }
            _ => {
                count(&self.tally.refused);
                Ok(None)
            }
        }
    }

    /// Was it right that this access went through, or did not?
    fn judge<T>(&self, done: Result<T, NotDone>, span: Span, offset: usize, what: &str) -> Result<Option<T>, String> {
        let (way, case) = (self.hand.way, &self.device.case);
        let inside = span.inside();
        match done {
            Err(NotDone::Wrong(e)) => Err(format!("G3: a {what} at {offset:#x} met an error of its own: {e}")),
            Err(NotDone::Refused) if span.never_disabled() && !way.refused_by_busy(case) => {
                Err(format!("G1: a {what} at {offset:#x} was refused though the region was never disabled meanwhile"))
            }
            Err(NotDone::Refused) if !way.may_be_refused(case) => {
                Err(format!("policy {:?}: a {what} at {offset:#x} was refused", case.policy))
            }
            Err(NotDone::Refused | NotDone::WouldBlock) => Ok(None),
            Ok(_) if inside == Some(Window::InReset) => {
                Err(format!("G1: a {what} at {offset:#x} went through while the region was being reset"))
            }
            Ok(_) if inside == Some(Window::Disabled) && !way.is_lost(case) => {
                Err(format!("G1: a {what} at {offset:#x} went through while the region was disabled"))
            }
            Ok(value) => Ok(Some(value)),
        }
    }

    fn look_at_stamp(&mut self, page: usize) -> Result<(), String> {
        let offset = self.device.ledger.stamp_at(page);
        let oldest = self.device.stamped.load(Ordering::SeqCst);
        let Some((stamp, span)) = self.load(offset)? else { return Ok(()) };
        if is_forbidden(stamp) {
            return Err(format!(
                "G1: a load at {offset:#x} saw {stamp:#x}, which stood there only while nothing may reach the region"
            ));
        }
        if span.inside() == Some(Window::Disabled) {
            return Err(format!("G1: a load at {offset:#x} saw {stamp:#x} while the region was disabled"));
        }
        let cycles = oldest..=span.to.cycle();
        if cycles.clone().any(|cycle| stamp == open(cycle)) {
            return Ok(());
        }
        Err(format!("G2: a load at {offset:#x} saw {stamp:#x}, not the stamp of a cycle in {cycles:?}"))
    }

    fn look_at_cell(&mut self, page: usize) -> Result<(), String> {
        let (device, mask) = (self.device, self.hand.way.store_mask());
        let offset = device.ledger.cell_at(self.number, page);
        let Some((cell, span)) = self.load(offset)? else { return Ok(()) };
        let acked = device.ledger.acked(self.number, page);
        let next = acked.wrapping_add(1);
        let found = cell & mask;
        // A raw store to all-ones may be read back until `enable()`.
        let lost_store = device.case.policy == OnDisabled::AllOnes && !span.never_disabled();
        let maybe = self.doubtful[page] || lost_store;
        if found != acked & mask && !(maybe && found == next & mask) {
            return Err(format!("G2: worker {} stored {acked:#x} at {offset:#x} and found {cell:#x}", self.number));
        }
        if self.doubtful[page] && span.never_disabled() {
            self.doubtful[page] = false;
            device.ledger.ack(self.number, page, if found == next & mask { next } else { acked });
        }
        Ok(())
    }

    fn store(&mut self, page: usize) -> Result<(), String> {
        let (device, number) = (self.device, self.number);
        let offset = device.ledger.cell_at(number, page);
        let value = device.ledger.acked(number, page).wrapping_add(1);
        let (stored, span) = self.timed(|hand, turn| hand.store(offset, value, turn));
        if self.judge(stored, span, offset, "store")?.is_none() {
            count(&self.tally.refused);
            return Ok(());
        }
        if !self.hand.way.is_lost(&device.case) || span.never_disabled() {
            count(&self.tally.reached);
            device.ledger.ack(number, page, value);
        } else if span.inside() == Some(Window::Disabled) {
            // Dropped, as an Unsupported Request is.
            count(&self.tally.refused);
        } else {
            self.doubtful[page] = true;
        }
        Ok(())
    }
}
