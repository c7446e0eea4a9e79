//! The configuration space of a PCI device, as the kernel shows it.

use super::error::VfioError;
use super::info::RegionInfo;
use crate::sys::SysError;
use nix::errno::Errno;
use nix::sys::uio::{pread, pwrite};
use std::os::fd::BorrowedFd;

/// `VFIO_PCI_CONFIG_REGION_INDEX`.
const CONFIG_REGION: u32 = 7;
/// `VFIO_PCI_ROM_REGION_INDEX`.
pub(super) const ROM_REGION: u32 = 6;

pub(super) const VENDOR_ID: u64 = 0;
pub(super) const DEVICE_ID: u64 = 2;
pub(super) const COMMAND: u64 = 4;
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
const STATUS: u64 = 6;
const STATUS_CAPABILITIES: u16 = 1 << 4;
pub(super) const BAR0: u64 = 0x10;
/// BAR: I/O ports; memory, 64 bits wide.
pub(super) const BAR_IO: u32 = 1;
pub(super) const BAR_64: u32 = 1 << 2;
const CAPABILITIES: u64 = 0x34;
/// The end of a conventional device's configuration space.
pub(super) const CONVENTIONAL: u64 = 256;
const HEADER: u64 = 0x40;

pub(super) const CAP_POWER: u8 = 1;
pub(super) const CAP_EXPRESS: u8 = 0x10;
pub(super) const CAP_MSIX: u8 = 0x11;
pub(super) const CAP_ADVANCED: u8 = 0x13;
/// Power management, from the capability on: what it can do (D1), and the control register.
pub(super) const PM_PMC: u64 = 2;
pub(super) const PM_D1: u16 = 1 << 9;
pub(super) const PM_CTRL: u64 = 4;
pub(super) const PM_STATE: u16 = 3;
pub(super) const D3HOT: u16 = 3;

/// PCI Express: what the device can do, such as Function Level Reset.
pub(super) const EXP_DEVCAP: u64 = 4;
pub(super) const EXP_DEVCAP_FLR: u32 = 1 << 28;
/// Advanced Features: the length, and what the device can do, such as Function Level Reset. The kernel acts on that if the
/// device says whether transactions are pending (`vfio_af_config_write`).
pub(super) const AF_LENGTH: u64 = 2;
pub(super) const AF_TP_FLR: u16 = 0b11 << 8;
/// MSI-X: the number of vectors, less one; the table's BAR and place; the length of an entry.
pub(super) const MSIX_CONTROL: u64 = 2;
pub(super) const MSIX_TABLE: u64 = 4;
pub(super) const MSIX_ENTRY: u64 = 16;

/// Where the configuration space is in the device's file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    offset: u64,
    pub(super) size: u64,
}

impl Config {
    /// Of a file that stands for a device.
    #[cfg(test)]
    pub(super) fn at(offset: u64) -> Self {
        Self { offset, size: CONVENTIONAL }
    }

    pub(super) fn of(device: BorrowedFd<'_>) -> Result<Self, VfioError> {
        let info = RegionInfo::ask(device, CONFIG_REGION)?;
        if info.size() < CONVENTIONAL {
            return Err(VfioError::NotPci { size: info.size() });
        }
        Ok(Self { offset: info.offset(), size: info.size() })
    }

    /// Where `len` bytes at `at` are in the device's file.
    fn place(&self, at: u64, len: usize, call: &'static str) -> Result<i64, SysError> {
        let inside = at.checked_add(len as u64).is_some_and(|end| end <= self.size);
        let place = self.offset.checked_add(at).and_then(|place| i64::try_from(place).ok());
        place.filter(|_| inside).ok_or(SysError::new(call, Errno::EFAULT))
    }

    pub(super) fn read(&self, device: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<(), SysError> {
        let place = self.place(at, into.len(), "pread")?;
        match pread(device, into, place) {
            Ok(read) if read == into.len() => Ok(()),
            Ok(_) => Err(SysError::new("pread", Errno::EIO)),
            Err(e) => Err(SysError::new("pread", e)),
        }
    }

    pub(super) fn write(&self, device: BorrowedFd<'_>, at: u64, bytes: &[u8]) -> Result<(), SysError> {
        let place = self.place(at, bytes.len(), "pwrite")?;
        match pwrite(device, bytes, place) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(SysError::new("pwrite", Errno::EIO)),
            Err(e) => Err(SysError::new("pwrite", e)),
        }
    }

    pub(super) fn u16(&self, device: BorrowedFd<'_>, at: u64) -> Result<u16, SysError> {
        let mut bytes = [0; 2];
        self.read(device, at, &mut bytes).map(|()| u16::from_le_bytes(bytes))
    }

    pub(super) fn u32(&self, device: BorrowedFd<'_>, at: u64) -> Result<u32, SysError> {
        let mut bytes = [0; 4];
        self.read(device, at, &mut bytes).map(|()| u32::from_le_bytes(bytes))
    }

    /// Where the first capability with this id is. A list that goes in a circle ends.
    pub(super) fn capability(&self, device: BorrowedFd<'_>, id: u8) -> Result<Option<u64>, SysError> {
        /// As many as fit, 4 bytes each.
        const MOST: u64 = (CONVENTIONAL - HEADER) / 4;
        if self.u16(device, STATUS)? & STATUS_CAPABILITIES == 0 {
            return Ok(None);
        }
        let mut at = u64::from(self.u16(device, CAPABILITIES)? & 0xfc);
        for _ in 0..MOST {
            if at < HEADER {
                break;
            }
            let [found, next] = self.u16(device, at)?.to_le_bytes();
            if found == id {
                return Ok(Some(at));
            }
            at = u64::from(next & 0xfc);
        }
        Ok(None)
    }
}
