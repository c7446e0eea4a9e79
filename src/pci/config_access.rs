//! Configuration space on a caller's behalf, piece by piece (`vfio_config_do_rw`).

use super::buffer::{Sink, Source};
use super::config::piece;
use super::error::PciError;
use super::regs::*;
use super::state::Device;
use std::sync::Arc;

impl Device {
    pub(super) fn read_config<B: Sink + ?Sized>(&self, at: u64, into: &mut B) -> Result<usize, PciError> {
        let len = into.len();
        let start = self.inside(at, len)?;
        let mut done = 0;
        while done < len {
            let count = piece(start + done, len - done);
            let mut bytes = [0; 4];
            match &self.real.0 {
                // Without the lock: the kernel waits for a reset that is under way.
                Some(real) => real.read(start + done, &mut bytes[..count])?,
                None => self.config.lock().read(start + done, &mut bytes[..count]),
            }
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
        // The bit always reads as 0, and a real device is reset by `reset`, once the regions are revoked.
        let mut written = [0; 4];
        let written = &mut written[..bytes.len()];
        written.copy_from_slice(bytes);
        if let (Some(control), true) = (control, flr) {
            written[control - at] &= !EXP_DEVCTL_FLR.to_le_bytes()[1];
        }
        let command = covers(at, bytes.len(), COMMAND);
        if !command && !power {
            // This write does not affect memory: not even a reset that is under way holds it up.
            config.write(at, written);
        }
        drop(config);
        let done = match (command, power, flr) {
            (true, ..) => self.write_command(&self.take_turn()?, at, bytes),
            (_, true, _) => self.write_power_control(&self.take_turn()?, at, bytes),
            (.., true) => {
                self.function_level_reset(&self.take_turn()?);
                Ok(())
            }
            _ => Ok(()),
        };
        done.and(Ok(self.config.lock().take_failed()?))
    }
}
