//! The thread that disables, enables and resets the region, and that checks it by the owner's view meanwhile.

use super::ledger::Ledger;
use super::random::Random;
use super::window::{Clock, Window};
use crate::spread::Spread;
use revocable_mmio::Region;
use std::thread;
use std::time::{Duration, Instant};

pub(super) struct Changer<'a> {
    pub(super) region: &'a Region,
    pub(super) clock: &'a Clock,
    pub(super) ledger: &'a Ledger,
    pub(super) random: Random,
    pub(super) disables: &'a Spread,
    pub(super) enables: &'a Spread,
}

impl Changer<'_> {
    /// Makes one change or reset, after a pause. `Err`: a guarantee is broken.
    pub(super) fn step(&mut self) -> Result<(), String> {
        self.dwell();
        if self.random.below(8) == 0 { self.reset() } else { self.revoke_and_restore() }
    }

    fn revoke_and_restore(&mut self) -> Result<(), String> {
        self.clock.turn(Window::Disabling);
        let since = Instant::now();
        let changed = self.region.disable().map_err(|e| format!("disable() failed: {e}"))?;
        self.disables.record(since.elapsed());
        self.clock.turn(Window::Disabled);
        let looked = if changed { self.while_unreachable("disabled") } else { Err("disable() did nothing".to_owned()) };
        self.clock.turn(Window::Enabling);
        // After a violation too, so that waiting threads end.
        let since = Instant::now();
        let enabled = self.region.enable().map_err(|e| format!("enable() failed: {e}"));
        self.enables.record(since.elapsed());
        self.clock.turn(Window::Enabled);
        looked.and(enabled.map(drop))
    }

    fn reset(&mut self) -> Result<(), String> {
        self.clock.turn(Window::Resetting);
        let region = self.region;
        let looked = region
            .reset(|_| {
                self.clock.turn(Window::InReset);
                let looked = self.while_unreachable("being reset");
                self.clock.turn(Window::Resetting);
                looked
            })
            .map_err(|e| format!("reset() failed: {e}"));
        self.clock.turn(Window::Enabled);
        looked?
    }

    /// Checks that nothing reaches the region: puts forbidden stamps there for a while, and watches the workers' cells.
    fn while_unreachable(&mut self, what: &str) -> Result<(), String> {
        let cycle = self.clock.now().cycle();
        let before = self.ledger.cells(self.region)?;
        self.ledger.check_kept(&before)?;
        self.ledger.forbid(self.region, cycle)?;
        self.dwell();
        let after = self.ledger.cells(self.region)?;
        self.ledger.open(self.region, cycle)?;
        self.ledger.check_unchanged(&before, &after, what)
    }

    /// Pauses for up to some milliseconds, mostly short.
    fn dwell(&mut self) {
        match self.random.below(8) {
            0 => {}
            1 => thread::sleep(Duration::from_millis(1 + self.random.next() % 8)),
            _ => thread::sleep(Duration::from_micros(1 + self.random.next() % 1000)),
        }
    }
}
