//! Reads and writes of a BAR or ROM that is not one region: I/O ports, and areas.

use super::bar::{Wait, failed};
use super::buffer::{Sink, Source};
use super::error::PciError;
use super::space::Space;
use super::state::{BarSlot, Device};
use crate::bar::{Answers, device_io};
use crate::memslot::BusAccess;

const WIDEST: usize = 8;

impl Device {
    pub(super) fn read_slot<B: Sink + ?Sized>(
        &self,
        space: Space,
        at: u64,
        into: &mut B,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        let slot = self.slot(space)?;
        let len = self.extent(space, at, into.len(), slot.size())?;
        let widest = self.widest(space)?;
        let mut done = 0;
        while done < len {
            let offset = at + done as u64;
            let (answers, width) = slot.at(offset, widest.min(len - done));
            let mut bytes = [0; WIDEST];
            let bytes = &mut bytes[..width];
            self.access(slot, answers, space, offset, BusAccess::Load(bytes), wait)?;
            into.put(done, bytes).map_err(|source| failed(done, source))?;
            done += width;
        }
        Ok(len)
    }

    pub(super) fn write_slot<B: Source + ?Sized>(
        &self,
        space: Space,
        at: u64,
        from: &B,
        wait: Wait<'_>,
    ) -> Result<usize, PciError> {
        let slot = self.slot(space)?;
        let len = self.extent(space, at, from.len(), slot.size())?;
        let mut done = 0;
        while done < len {
            let offset = at + done as u64;
            let (answers, width) = slot.at(offset, len - done);
            let mut bytes = [0; WIDEST];
            let bytes = &mut bytes[..width];
            from.get(done, bytes).map_err(|source| failed(done, source))?;
            self.access(slot, answers, space, offset, BusAccess::Store(bytes), wait)?;
            done += width;
        }
        Ok(len)
    }

    fn slot(&self, space: Space) -> Result<&BarSlot, PciError> {
        let slot = match space {
            Space::Bar(index) => self.slots.get(index).and_then(Option::as_ref),
            Space::Rom => self.rom.as_ref(),
            Space::Config => None,
        };
        match slot.ok_or(PciError::NoSuchSpace { space, why: "the device has none" })? {
            BarSlot::Areas(bar) if bar.areas().shared.is_inherited() => Err(PciError::Forked),
            slot => Ok(slot),
        }
    }

    fn access(
        &self,
        slot: &BarSlot,
        answers: Answers<'_>,
        space: Space,
        offset: u64,
        access: BusAccess<'_>,
        wait: Wait<'_>,
    ) -> Result<(), PciError> {
        match (slot.areas(), answers, access) {
            (Some(areas), answers, access) => areas
                .shared
                .access(answers, offset, access, |region, access| self.gated(space, region, offset, wait, access))?,
            // I/O ports are not memory: PCI_COMMAND.MEM does not gate them, nor does any other state.
            (None, Answers::Device(ports), BusAccess::Load(into)) => device_io::read(ports, offset, into),
            (None, Answers::Device(ports), BusAccess::Store(bytes)) => device_io::write(ports, offset, bytes),
            (None, ..) => {}
        }
        Ok(())
    }
}

impl BarSlot {
    /// What answers at an offset, and how wide an access of at most `left` bytes is there.
    fn at(&self, offset: u64, left: usize) -> (Answers<'_>, usize) {
        match self {
            BarSlot::Areas(bar) => bar.areas().shared.at(offset, left),
            BarSlot::Io(ports) => (Answers::Device(&ports.ports), device_io::width(offset, ports.size, left)),
            // `Device::memory` has it.
            BarSlot::Memory(_) => (Answers::Nothing, 1),
        }
    }
}
