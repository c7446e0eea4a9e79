//! The thread that changes the regions, and that checks them by the owner's view meanwhile.

use super::random::Random;
use super::rig::{Device, Rig};
use super::window::Window;
use revocable_mmio::{GroupError, RevokeError};
use std::thread;
use std::time::{Duration, Instant};

/// Each process makes other choices. The threads race in any case.
pub(crate) fn seed() -> u64 {
    std::process::id().into()
}

/// The results of the changes.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) disable: Vec<Duration>,
    pub(crate) enable: Vec<Duration>,
    pub(crate) resets: u32,
    /// Changes of both regions that succeeded, and those that found a guard or a pin.
    pub(crate) together: u32,
    pub(crate) busy: u32,
}

pub(crate) struct Changer<'a> {
    rig: &'a Rig,
    random: Random,
    steps: u32,
    pub(crate) changes: Changes,
}

impl<'a> Changer<'a> {
    pub(crate) fn new(rig: &'a Rig) -> Self {
        Self { rig, random: Random::new(seed()), steps: 0, changes: Changes::default() }
    }

    pub(crate) fn steps(&self) -> u32 {
        self.steps
    }

    /// Makes one change there and back, after a pause. `Err`: a guarantee is broken.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        self.dwell();
        let device = &self.rig.devices[usize::from(self.random.below(4) == 0)];
        match self.random.below(16) {
            0 | 1 => self.reset(device),
            2 | 3 => self.both(),
            4 => self.impatiently(device),
            // Otherwise the next change would hide a lost wake.
            5 => self.rig.roll_call(),
            _ => self.one(device),
        }
    }

    fn one(&mut self, device: &Device) -> Result<(), String> {
        device.clock.turn(Window::Disabling);
        let since = Instant::now();
        let changed = device.region.disable().map_err(|e| format!("disable() failed: {e}"))?;
        self.changes.disable.push(since.elapsed());
        device.clock.turn(Window::Disabled);
        if !changed || device.region.is_enabled() {
            return Err("disable() did nothing".to_owned());
        }
        self.keep_disabled(&[device])?;
        self.enable(device)
    }

    fn enable(&mut self, device: &Device) -> Result<(), String> {
        device.clock.turn(Window::Enabling);
        let since = Instant::now();
        device.region.enable().map_err(|e| format!("enable() failed: {e}"))?;
        self.changes.enable.push(since.elapsed());
        device.clock.turn(Window::Enabled);
        Ok(())
    }

    /// Gives up if the region is busy. Nothing has changed then.
    fn impatiently(&mut self, device: &Device) -> Result<(), String> {
        device.clock.turn(Window::Disabling);
        let patience = Duration::from_micros(1 + self.random.next() % 2000);
        let tried = match self.random.below(2) {
            0 => device.region.try_disable(),
            _ => device.region.disable_timeout(patience),
        };
        match tried {
            Ok(true) => {
                device.clock.turn(Window::Disabled);
                self.keep_disabled(&[device])?;
                self.enable(device)
            }
            Err(RevokeError::Busy(_) | RevokeError::TimedOut { .. }) if device.region.is_enabled() => {
                device.clock.turn(Window::Enabled);
                Ok(())
            }
            other => Err(format!("an impatient disable(): {other:?}, enabled: {}", device.region.is_enabled())),
        }
    }

    fn reset(&mut self, device: &Device) -> Result<(), String> {
        device.clock.turn(Window::Resetting);
        self.changes.resets += 1;
        let looked = device
            .region
            .reset(|_| {
                device.clock.turn(Window::InReset);
                let looked = self.keep_disabled(&[device]);
                device.clock.turn(Window::Resetting);
                looked
            })
            .map_err(|e| format!("reset() failed: {e}"));
        device.clock.turn(Window::Enabled);
        looked?
    }

    /// G8: both, or neither.
    fn both(&mut self) -> Result<(), String> {
        let [a, b] = &self.rig.devices;
        let turn = |window| [a, b].map(|device| device.clock.turn(window));
        turn(Window::Disabling);
        let done = self.rig.group.try_disable();
        let enabled = [a, b].map(|device| device.region.is_enabled());
        match done {
            Ok(_) if enabled == [false; 2] => {
                turn(Window::Disabled);
                self.changes.together += 1;
                self.keep_disabled(&[a, b])?;
                turn(Window::Enabling);
                // Only guards and pins make a region busy, and a disabled region has none.
                self.rig.group.try_enable().map_err(|e| format!("G8: a disabled group is not enabled: {e}"))?;
                turn(Window::Enabled);
                if ![a, b].iter().all(|device| device.region.is_enabled()) {
                    return Err("G8: a group was enabled in part".to_owned());
                }
                Ok(())
            }
            Err(GroupError { source: RevokeError::Busy(_) | RevokeError::TimedOut { .. }, .. })
                if enabled == [true; 2] =>
            {
                turn(Window::Enabled);
                self.changes.busy += 1;
                Ok(())
            }
            other => Err(format!("G8: the group: {other:?}, enabled now: {enabled:?}")),
        }
    }

    /// Checks that nothing reaches these regions: puts forbidden stamps there for a while, and watches the workers'
    /// cells.
    fn keep_disabled(&mut self, devices: &[&Device]) -> Result<(), String> {
        let mut before = Vec::new();
        for device in devices {
            let (ledger, cycle) = (&device.ledger, device.clock.now().cycle());
            let cells = ledger.cells(&device.region)?;
            ledger.check_kept(&cells)?;
            ledger.forbid(&device.region, cycle)?;
            before.push(cells);
        }
        self.dwell();
        for (device, before) in devices.iter().zip(before) {
            let (ledger, cycle) = (&device.ledger, device.clock.now().cycle());
            let after = ledger.cells(&device.region)?;
            ledger.open(&device.region, cycle)?;
            ledger.check_unchanged(&before, &after, "unreachable")?;
        }
        Ok(())
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
