//! The command register, and every change of what a device decodes: which writes revoke memory, when the register shows
//! it (`vfio_basic_config_write`), and what follows it through the guest's address space.

use super::command_hook::Command;
use super::config::ConfigSpace;
use super::decode::Steps;
use super::error::PciError;
use super::regs::*;
use super::space::Space;
use super::state::{Device, DeviceTurn, PciDevice, Reach};
use crate::protocol::{Changes, State, WaitFor};
use crate::raw::signal::{self, SignalError};
use crate::region::group::GroupError;
use crate::sync::wait::Patience;
use crate::users::guarded;

impl Device {
    /// A write of registers, with all that follows from it.
    pub(super) fn update(
        &self,
        turn: &DeviceTurn<'_>,
        patience: Patience,
        write: impl Fn(&mut ConfigSpace),
    ) -> Result<(), PciError> {
        self.transition(turn, patience, self.reach().low_power, write)
    }

    /// Changes registers and, with them, whether mappings and calls reach memory (for every BAR, or for none), and where BARs
    /// are decoded. A register shows a revocation once it is complete, and memory comes back once the register says so.
    ///
    /// If what is reachable stays as it is, no lock is taken and no notifier is told.
    ///
    /// On an error everything is as before, with one exception: a place or DMA that is refused, or a notifier that fails
    /// when memory is back, undoes nothing.
    pub(super) fn transition(
        &self,
        turn: &DeviceTurn<'_>,
        patience: Patience,
        low_power: bool,
        write: impl Fn(&mut ConfigSpace),
    ) -> Result<(), PciError> {
        let (was, is, steps) = {
            let config = self.config.lock();
            let mut written = config.aside();
            write(&mut written);
            (config.command(), written.command(), config.decoded.steps(&written.decode(self.ungated())))
        };
        if patience == Patience::Never && self.dma.is_some() && is.difference(was).contains(Command::MASTER) {
            // Memory is mapped for DMA then, which waits for regions that are busy.
            return Err(PciError::WouldBlock { space: Space::Config, offset: COMMAND as u64 });
        }
        let from = self.reach();
        let to = Reach { decoding: steps.decodes_memory(), low_power };
        if from != to && !to.mapped() {
            self.revoke(turn, to, patience)?;
        }
        steps.leave().rev().for_each(|place| self.followers.remove(&place));
        // No DMA once the register says so, and none before.
        let mut mastered = if was.difference(is).contains(Command::MASTER) {
            self.set_master(false, Patience::Forever)
        } else {
            Ok(())
        };
        let ((before, after, steps), told) = self.change_registers(|config| {
            let before = config.clone();
            write(config);
            // Once more: while memory is off, BARs are written without the turn.
            let steps = config.decoded.steps(&config.decode(self.ungated()));
            config.decoded.take(&steps);
            (before, config.clone(), steps)
        });
        let entered = self.enter(&steps);
        if is.difference(was).contains(Command::MASTER) {
            mastered = self.set_master(true, patience);
            if patience != Patience::Forever && matches!(mastered, Err(PciError::Busy { .. })) {
                let _ = self.set_master(false, Patience::Forever);
                self.take_back(&before, &after, &steps);
                if from != to && !to.mapped() {
                    // It was revoked just now, and the turn keeps others from changing it: nothing is waited for.
                    self.restore(turn, from, Patience::Forever)??;
                }
                return mastered;
            }
        }
        let mut restored = Ok(());
        if from != to && to.mapped() {
            self.followers.settle();
            match self.restore(turn, to, patience) {
                Ok(done) => restored = done,
                Err(e) => {
                    self.take_back(&before, &after, &steps);
                    let _ = if was == is {
                        Ok(())
                    } else {
                        self.set_master(was.contains(Command::MASTER), Patience::Forever)
                    };
                    return Err(e);
                }
            }
        }
        if let (true, Some(hook)) = (was != is, &self.on_command) {
            let _ = guarded(|| hook(was, is));
        }
        // A real device that did not take the write is the least important error.
        entered.and(mastered).and(restored).and(told.map_err(PciError::from))
    }

    fn set_master(&self, master: bool, patience: Patience) -> Result<(), PciError> {
        self.dma.as_ref().map_or(Ok(()), |dma| dma.set_bus_master_within(master, patience))
    }

    /// Enters the places of `steps`, all that can be; returns the first error.
    fn enter(&self, steps: &Steps) -> Result<(), PciError> {
        let mut entered = Ok(());
        for place in steps.enter() {
            if let Err(refused) = self.followers.insert(&place) {
                self.config.lock().decoded.refuse(place.space);
                entered = entered.and(Err(refused));
            }
        }
        entered
    }

    /// Takes a write back whose memory could not be given back.
    fn take_back(&self, before: &ConfigSpace, after: &ConfigSpace, steps: &Steps) {
        steps.enter().rev().for_each(|place| self.followers.remove(&place));
        // The error that the caller gets is that of the memory.
        let ((), _) = self.change_registers(|config| {
            config.undo(before, after);
            config.decoded = before.decoded.clone();
        });
        // Places that were left for good reason, for which there is none any more: of ports, say.
        for place in steps.leave() {
            if self.followers.insert(&place).is_err() {
                self.config.lock().decoded.refuse(place.space);
            }
        }
    }

    fn revoke(&self, turn: &DeviceTurn<'_>, to: Reach, patience: Patience) -> Result<(), PciError> {
        // As in `Protocol::claim`, which is not told the goal: the members that are it already are locked too.
        let failed = |e: SignalError| GroupError { member: self.name.clone(), source: e.into() };
        signal::install().map_err(failed)?;
        self.change(turn, State::Disabled, to, patience)?
    }

    /// Gives the memory back. The inner error is of what could not follow it.
    fn restore(&self, turn: &DeviceTurn<'_>, to: Reach, patience: Patience) -> Result<Result<(), PciError>, PciError> {
        self.change(turn, State::Enabled, to, patience)
    }

    fn change(
        &self,
        turn: &DeviceTurn<'_>,
        state: State,
        to: Reach,
        patience: Patience,
    ) -> Result<Result<(), PciError>, PciError> {
        let wait = WaitFor::from(patience);
        if state == State::Disabled {
            turn.end_removed(wait)?;
        }
        let members = turn.members();
        let ended = wait.again_if_held_up(|| {
            let Some(mut changes) = Changes::begin(&members, |_| None, wait)? else {
                // The device has no memory BAR.
                self.set_reach(to);
                return Ok(Ok(()));
            };
            changes.settle(|_| Some(state))?;
            // Under the locks, so that calls and mappings reach memory together.
            self.set_reach(to);
            Ok(changes.end())
        });
        Ok(ended?.map_err(PciError::from))
    }

    /// Drops every page-table entry of every mapping; the next accesses fault them in again.
    pub(super) fn zap(&self, turn: &DeviceTurn<'_>, patience: Patience) -> Result<(), PciError> {
        turn.end_removed(patience.into())?;
        let ((), released) = Changes::reset(&turn.members(), patience, || (), |_| None)?;
        Ok(released?)
    }
}

impl ConfigSpace {
    fn command(&self) -> Command {
        Command::from_bits_retain(self.u16(COMMAND))
    }
}

impl PciDevice {
    /// PCI_COMMAND, as the guest reads it.
    pub fn command(&self) -> u16 {
        self.device.config.lock().u16(COMMAND)
    }
}
