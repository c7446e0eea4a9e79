//! The command register, and every change of what a device decodes: which writes revoke memory, and when the register shows
//! it (`vfio_basic_config_write`).

use super::config::ConfigSpace;
use super::error::PciError;
use super::regs::*;
use super::state::{Device, PciDevice, Reach, TurnGuard};
use crate::protocol::{Changes, Failed, State, WaitFor};
use crate::raw::signal::{self, SignalError};
use crate::region::group::GroupError;
use crate::region::shared::RegionShared;
use crate::sync::wait::Patience;
use std::sync::Arc;

impl Device {
    /// A write that leaves the memory bit clear revokes, whatever the bit was before; one that leaves it set gives back.
    pub(super) fn write_command(&self, turn: &TurnGuard<'_>, at: usize, bytes: &[u8]) -> Result<(), PciError> {
        let memory = {
            let config = self.config.lock();
            u16::from(config.preview(at, bytes, COMMAND)) & COMMAND_MEMORY != 0
        };
        if self.virtual_function && !memory {
            // The bit does not gate a virtual function's memory; the driver zaps its mappings all the same.
            self.zap(turn)?;
        }
        let mut reach = self.reach();
        reach.decoding = self.decodes(memory, self.config.lock().power_state());
        self.transition(turn, reach, |config| config.write(at, bytes))
    }

    /// Changes registers and, with them, whether mappings and calls reach memory: for every BAR, or for none. A register
    /// shows a revocation once it is complete, and memory comes back once the register says so.
    ///
    /// If that stays as it is, no lock is taken and no notifier is told.
    pub(super) fn transition(
        &self,
        _turn: &TurnGuard<'_>,
        to: Reach,
        write: impl Fn(&mut ConfigSpace),
    ) -> Result<(), PciError> {
        if to == self.reach() {
            write(&mut self.config.lock());
            return Ok(());
        }
        if !to.mapped() {
            // As in `Protocol::claim`, which is not told the goal: the members that are it already are locked too.
            let failed = |e: SignalError| GroupError { member: self.name.clone(), source: e.into() };
            signal::install().map_err(failed)?;
        }
        let wait = WaitFor::from(Patience::Forever);
        Ok(wait.again_if_held_up(|| self.change(to, &write, wait))?)
    }

    /// One try: on an error all is as before.
    fn change(
        &self,
        to: Reach,
        write: impl Fn(&mut ConfigSpace),
        wait: WaitFor,
    ) -> Result<(), Failed<Arc<RegionShared>>> {
        let Some(mut changes) = Changes::begin(&self.members, |_| None, wait)? else {
            // The device has no memory BAR.
            write(&mut self.config.lock());
            self.set_reach(to);
            return Ok(());
        };
        if to.mapped() {
            let mut config = self.config.lock();
            let before = config.clone();
            write(&mut config);
            let after = config.clone();
            drop(config);
            changes.settle(|_| Some(State::Enabled)).inspect_err(|_| self.config.lock().undo(&before, &after))?;
            self.set_reach(to);
        } else {
            changes.settle(|_| Some(State::Disabled))?;
            self.set_reach(to);
            write(&mut self.config.lock());
        }
        Ok(())
    }

    /// Drops every page-table entry of every mapping; the next accesses fault them in again.
    fn zap(&self, _turn: &TurnGuard<'_>) -> Result<(), PciError> {
        let ((), released) = Changes::reset(&self.members, Patience::Forever, || (), |_| None)?;
        Ok(released?)
    }
}

impl PciDevice {
    /// PCI_COMMAND, as the guest reads it.
    pub fn command(&self) -> u16 {
        self.device.config.lock().u16(COMMAND)
    }
}
