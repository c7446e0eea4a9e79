//! Configuration space: bytes, and which of their bits can be written. No behaviour: the effects of a write are in the
//! files that are named after them.

use super::hardware::Real;
use super::regs::*;
use crate::sys::SysError;

/// The configuration space of PCI, or of PCI Express.
#[derive(Clone, Debug)]
pub(super) struct ConfigSpace {
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
    /// The offset of the power-management capability.
    pub(super) power: Option<usize>,
    /// The offset of the PCI Express capability.
    pub(super) express: Option<usize>,
    /// The device that gets every write too.
    pub(super) real: Real,
    /// The first write that it did not take.
    failed: Option<SysError>,
}

/// The next piece of a transfer at `at`: aligned, so that no piece ever touches COMMAND together with its neighbours
/// at an odd place (`vfio_config_do_rw` chops them in the same way).
pub(super) fn piece(at: usize, left: usize) -> usize {
    match (left, at % 4) {
        (4.., 0) => 4,
        (2.., 0 | 2) => 2,
        _ => 1,
    }
}

impl ConfigSpace {
    pub(super) fn new(size: usize) -> Self {
        let mut config = Self {
            bytes: vec![0; size].into(),
            writable: vec![0; size].into(),
            power: None,
            express: None,
            real: Real::default(),
            failed: None,
        };
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        config.allow(INTERRUPT_LINE, &[0xff]);
        config.allow(CACHE_LINE_SIZE, &[0xff]);
        config.allow(LATENCY_TIMER, &[0xff]);
        config
    }

    pub(super) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Sets bytes, as the device itself does.
    pub(super) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Makes these bits writable.
    pub(super) fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..][..mask.len()].copy_from_slice(mask);
    }

    /// Sizing is all in the mask: address bits below the size read as type bits, whatever is written.
    pub(super) fn set_bar(&mut self, index: usize, size: u64, kind: u32) {
        let at = BAR0 + 4 * index;
        let mask = !(size - 1);
        self.set(at, &kind.to_le_bytes());
        self.allow(at, &mask.to_le_bytes()[..4]);
        if kind & (BAR_IO | BAR_64) == BAR_64 {
            self.allow(at + 4, &mask.to_le_bytes()[4..]);
        }
    }

    pub(super) fn set_rom(&mut self, size: u64) {
        let mask = (!(size - 1) | u64::from(ROM_ENABLE)).to_le_bytes();
        self.allow(ROM_ADDRESS, &mask[..4]);
    }

    pub(super) fn read(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[at..][..into.len()]);
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The byte at `register` after this write.
    pub(super) fn preview(&self, at: usize, bytes: &[u8], register: usize) -> u8 {
        let old = self.bytes[register];
        let mask = self.writable[register];
        match register.checked_sub(at).and_then(|i| bytes.get(i)) {
            Some(new) => old & !mask | new & mask,
            None => old,
        }
    }

    /// A guest's write: only writable bits change.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        for i in 0..bytes.len() {
            self.bytes[at + i] = self.preview(at, bytes, at + i);
        }
        self.tell(at, bytes);
    }

    fn tell(&mut self, at: usize, bytes: &[u8]) {
        if let Some(real) = &self.real.0 {
            let told = real.write(at, bytes);
            self.failed = self.failed.or(told.err());
        }
    }

    /// The first write since the last call that the real device did not take.
    pub(super) fn take_failed(&mut self) -> Result<(), SysError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Takes a write back, except bytes that it did not change: others may have written those since.
    pub(super) fn undo(&mut self, before: &Self, after: &Self) {
        for (at, (old, new)) in before.bytes.iter().zip(&after.bytes).enumerate() {
            if old != new {
                self.bytes[at] = *old;
                self.tell(at, &[*old]);
            }
        }
    }

    /// The power state's number, 0 (D0) for a device that has no others.
    pub(super) fn power_state(&self) -> u8 {
        self.power.map_or(0, |cap| self.bytes[cap + PM_CTRL] & PM_CTRL_STATE)
    }

    pub(super) fn set_power_state(&mut self, state: u8) {
        if let Some(cap) = self.power {
            let byte = &mut self.bytes[cap + PM_CTRL];
            *byte = *byte & !PM_CTRL_STATE | state & PM_CTRL_STATE;
        }
    }
}
