//! Configuration space on a caller's behalf, piece by piece (`vfio_config_do_rw`).

use super::bar::Wait;
use super::buffer::{Sink, Source};
use super::config::{ConfigSpace, piece, touches_bars};
use super::error::PciError;
use super::regs::*;
use super::space::Space;
use super::state::{Device, DeviceTurn};
use crate::protocol::fault::FaultFlags;
use crate::sync::wait::Patience;
use std::sync::Arc;

/// How long a write to configuration space may take for a caller who waits like this.
pub(super) fn patience(wait: Wait<'_>) -> Result<Patience, PciError> {
    let Wait::As(caller) = wait else { return Ok(Patience::Forever) };
    let flags = caller.flags.validate()?;
    Ok(if flags.contains(FaultFlags::RETRY_NOWAIT) { Patience::Never } else { Patience::Forever })
}

/// What makes a write to configuration space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    Caller,
    /// The device's thread, a write that was begun.
    Thread,
}

impl Writer {
    fn write(self, config: &mut ConfigSpace, at: usize, bytes: &[u8]) {
        config.write(at, bytes);
        self.has_made(config, bytes);
    }

    /// Counted in one step with the registers' change, so that a saved state has each byte once.
    fn has_made(self, config: &mut ConfigSpace, bytes: &[u8]) {
        if self == Writer::Thread {
            config.made_of_begun += bytes.len();
        }
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

    pub(super) fn write_config<B: Source + ?Sized>(
        self: &Arc<Self>,
        at: u64,
        from: &B,
        patience: Patience,
        by: Writer,
    ) -> Result<usize, PciError> {
        let len = from.len();
        let start = self.inside(at, len)?;
        let mut done = 0;
        while done < len {
            let count = piece(start + done, len - done);
            let mut bytes = [0; 4];
            // Before any lock is taken: the buffer may be in this device's own memory.
            from.get(done, &mut bytes[..count]).map_err(|source| PciError::Buffer { at: done, source })?;
            self.write_piece(start + done, &bytes[..count], patience, by)?;
            done += count;
        }
        Ok(len)
    }

    pub(super) fn inside(&self, at: u64, len: usize) -> Result<usize, PciError> {
        let size = self.config_size;
        let start = usize::try_from(at).ok().filter(|start| start.checked_add(len).is_some_and(|end| end <= size));
        start.ok_or(PciError::ConfigRange { offset: at, len, size })
    }

    fn write_piece(self: &Arc<Self>, at: usize, bytes: &[u8], patience: Patience, by: Writer) -> Result<(), PciError> {
        let write_if_quiet = |config: &mut ConfigSpace| {
            let quiet = self.is_quiet(config, at, bytes);
            if quiet {
                by.write(config, at, bytes);
            }
            quiet
        };
        // Not even a reset that is under way holds it up.
        if let (true, told) = self.change_registers(write_if_quiet) {
            return Ok(told?);
        }
        let would_wait = |e: PciError| match (patience, e) {
            (Patience::Never, e) if e.is_busy() => PciError::WouldBlock { space: Space::Config, offset: at as u64 },
            (_, e) => e,
        };
        let turn = self.take_turn(patience).map_err(would_wait)?;
        self.write_loud(&turn, at, bytes, patience, by).map_err(would_wait)
    }

    /// True if a write has no effect but on the bytes.
    pub(super) fn is_quiet(&self, config: &ConfigSpace, at: usize, bytes: &[u8]) -> bool {
        let registers = covers(at, bytes.len(), COMMAND) || covers(at, bytes.len(), COMMAND + 1);
        let moves = || !config.steps_of_bars(at, bytes, self.ungated()).is_nothing();
        let loud = registers || config.is_power_control(at) || config.begins_reset(at, bytes);
        !(loud || touches_bars(at, bytes.len()) && moves())
    }

    fn write_loud(
        self: &Arc<Self>,
        turn: &DeviceTurn<'_>,
        at: usize,
        bytes: &[u8],
        patience: Patience,
        by: Writer,
    ) -> Result<(), PciError> {
        let (zaps, resets) = {
            let config = self.config.lock();
            let stays = u16::from(config.preview(at, bytes, COMMAND)) & COMMAND_MEMORY != 0;
            (covers(at, bytes.len(), COMMAND) && !stays, config.begins_reset(at, bytes))
        };
        if resets && patience == Patience::Never && self.reset.is_some() {
            return Err(PciError::WouldBlock { space: Space::Config, offset: at as u64 });
        }
        if self.virtual_function && zaps {
            // The bit does not gate a virtual function's memory; the driver zaps its mappings all the same.
            self.zap(turn, patience)?;
        }
        match &self.reset {
            Some(reset) if resets => {
                self.function_level_reset(turn, patience, &**reset, |config| config.write(at, bytes))?;
                // Until then it is to be begun again where this state is restored.
                by.has_made(&mut self.config.lock(), bytes);
                Ok(())
            }
            _ => self.update(turn, patience, |config| by.write(config, at, bytes)),
        }
    }
}
