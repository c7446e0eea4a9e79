//! A real device under the device model: a guest's writes to configuration space change the regions and the device, in the
//! right order.

use super::config::{
    BAR_64, BAR_IO, BAR0, CAP_EXPRESS, CAP_MSIX, CAP_POWER, COMMAND, CONVENTIONAL, DEVICE_ID, EXP_DEVCAP,
    EXP_DEVCAP_FLR, MSIX_CONTROL, MSIX_ENTRY, MSIX_TABLE, PM_D1, PM_PMC, VENDOR_ID,
};
use super::device::VfioDevice;
use super::error::VfioError;
use super::info::{RegionFlags, RegionInfo};
use crate::pci::hardware::Hardware;
use crate::pci::{Bar, PciBuilder, PciDevice, PortIo};
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
    /// Transfers to the table of MSI-X vectors read all-ones and are dropped, as the kernel does it. A BAR that cannot be
    /// mapped as a whole, such as I/O ports, is read and written by calls only. The ROM is not shown, nor is FLR through the
    /// Advanced Features capability acted on before the kernel does.
    ///
    /// ```no_run
    /// use revocable_mmio::pci::{Bus, Space};
    /// use revocable_mmio::vfio::VfioDevice;
    /// # use std::os::fd::{AsFd, OwnedFd};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # fn open() -> OwnedFd { unimplemented!() }
    /// # let group = open();
    /// let device = VfioDevice::new(open())?;
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
            let whole = info.mappable(page_size() as u64).first() == Some(&(0..info.size()));
            let described = if whole && info.flags().contains(RegionFlags::WRITE) {
                let backing = Backing::File { fd: map::dup(fd)?, offset: info.offset(), device: Some(OnRevoke::Keep) };
                let described = Bar::memory(info.size()).backing(backing);
                let excluded = table.iter().filter(|(of, _)| *of == bar).map(|(_, range)| range.clone());
                let described = excluded.fold(described, Bar::exclude);
                if is_upper_half { described.wide() } else { described }
            } else {
                Bar::io(info.size(), Arc::new(Calls { device: self.clone(), offset: info.offset() }))
            };
            builder = builder.bar(bar as usize, described);
        }
        Ok(builder)
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

/// A BAR that is read and written by calls.
struct Calls {
    device: VfioDevice,
    offset: u64,
}

impl Calls {
    fn place(&self, offset: u64) -> Result<i64, Errno> {
        let place = self.offset.checked_add(offset).and_then(|place| i64::try_from(place).ok());
        place.ok_or(Errno::EOVERFLOW)
    }
}

impl PortIo for Calls {
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
