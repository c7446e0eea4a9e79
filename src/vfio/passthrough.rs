//! A real device under the device model: a guest's writes to configuration space change the regions and the device, in the
//! right order.

use super::bar::VfioBar;
use super::config::{
    AF_LENGTH, AF_TP_FLR, BAR_64, BAR_IO, BAR0, CAP_ADVANCED, CAP_EXPRESS, CAP_MSIX, CAP_POWER, COMMAND, CONVENTIONAL,
    DEVICE_ID, EXP_DEVCAP, EXP_DEVCAP_FLR, MSIX_CONTROL, MSIX_ENTRY, MSIX_TABLE, PM_D1, PM_PMC, ROM_REGION, VENDOR_ID,
};
use super::device::VfioDevice;
use super::error::VfioError;
use super::info::{RegionFlags, RegionInfo};
use crate::bar::{self, BarBuilder, DeviceIo};
use crate::pci::hardware::Hardware;
use crate::pci::{Bar, PciBuilder, PciDevice};
use crate::region::backing::{Backing, OnRevoke};
use crate::sys::{SysError, map, page_size};
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

impl VfioDevice {
    /// Starts making a [`PciDevice`] of this device: its BARs are regions, and its configuration space is the device's own,
    /// as the kernel shows it.
    ///
    /// A write that turns memory off (PCI_COMMAND, the power state) revokes the regions first, with all that follows them
    /// (pins, DMA mappings, memslots), and is made then. One that turns it on is made first. Function Level Reset through
    /// configuration space, and [`PciDevice::reset`], reset the device while accesses wait. For a reset of the bus, call
    /// [`hot_reset`](Self::hot_reset) in the closure of [`Bus::hot_reset`](crate::pci::Bus::hot_reset).
    ///
    /// Transfers to the table of MSI-X vectors read all-ones and are dropped, as the kernel does it. I/O ports, the ROM, and a
    /// memory BAR that cannot be mapped as a whole are read and written by calls, each of which is one of the device's
    /// descriptor. The ROM can be read while memory is on, whatever its own enable bit says, as by the kernel's driver; that
    /// bit decides where it is decoded ([`AddressMap`](crate::pci::AddressMap)).
    ///
    /// A write to configuration space is made by the calling thread, and takes as long as the device's own (VPD and resets take
    /// milliseconds). Other writers wait for it; readers do not, of registers neither, except for what the kernel holds up
    /// during a reset. A vCPU's thread that must not wait has [`PciDevice::begin_write`].
    ///
    /// ```no_run
    /// use revocable_mmio::pci::{Bus, Space};
    /// use revocable_mmio::vfio::VfioDevice;
    /// # use std::os::fd::{AsFd, OwnedFd};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # fn open() -> std::io::Result<OwnedFd> {
    /// #     let device = std::fs::File::options().read(true).write(true).open("/dev/vfio/devices/vfio0")?;
    /// #     Ok(device.into())
    /// # }
    /// # let group = open()?;
    /// let device = VfioDevice::new(open()?)?;
    /// let nic = device.pci()?.name("nic").build()?;
    /// nic.write(Space::Config, 4, &0_u16.to_le_bytes()[..])?; // the guest: regions first, then the device
    ///
    /// Bus::new([nic]).hot_reset(|_| true, |_| device.hot_reset(&[group.as_fd()]).map_err(std::io::Error::other))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The kernel's, or descriptors run out.
    pub fn pci(&self) -> Result<PciBuilder, VfioError> {
        self.pci_in_parts(|_, bar| bar)
    }

