//! The device that is served: 64 KiB of memory as BAR 0, with everything that takes a BAR away.
//!
//! Its last eight bytes are a register by which a driver can tell whether a store was made: if [`token`] is there before and
//! after the store, and the same, the BAR was not away in between.

use parking_lot::Mutex;
use revocable_mmio::OnDisabled;
use revocable_mmio::pci::{Bar, PciDevice, PciError, Space};
use std::io;
use std::sync::Arc;

pub(crate) const BAR: Space = Space::Bar(0);
/// The size of BAR 0, in bytes.
pub(crate) const LEN: u64 = 64 << 10;
/// The register's place in it.
pub(crate) const TIMES: usize = (64 << 10) - 8;
pub(crate) const VENDOR: u16 = 0x1234;
pub(crate) const DEVICE: u16 = 0x7f5e;
/// The places of the capabilities for power management and PCI Express.
pub(crate) const POWER: usize = 0x40;
pub(crate) const EXPRESS: usize = 0x50;

/// COMMAND: the device decodes accesses to its memory.
const COMMAND_MEMORY: u16 = 1 << 1;
const D3HOT: u8 = 3;

pub(crate) struct Device {
    pub(crate) pci: PciDevice,
    /// How often the BAR was taken away or reset.
    times: Arc<Mutex<u32>>,
}

/// The register's value: no mixture of it with ones or zeroes is another.
pub(crate) fn token(times: u32) -> u64 {
    u64::from(!times) << 32 | u64::from(times)
}

impl Device {
    /// A device whose memory is off, as after power-on. Its clients get all-ones while it is: QEMU dies of a SIGBUS.
    pub(crate) fn make() -> Result<Self, PciError> {
        let times = Arc::new(Mutex::new(0));
        let reset = Arc::clone(&times);
        let pci = PciDevice::builder(VENDOR, DEVICE)
            .name("vfio-user")
            .bar(0, Bar::memory(LEN).shared(OnDisabled::AllOnes))
            .power(POWER)
            .express(EXPRESS)
            .on_reset(move |device, _| {
                let bar = device.owner(BAR).ok_or(io::ErrorKind::NotFound)?;
                bar.fill(0, 0, bar.len()).map_err(io::Error::other)?;
                count(device, &reset);
                Ok(())
            })
            .build()?;
        let device = Self { pci, times };
        device.count();
        Ok(device)
    }

    /// True if registers let the memory be reached.
    pub(crate) fn decodes(&self) -> bool {
        self.pci.command() & COMMAND_MEMORY != 0 && self.pci.power_state() < D3HOT
    }

    /// Counts that the BAR is away, before it comes back.
    pub(crate) fn count(&self) {
        count(&self.pci, &self.times);
    }
}

fn count(device: &PciDevice, times: &Mutex<u32>) {
    let mut times = times.lock();
    *times = times.wrapping_add(1);
    let bar = device.owner(BAR).expect("BAR 0 is memory");
    bar.write(TIMES, token(*times)).expect("the register is inside, and the owner's view is never revoked");
}
