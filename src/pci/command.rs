//! Configuration space on a caller's behalf, and the command register: which writes revoke memory, and when the
//! register shows it (`vfio_config_do_rw`, `vfio_basic_config_write`).

use super::buffer::{Sink, Source};
use super::config::{ConfigSpace, piece};
use super::device::{Device, PciDevice, TurnGuard};
use super::error::PciError;
use super::regs::*;
use crate::protocol::{Changes, State};
use crate::sync::wait::Patience;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What decides whether memory is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// The device answers memory accesses.
    pub(super) decoding: bool,
    /// It is in runtime low power: mappings are revoked, calls are answered.
    pub(super) low_power: bool,
}

impl Reach {
    /// Through mappings.
    pub(super) fn mapped(self) -> bool {
        self.decoding && !self.low_power
    }

    pub(super) fn state(self) -> State {
        if self.mapped() { State::Enabled } else { State::Disabled }
    }
}

impl Device {
    pub(super) fn read_config<B: Sink + ?Sized>(&self, at: u64, into: &mut B) -> Result<usize, PciError> {
        let len = into.len();
        let start = self.inside(at, len)?;
        let mut done = 0;
        while done < len {
            let count = piece(start + done, len - done);
            let mut bytes = [0; 4];
            self.config.lock().read(start + done, &mut bytes[..count]);
            into.put(done, &bytes[..count]).map_err(|source| PciError::Buffer { at: done, source })?;
            done += count;
        }
        Ok(len)
    }

    pub(super) fn write_config<B: Source + ?Sized>(self: &Arc<Self>, at: u64, from: &B) -> Result<usize, PciError> {
        let len = from.len();
        let start = self.inside(at, len)?;
        let mut done = 0;
        while done < len {
            let count = piece(start + done, len - done);
            let mut bytes = [0; 4];
            // Before any lock is taken: the buffer may be in this device's own memory.
            from.get(done, &mut bytes[..count]).map_err(|source| PciError::Buffer { at: done, source })?;
            self.write_piece(start + done, &bytes[..count])?;
            done += count;
        }
        Ok(len)
    }

    fn inside(&self, at: u64, len: usize) -> Result<usize, PciError> {
        let size = self.config.lock().size();
        let start = usize::try_from(at).ok().filter(|start| start.checked_add(len).is_some_and(|end| end <= size));
        start.ok_or(PciError::ConfigRange { offset: at, len, size })
    }

    fn write_piece(self: &Arc<Self>, at: usize, bytes: &[u8]) -> Result<(), PciError> {
        let mut config = self.config.lock();
        let power = config.power.is_some_and(|cap| at == cap + PM_CTRL);
        // Device control's high byte.
        let control = config.express.map(|cap| cap + EXP_DEVCTL + 1);
        let control = control.filter(|control| covers(at, bytes.len(), *control));
        let flr = control.is_some_and(|control| u16::from(bytes[control - at]) & (EXP_DEVCTL_FLR >> 8) != 0);
        let command = covers(at, bytes.len(), COMMAND);
        if !command && !power {
            // Nothing about memory: not even a reset that is under way holds it up.
            config.write(at, bytes);
        }
        drop(config);
        match (command, power, flr) {
            (true, ..) => self.write_command(&self.take_turn()?, at, bytes),
            (_, true, _) => self.write_power_control(&self.take_turn()?, at, bytes),
            (.., true) => {
                self.function_level_reset(&self.take_turn()?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A write that leaves the memory bit clear revokes, whatever it was before; one that leaves it set gives back.
    fn write_command(&self, turn: &TurnGuard<'_>, at: usize, bytes: &[u8]) -> Result<(), PciError> {
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

    pub(super) fn reach(&self) -> Reach {
        // Relaxed: changed by the holder of the turn only, or looked at as a hint.
        Reach { decoding: self.decoding.load(Ordering::Relaxed), low_power: self.low_power.load(Ordering::Relaxed) }
    }

    /// `__vfio_pci_memory_enabled`.
    pub(super) fn decodes(&self, memory_bit: bool, power_state: u8) -> bool {
        power_state < super::power::D3HOT && (memory_bit || self.virtual_function)
    }

    /// The memory bit that a guest reads.
    pub(super) fn memory_bit(&self) -> bool {
        self.config.lock().u16(COMMAND) & COMMAND_MEMORY != 0
    }

    /// Changes registers and, with them, who reaches memory: every mapping of every BAR and every call, or none. A
    /// register shows a revocation when it is complete, and memory comes back when the register says so.
    ///
    /// Nothing is locked, and nobody told, if nothing changes for them.
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
        let Some(mut changes) = Changes::begin(&self.members, |_| None, Patience::Forever)? else {
            // No memory.
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

    /// The caller holds the write side of every member's memory lock.
    pub(super) fn set_reach(&self, reach: Reach) {
        self.decoding.store(reach.decoding, Ordering::Relaxed);
        self.low_power.store(reach.low_power, Ordering::Relaxed);
    }

    /// Drops every page-table entry of every mapping; they come back with the next access.
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