    /// [`pci`](Self::pci), where `parts` completes each memory BAR, by its index, that is not mapped as a whole: with memslots
    /// for the parts that are.
    ///
    /// ```no_run
    /// use revocable_mmio::memslot::{Memslots, Retention};
    /// use revocable_mmio::pci::PciDevice;
    /// use revocable_mmio::vfio::VfioDevice;
    ///
    /// fn gpu(device: &VfioDevice, slots: &Memslots) -> Result<PciDevice, Box<dyn std::error::Error>> {
    ///     let numbers = |index: u32| 100 + 10 * index..110 + 10 * index;
    ///     let gpu = device.pci_in_parts(|index, bar| bar.memslots(slots, numbers(index), Retention::AllOnes))?;
    ///     Ok(gpu.build()?) // and `BarSlots::areas` for each of those BARs
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`pci`](Self::pci).
    pub fn pci_in_parts(&self, mut parts: impl FnMut(u32, BarBuilder) -> BarBuilder) -> Result<PciBuilder, VfioError> {
        let (fd, config) = (self.as_fd(), self.config);
        let mut builder = PciDevice::builder(config.u16(fd, VENDOR_ID)?, config.u16(fd, DEVICE_ID)?);
        builder = builder.command(config.u16(fd, COMMAND)?).real(Arc::new(self.clone()));
        if config.size > CONVENTIONAL {
            builder = builder.extended();
        }
        if self.memory_bit().is_virtual_function() {
            builder = builder.virtual_function();
        }
        if let Some(at) = config.capability(fd, CAP_POWER)? {
            let has_d1_d2 = config.u16(fd, at + PM_PMC)? & PM_D1 != 0;
            let at = index(at);
            builder = if has_d1_d2 { builder.power_with_d1_d2(at) } else { builder.power(at) };
        }
        if self.can_be_reset()? {
            let device = self.clone();
            builder = builder.on_reset(move |_, _| device.reset().map_err(io::Error::other));
            if let Some(at) = config.capability(fd, CAP_EXPRESS)? {
                if config.u32(fd, at + EXP_DEVCAP)? & EXP_DEVCAP_FLR != 0 {
                    builder = builder.express(index(at));
                }
            }
            if let Some(at) = config.capability(fd, CAP_ADVANCED)? {
                if config.u16(fd, at + AF_LENGTH)? & AF_TP_FLR == AF_TP_FLR {
                    builder = builder.advanced_features(index(at));
                }
            }
        }
        let table = self.msix_table()?;
        let mut is_upper_half = false;
        for bar in 0..6 {
            let register = config.u32(fd, BAR0 + 4 * u64::from(bar))?;
            let info = RegionInfo::ask(fd, bar)?;
            if std::mem::take(&mut is_upper_half) || info.size() == 0 {
                continue;
            }
            is_upper_half = register & (BAR_IO | BAR_64) == BAR_64;
            let table = table.iter().filter(|(of, _)| *of == bar).map(|(_, range)| range.clone());
            let whole = info.mappable(page_size() as u64).first() == Some(&(0..info.size()));
            let described = if register & BAR_IO != 0 {
                Bar::io(info.size(), Calls::of(self, &info))
            } else if whole && info.flags().contains(RegionFlags::WRITE) {
                let backing = Backing::File { fd: map::dup(fd)?, offset: info.offset(), device: Some(OnRevoke::Keep) };
                table.fold(Bar::memory(info.size()).backing(backing), Bar::exclude)
            } else {
                Bar::areas(parts(bar, self.in_parts(&info, table)?))
            };
            let described = if is_upper_half { described.wide() } else { described };
            builder = builder.bar(bar as usize, described);
        }
        let rom = RegionInfo::ask(fd, ROM_REGION)?;
        if rom.size() > 0 {
            builder = builder.real_rom(self.by_calls(&rom));
        }
        Ok(builder)
    }

    /// Memory that is read and written by calls.
    fn by_calls(&self, info: &RegionInfo) -> BarBuilder {
        bar::Bar::builder(info.size()).rest(Calls::of(self, info))
    }

    /// Memory that cannot be mapped as a whole, or not written: areas, and the device by calls between them.
    fn in_parts(&self, info: &RegionInfo, table: impl Iterator<Item = Range<u64>>) -> Result<BarBuilder, VfioError> {
        // The kernel answers calls to the table, as in a BAR that is mapped as a whole.
        let trapped = table.fold(self.by_calls(info), |bar, range| bar.trap(range, Calls::of(self, info)));
        let parts = VfioBar::builder(info.clone()).memory_bit(self.memory_bit().clone()).regions(self.as_fd())?;
        Ok(parts.into_iter().fold(trapped, |bar, (range, region)| bar.area(range.start, region)))
    }

    /// The BAR with the table of MSI-X vectors, and where in it the table is.
    fn msix_table(&self) -> Result<Option<(u32, Range<u64>)>, VfioError> {
        let (fd, config) = (self.as_fd(), self.config);
        let Some(at) = config.capability(fd, CAP_MSIX)? else { return Ok(None) };
        let entries = u64::from(config.u16(fd, at + MSIX_CONTROL)? & 0x7ff) + 1;
        let place = config.u32(fd, at + MSIX_TABLE)?;
        let start = u64::from(place & !7);
        Ok(Some((place & 7, start..start + entries * MSIX_ENTRY)))
    }
}

