//! A VMM's exit loop in front of a `PciDevice`: configuration writes and MMIO go to the device by call, and the answer to a
//! refused access is what a PCI bus gives, all-ones. Needs Linux and no privilege.
//!
//! `cargo run --example mmio_dispatch`

use revocable_mmio::MapOptions;
use revocable_mmio::pci::{Bar, PciDevice, PciError, Space};
use std::error::Error;

/// A vCPU's exit, as KVM or another hypervisor reports it.
enum Exit<'a> {
    MmioRead(u64, &'a mut [u8]),
    MmioWrite(u64, &'a [u8]),
    ConfigWrite(u64, &'a [u8]),
}

const COMMAND: u64 = 4;
const MEMORY: u16 = 2;
const BAR0: u64 = 0x10;

/// One device on the bus.
struct Slot {
    device: PciDevice,
}

impl Slot {
    /// Offset in BAR 0, if that is where the address is: the guest has put the BAR somewhere, and memory is on.
    fn offset(&self, gpa: u64) -> Option<u64> {
        let place = self.device.place(Space::Bar(0))?;
        gpa.checked_sub(place.address).filter(|offset| *offset < place.size)
    }

    /// Handles one exit. An error here is the VMM's own trouble; nothing that the guest does leads to one.
    fn handle(&self, exit: Exit<'_>) -> Result<(), PciError> {
        match exit {
            Exit::ConfigWrite(offset, data) => self.device.write(Space::Config, offset, data).map(drop),
            Exit::MmioRead(gpa, data) => {
                // What no device answers reads as ones.
                data.fill(0xff);
                let Some(offset) = self.offset(gpa) else { return Ok(()) };
                match self.device.read(Space::Bar(0), offset, data) {
                    // Memory has been turned off meanwhile.
                    Err(PciError::Disabled { .. }) => Ok(()),
                    done => done.map(drop),
                }
            }
            Exit::MmioWrite(gpa, data) => {
                let Some(offset) = self.offset(gpa) else { return Ok(()) };
                match self.device.write(Space::Bar(0), offset, data) {
                    Err(PciError::Disabled { .. }) => Ok(()),
                    done => done.map(drop),
                }
            }
        }
    }
}

/// Stands for a guest: what its instructions exit with.
struct Guest<'a>(&'a Slot);

impl Guest<'_> {
    fn command(&self, value: u16) -> Result<(), PciError> {
        self.0.handle(Exit::ConfigWrite(COMMAND, &value.to_le_bytes()))
    }

    fn load(&self, gpa: u64) -> Result<u32, PciError> {
        let mut data = [0; 4];
        self.0.handle(Exit::MmioRead(gpa, &mut data))?;
        Ok(u32::from_le_bytes(data))
    }

    fn store(&self, gpa: u64, value: u32) -> Result<(), PciError> {
        self.0.handle(Exit::MmioWrite(gpa, &value.to_le_bytes()))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let nic = PciDevice::builder(0x8086, 0x10d3).name("nic").bar(0, Bar::memory(0x2_0000)).build()?;
    // Another part of the VMM has the BAR mapped: a vhost thread, a memslot.
    let mapping = nic.map(Space::Bar(0), MapOptions::new())?;
    let slot = Slot { device: nic };
    let guest = Guest(&slot);

    let gpa = 0xe000_0000;
    slot.handle(Exit::ConfigWrite(BAR0, &0xe000_0000u32.to_le_bytes()))?;
    guest.command(MEMORY)?;
    guest.store(gpa + 8, 0x1234)?;
    println!("memory on:    the guest loads {:#x}, a thread {:?}", guest.load(gpa + 8)?, mapping.read::<u32>(8));

    guest.command(0)?;
    guest.store(gpa + 8, 0xdead)?;
    println!("memory off:   the guest loads {:#x}, a thread {:?}", guest.load(gpa + 8)?, mapping.read::<u32>(8));

    guest.command(MEMORY)?;
    println!("on again:     the guest loads {:#x}, a thread {:?}", guest.load(gpa + 8)?, mapping.read::<u32>(8));

    slot.handle(Exit::ConfigWrite(BAR0, &0xe800_0000u32.to_le_bytes()))?;
    println!("BAR moved:    old place {:#x}, new place {:#x}", guest.load(gpa + 8)?, guest.load(0xe800_0008)?);
    if guest.load(0xe800_0008)? == 0x1234 { Ok(()) } else { Err("the store was lost".into()) }
}
