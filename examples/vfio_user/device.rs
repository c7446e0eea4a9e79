//! The device that is served: 64 KiB of memory as BAR 0, with everything that takes a BAR away.

use revocable_mmio::OnDisabled;
use revocable_mmio::pci::{Bar, PciDevice, PciError, Space};
use std::io;

pub(crate) const BAR: Space = Space::Bar(0);
/// The size of BAR 0, in bytes.
pub(crate) const LEN: u64 = 64 << 10;
pub(crate) const VENDOR: u16 = 0x1234;
pub(crate) const DEVICE: u16 = 0x7f5e;

/// COMMAND: the device decodes accesses to its memory.
pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
/// The places of the capabilities for power management and PCI Express.
pub(crate) const POWER: usize = 0x40;
pub(crate) const EXPRESS: usize = 0x50;

/// A device whose memory is off, as after power-on. Its clients get all-ones while it is: QEMU dies of a SIGBUS.
pub(crate) fn make() -> Result<PciDevice, PciError> {
    PciDevice::builder(VENDOR, DEVICE)
        .name("vfio-user")
        .bar(0, Bar::memory(LEN).shared(OnDisabled::AllOnes))
        .power(POWER)
        .express(EXPRESS)
        .on_reset(|device, _| {
            let bar = device.owner(BAR).ok_or(io::ErrorKind::NotFound)?;
            bar.fill(0, 0, bar.len()).map_err(io::Error::other)
        })
        .build()
}