/// Offsets of capabilities are below 256.
fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

impl Hardware for VfioDevice {
    fn read(&self, at: usize, into: &mut [u8]) -> Result<(), SysError> {
        self.config.read(self.as_fd(), at as u64, into)
    }

    fn write(&self, at: usize, bytes: &[u8]) -> Result<(), SysError> {
        self.config.write(self.as_fd(), at as u64, bytes)
    }

    fn is_memory_enabled(&self, device: BorrowedFd<'_>) -> bool {
        self.memory_bit().is_on(device)
    }
}

/// A BAR or ROM that is read and written by calls.
struct Calls {
    device: VfioDevice,
    offset: u64,
}

impl Calls {
    fn of(device: &VfioDevice, info: &RegionInfo) -> Arc<Self> {
        Arc::new(Self { device: device.clone(), offset: info.offset() })
    }

    fn place(&self, offset: u64) -> Result<i64, Errno> {
        let place = self.offset.checked_add(offset).and_then(|place| i64::try_from(place).ok());
        place.ok_or(Errno::EOVERFLOW)
    }
}

impl DeviceIo for Calls {
    fn read(&self, offset: u64, into: &mut [u8]) {
        let read = self.place(offset).and_then(|place| pread(self.device.as_fd(), into, place));
        if read != Ok(into.len()) {
            // As of a device that does not answer.
            into.fill(0xff);
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        // A write that nothing takes is dropped, as on the bus.
        let _ = self.place(offset).and_then(|place| pwrite(self.device.as_fd(), bytes, place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{BarType, PciError, Space};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// Where the file that stands for the device has its BAR, its ROM and its configuration space.
    const BAR: u64 = 0x1_0000;
    const ROM: u64 = 0x2_0000;
    const CONFIG: u64 = 0x3_0000;
    const ALL: RegionFlags = RegionFlags::READ.union(RegionFlags::WRITE).union(RegionFlags::MMAP);

    /// Each word of the file has its place in it. The memory is on.
    fn device() -> (File, VfioDevice) {
        let file = File::from(memfd_create("device", MFdFlags::empty()).expect("a file"));
        let words: Vec<u8> = (0..0x4_0000_u64).step_by(8).flat_map(u64::to_ne_bytes).collect();
        file.write_all_at(&words, 0).expect("a file");
        file.write_all_at(&[2, 0], CONFIG + COMMAND).expect("a file");
        let fd = file.try_clone().expect("a descriptor").into();
        (file, VfioDevice::of_file(fd, CONFIG))
    }

    fn read(device: &PciDevice, space: Space, at: u64) -> Result<u64, PciError> {
        let mut bytes = [0; 8];
        device.read(space, at, &mut bytes[..]).map(|_| u64::from_ne_bytes(bytes))
    }

    fn command(device: &PciDevice, command: u8) {
        device.write(Space::Config, COMMAND, &[command, 0][..]).expect("configuration space");
    }

    #[test]
    fn a_bar_of_which_areas_are_mapped_is_memory_and_the_device_answers_between_them() {
        let (file, real) = device();
        let info = RegionInfo::new(BAR, 0x8000, ALL).with_areas([0x4000..0x6000, 0..0x2000]);
        let table = 0x1000..0x1010;
        let bar = real.in_parts(&info, std::iter::once(table.clone())).expect("descriptors");
        let builder = PciDevice::builder(1, 2).command(2).real(Arc::new(real.clone())).bar(0, Bar::areas(bar));
        let device = builder.build().expect("a device");
        let space = Space::Bar(0);
        let areas = device.areas(space).expect("areas");
        assert_eq!(areas.ranges(), [0..0x2000, 0x4000..0x6000]);
        let by_call = |at: u64| matches!(areas.shared.at(at, 8).0, bar::Answers::Device(_));
        assert_eq!([0x8, 0x1008, 0x1010, 0x2008, 0x4008].map(by_call), [false, true, false, true, false]);
        for round in 0..3_u64 {
            // In an area, the table, between the areas, in the other one, after it.
            for at in [0x8, 0x1008, 0x2008, 0x3ff8, 0x4008, 0x6008, 0x7ff8] {
                let value = if round == 0 { BAR + at } else { at * round };
                assert_eq!(read(&device, space, at).expect("on"), value, "{at:#x}");
                device.write(space, at, &(at * (round + 1)).to_ne_bytes()[..]).expect("on");
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, BAR + at).expect("a file");
                assert_eq!(u64::from_ne_bytes(bytes), at * (round + 1), "in the device: {at:#x}");
            }
            command(&device, 0);
            for at in [0x8, 0x1008, 0x2008, 0x4008, 0x7ff8] {
                assert!(matches!(read(&device, space, at), Err(PciError::Disabled { .. })), "{at:#x}");
                assert!(device.write(space, at, &[0; 8][..]).is_err());
            }
            assert!(!real.is_memory_enabled(), "the device was told");
            command(&device, 2);
        }
        // Across edges, the widest that each allows.
        let mut bytes = [0; 16];
        device.read(space, 0x1ffc, &mut bytes[..]).expect("on");
        let mut plain = [0; 16];
        file.read_exact_at(&mut plain, BAR + 0x1ffc).expect("a file");
        assert_eq!(bytes, plain);
        // It is decoded as memory, not as ports.
        device.write(Space::Config, BAR0, &0xe000_0000_u32.to_le_bytes()[..]).expect("configuration space");
        let place = device.place(space).expect("decoded");
        assert_eq!((place.kind, place.address, place.size), (BarType::Memory32, 0xe000_0000, 0x8000));
    }

    #[test]
    fn a_bar_of_which_nothing_is_mapped_is_memory_by_calls_and_one_that_is_not_written_is_an_area() {
        let (_file, real) = device();
        let nothing = RegionInfo::new(BAR, 256, RegionFlags::READ | RegionFlags::WRITE);
        let unwritten = RegionInfo::new(BAR, 0x1000, RegionFlags::READ | RegionFlags::MMAP);
        let parts = |info| Bar::areas(real.in_parts(info, std::iter::empty()).expect("descriptors"));
        let builder = PciDevice::builder(1, 2).command(2).real(Arc::new(real.clone()));
        let device = builder.bar(0, parts(&nothing)).bar(1, parts(&unwritten).wide()).build().expect("a device");
        assert_eq!(device.areas(Space::Bar(0)).expect("areas").ranges(), []);
        assert_eq!(
            device.areas(Space::Bar(1)).expect("areas").ranges(),
            std::iter::once(0..0x1000).collect::<Vec<_>>()
        );
        device.write(Space::Bar(1), 8, &[0xff; 8][..]).expect("dropped");
        for bar in [0, 1] {
            assert_eq!(read(&device, Space::Bar(bar), 8).expect("on"), BAR + 8);
        }
        command(&device, 0);
        for bar in [0, 1] {
            assert!(matches!(read(&device, Space::Bar(bar), 8), Err(PciError::Disabled { .. })));
        }
    }

    #[test]
    fn a_rom_is_read_by_calls_while_memory_is_on_and_is_decoded_where_it_is_enabled() {
        let (_file, real) = device();
        let rom = real.by_calls(&RegionInfo::new(ROM, 0x800, RegionFlags::READ));
        let builder = PciDevice::builder(1, 2).command(2).real(Arc::new(real.clone())).real_rom(rom);
        let device = builder.build().expect("a device");
        assert_eq!((device.info(Space::Rom).size, device.info(Space::Rom).map), (0x800, false));
        assert_eq!(read(&device, Space::Rom, 0x10).expect("on"), ROM + 0x10);
        assert!(matches!(device.write(Space::Rom, 0, &[1][..]), Err(PciError::NoSuchSpace { .. })));
        let address = |bits: u32| device.write(Space::Config, 0x30, &(0xf000_0000_u32 | bits).to_le_bytes()[..]);
        address(0).expect("its address");
        assert_eq!(device.place(Space::Rom), None, "not enabled");
        address(1).expect("its address");
        assert_eq!(device.place(Space::Rom).map(|place| (place.address, place.size)), Some((0xf000_0000, 0x800)));
        command(&device, 0);
        assert!(matches!(read(&device, Space::Rom, 0x10), Err(PciError::RomDisabled)));
        assert!(matches!(read(&device, Space::Rom, 0x800), Err(PciError::OutOfRange { .. })), "before that");
        assert_eq!(device.place(Space::Rom), None, "memory is off");
        command(&device, 2);
        assert_eq!(read(&device, Space::Rom, 0x10).expect("on"), ROM + 0x10);
        // `MemoryBit` reads the register, and not PMCSR, which this device does not have.
        assert!(real.is_memory_enabled());
    }
}
